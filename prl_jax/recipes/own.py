"""Configs that several experiments share: their stages, with the numbers left to the experiment."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from prl_jax.data.lines import Limits, Lines
from prl_jax.data.sources import SourceSpec, file_path
from prl_jax.errors import UserError
from prl_jax.methods import METHODS, Anchors
from prl_jax.recipes.judges import asked
from prl_jax.runs.context import is_directory
from prl_jax.stages import config as c

_ENOUGH = 400  # pairs that train; a referee of fewer than a hundred would tell nothing


def full_training(
    arguments: str, *, title: str, batch_size: int, accumulate: int, mesh: dict[str, int], length: int = 512
) -> ConfigDict:
    """`own_pairs` with SFT on the chosen responses first, every parameter trained in every stage.

    Args:
      arguments: see `own_pairs`.
      title: of the report.
      batch_size: rows of an update; a step of the policy, which samples and judges, has those of two, and an evaluation
        too, so that the same compiled functions serve both.
      accumulate: microbatches of an update.
      mesh: sizes of the axes of the device mesh.
      length: tokens of a prompt, and of a response.
    """
    lengths, step = dict(max_prompt=length, max_response=length), 2 * batch_size
    supervised = dict(duration="1 epochs", batch_size=batch_size, accumulate=accumulate)
    return own_pairs(
        arguments,
        title=title,
        holdout=step,
        sft=dict(**supervised, **lengths, optimizer=dict(learning_rate=1e-5)),
        # A prompt, two responses, and half a response for the words around them.
        generative=dict(**supervised, max_length=length * 7 // 2, optimizer=dict(learning_rate=5e-6)),
        online=dict(
            prompts_per_step=step,
            judge_batch_size=step,
            duration="500 steps",
            accumulate=accumulate,
            optimizer=dict(learning_rate=1e-6, warmup="10 steps"),
            critic=dict(warmup="20 steps", optimizer=dict(learning_rate=5e-6, warmup="10 steps")),
            surrogate=dict(high=0.28),
            regulariser=dict(coefficient=0.03),
        ),
        evaluation_batch=step,
        mesh=mesh,
        huggingface=lengths,
    )


def own_pairs(
    arguments: str,
    *,
    holdout: int,
    generative: dict[str, Any],
    online: dict[str, Any],
    method: str = "pairwise_rl",
    arm: str = "pairwise_ppo",
    bradley_terry: dict[str, Any] | None = None,
    critic: dict[str, Any] | None = None,
    sft: dict[str, Any] | None = None,
    evaluation_batch: int,
    **root: Any,
) -> ConfigDict:
    """Pairwise-RL, or another method, on a model directory and a file of preference pairs.

    The judge that the method needs, trained on the pairs, anchors where the method meets any (chosen responses, or
    samples where its reward needs several of a prompt), the policy and an evaluation. A judge that the policy has
    learned to please cannot tell how good it has become: of `_ENOUGH` pairs and more, a quarter trains a judge of its
    own, the referee, which is generative and tells the win rates, the prompts of another quarter are the policy's, and
    half of the pairs train the judge that the policy asks. Of fewer pairs all train the one judge, which then tells the
    win rates too, as the report says. The split is by row: pairs of one prompt that stand apart in the file may come to
    both sides of it. A file that is not there, which `prl plan` does not need, counts as one that is split.

    Args:
      arguments: `MODEL,PAIRS`, the part of `--config FILE.py:MODEL,PAIRS`.
      holdout: first rows of PAIRS, for validation and the final table; the others train.
      generative, online: values of these sections.
      method: a row of `METHODS`.
      arm: name of the stage that trains the policy by it.
      bradley_terry: values of Bradley-Terry judges, for methods that ask them.
      critic: values of the critic, for methods that have one.
      sft: values of a stage of SFT on the chosen responses, which the policy then starts from; None starts from MODEL.
      evaluation_batch: rows that are generated and judged at once in the evaluation.
      root: values of the config's root.

    Lengths that are not given are as long as the data need.

    Raises:
      ValueError: other arguments.
    """
    model, held_out, for_referee, train, for_judge, prompts = divided(
        arguments, holdout, Limits(**root.get("limits", {}))
    )
    quarter = for_referee["limit"]
    start = dict(init_from=model, validation=held_out)
    stages = (
        {} if sft is None else {"sft": c.sft(**{"max_prompt": 0, "max_response": 0, "data": train, **start, **sft})}
    )
    policy, preset, judges = "sft" if stages else model, METHODS[method], asked(method)
    compares = {"template": "question-v1", "w_cons": 0.05, "max_length": 0, **start, **generative}
    scores = {"max_prompt": 0, "max_response": 0, **start, **(bradley_terry or {})}
    stages |= {name: c.bradley_terry(**{"data": for_judge, **scores}) for name in judges.scoring}
    stages |= {name: c.generative(**{"data": for_judge, **compares}) for name in judges.comparing}
    referee = "referee" if quarter else judges.title
    if quarter:
        stages["referee"] = c.generative(**{"data": for_referee, **compares})
    if preset.method.opponents.candidates == Anchors.candidates:
        # One chosen response stands for a prompt; a reward that needs more of them meets samples.
        sampled = dict(policy=policy, judge=judges.trained[0], samples=4, keep=4, batch_size=evaluation_batch)
        few = preset.method.reward.least_opponents == 1
        stages |= dict(anchors=c.anchors(prompts=prompts, **dict(choice="reference") if few else sampled))
    stages[arm] = c.online(
        method,
        prompts=prompts,
        evaluation=dict(every="10%", prompts=held_out, judge=referee),
        **dict(critic=critic) if critic and preset.method.baseline.reads_values else {},
        **{"policy": policy, **online, **judges.values},
    )
    stages |= dict(
        evaluation=c.evaluation(
            judges=tuple(dict.fromkeys((*judges.trained, *judges.judges, referee))),
            pairs=held_out,
            prompts=held_out,
            opponent=policy,
            judge=referee,
            batch_size=evaluation_batch,
            arms={arm: dict(title=preset.title, judge=judges.title)},
        )
    )
    root["huggingface"] = dict(max_prompt=0, max_response=0) | root.get("huggingface", {})
    return c.build(stages, **{"model": dict(dtype="bfloat16", remat=True), "judges": judges.judges, **root})


class Divided(NamedTuple):
    """A model, and a file of pairs in parts that different stages read, see `own_pairs`.

    Attributes:
      model: the directory.
      held_out: the first rows, for validation and the final table.
      referee: a quarter of the others, or none where they are few (`limit` 0).
      train: all that neither of these has.
      judge: the half of all others behind the prompts.
      prompts: the quarter between the referee's and the judge's.
    """

    model: str
    held_out: dict[str, Any]
    referee: dict[str, Any]
    train: dict[str, Any]
    judge: dict[str, Any]
    prompts: dict[str, Any]

    @property
    def for_referee(self) -> dict[str, Any]:
        """The pairs that a referee learns from: its own or, where they are too few to be divided, all of them."""
        return self.referee if self.referee["limit"] else self.train


def divided(arguments: str, holdout: int, limits: Limits) -> Divided:
    """The parts of `MODEL,PAIRS`. Errors: `ValueError` for other arguments."""
    model, separator, pairs = arguments.partition(",")
    if not (model and separator and pairs):
        raise ValueError(
            f"{arguments!r}: expected MODEL,PAIRS (--config FILE.py:MODEL,PAIRS): a model directory and a file of pairs"
        )
    model = model if is_directory(model) else f"./{model}"
    rows = lambda **part: c.source(kind="jsonl", path=pairs, **part)  # noqa: E731
    quarter = _quarter(pairs, holdout, limits)
    return Divided(
        model,
        held_out=rows(limit=holdout),
        referee=rows(skip=holdout, limit=quarter),
        train=rows(skip=holdout + quarter),
        judge=rows(skip=holdout + 2 * quarter),
        prompts=rows(skip=holdout + quarter, limit=quarter),
    )


def split_method(arguments: str, known: Collection[str] = METHODS) -> tuple[str, str]:
    """`MODEL,PAIRS,NAME` -> `MODEL,PAIRS` and the name of a method of those that are known; "" where there is none.

    Raises:
      ValueError: there is no such method.
    """
    pairs, _, name = arguments.rpartition(",")
    if "," not in pairs or "." in name:  # the end of a file's name
        return arguments, ""
    if name not in known:
        raise ValueError(f"{arguments!r}: {name!r} is no method; expected one of {', '.join(known)}")
    return pairs, name


def _quarter(pairs: str, holdout: int, limits: Limits) -> int:
    """The rows in a quarter of the pairs that are not held out; 0 where they are too few to be split."""
    try:
        path = file_path(SourceSpec("jsonl", path=pairs))
        if not path.exists():
            return _ENOUGH // 4
        train = len(Lines(path, limits)) - holdout
    except UserError:  # a file that cannot be read: the run says so when it looks at its data
        return 0
    return train // 4 if train >= _ENOUGH else 0
