"""The configs of the built-in tasks: SFT, the judges that methods need, anchors where they meet any, the methods."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from prl_jax.methods import METHODS, Anchors
from prl_jax.recipes.judges import Asked
from prl_jax.stages import config as c


class Size(NamedTuple):
    """Layers of the model, steps of the stages (`direct`: of a policy that learns from pairs), and rows: those of
    training, prompts, pairs and the evaluation.

    0 rows are all of them.
    """

    layers: int
    sft: int
    bt: int
    genrm: int
    policy: int
    direct: int
    rows: int
    prompts: int
    pairs: int
    evaluation: int


FULL = Size(layers=3, sft=800, bt=450, genrm=900, policy=40, direct=300, rows=0, prompts=2048, pairs=0, evaluation=512)
# The same pipeline, much too small and short to learn anything. A short run is mostly compilation, whose time goes with
# the layers.
SMOKE = Size(layers=1, sft=20, bt=6, genrm=6, policy=2, direct=2, rows=500, prompts=256, pairs=200, evaluation=64)


LENGTHS = dict(max_prompt=14, max_response=10)  # that hold every built-in prompt and demonstration


class Arm(NamedTuple):
    """A policy of the experiment.

    Attributes:
      method: its row of `METHODS`.
      asked: its judges.
      title: its name in tables.
      values: keys of its stage that differ from those of the method and of the experiment.
    """

    method: str
    asked: Asked
    title: str
    values: Mapping[str, Any] = {}


def words_of(arguments: str, methods: Collection[str], judges: Collection[str]) -> tuple[str, str, Size]:
    """`NAME[,JUDGE][,smoke]` -> a method, a judge, "" where none is named, and the size; in a short run SFT is long
    enough that samples end.

    Raises:
      ValueError: these are none.
    """
    words = arguments.split(",")
    name, *named = [word for word in words if word != "smoke"] or [""]
    if name not in methods or named[1:] or not set(named) <= set(judges):
        raise ValueError(
            f"{arguments!r}: expected NAME[,JUDGE][,smoke], a judge of {', '.join(judges)}, and a method of "
            f"{', '.join(methods)}"
        )
    return name, "".join(named), SMOKE._replace(sft=150) if "smoke" in words else FULL


def built_in_tasks(
    arms: Mapping[str, Arm],
    size: Size,
    *,
    title: str,
    scoring: Sequence[str] = (),
    comparing: Sequence[str] = (),
    anchors: bool = False,
) -> ConfigDict:
    """SFT on systematically imperfect demonstrations, judges on noisy pairs, the policies, and an exact evaluation.

    A step of a policy has 256 responses, whatever its group. Anchors are the best of four SFT samples by the first
    judge, or all four for a reward that takes a quantile of them.

    Args:
      arms: name of the stage -> policy.
      size: of everything.
      title: of the report.
      scoring, comparing: names of Bradley-Terry and of generative judges that are trained even if no arm asks them.
      anchors: whether there are anchors even if no arm meets any.
    """
    prompts = c.source(limit=size.prompts)
    # Each name once, in the order in which they are named.
    scoring = dict.fromkeys((*scoring, *(name for arm in arms.values() for name in arm.asked.scoring)))
    comparing = dict.fromkeys((*comparing, *(name for arm in arms.values() for name in arm.asked.comparing)))
    combined = {name: section for arm in arms.values() for name, section in arm.asked.judges.items()}
    judges = (*scoring, *comparing)
    methods = [METHODS[arm.method].method for arm in arms.values()]
    stages = dict(sft=demonstrated(size))
    stages |= {name: bradley_terry(size) for name in scoring} | {name: generative(size) for name in comparing}
    if anchors or any(method.opponents.candidates == Anchors.candidates for method in methods):
        keep = 4 if any(method.reward.least_opponents > 1 for method in methods) else 1
        stages |= dict(anchors=c.anchors(prompts=prompts, judge=next(iter(judges), "gold"), keep=keep))
    stages |= {name: _policy(arm, size, prompts) for name, arm in arms.items()}
    stages |= dict(
        evaluation=c.evaluation(
            judges=(*judges, *combined),
            pairs=c.source(split="test", limit=size.pairs),
            prompts=c.source(split="test", limit=size.evaluation),
            arms={name: dict(title=arm.title, judge=arm.asked.title) for name, arm in arms.items()},
        )
    )
    return c.build(
        stages, title=title, model=dict(layers=size.layers), gold=dict(train_rows=size.rows), judges=combined
    )


def demonstrated(size: Size) -> dict[str, Any]:
    """The section of SFT on the built-in demonstrations."""
    return c.sft(duration=f"{size.sft} steps", **fitted(size), **LENGTHS)


def fitted(size: Size, learning_rate: float = 2e-3) -> dict[str, Any]:
    """Keys of a stage that fits a model to the built-in records."""
    validation = c.source(split="validation", limit=size.pairs or 512)
    return dict(validation=validation, optimizer=dict(learning_rate=learning_rate))


def bradley_terry(size: Size) -> dict[str, Any]:
    """The section of a Bradley-Terry judge of the built-in tasks."""
    return c.bradley_terry(init_from="sft", duration=f"{size.bt} steps", **LENGTHS, **fitted(size))


def generative(size: Size) -> dict[str, Any]:
    """The section of a generative judge of the built-in tasks."""
    return c.generative(
        init_from="sft",
        duration=f"{size.genrm} steps",
        batch_size=64,
        max_length=38,
        shared_positions=True,
        w_cons=0.05,
        **fitted(size, 1.2e-3),
    )


def _policy(arm: Arm, size: Size, prompts: Mapping[str, Any]) -> dict[str, Any]:
    return c.online(
        arm.method,
        prompts=prompts,
        prompts_per_step=256 // METHODS[arm.method].group_size,
        duration=f"{size.policy} steps",
        optimizer=dict(learning_rate=3e-4, schedule="linear"),
        evaluation=dict(every="20%", prompts=c.source(split="validation", limit=256), judge="gold"),
        **arm.asked.values,
        **arm.values,
    )
