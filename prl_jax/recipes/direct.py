"""Configs of policies that learn from pairs: in one stage, or in rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from prl_jax.data.lines import Limits
from prl_jax.methods.direct_table import DIRECT
from prl_jax.recipes.built_in import LENGTHS, Size, bradley_terry, demonstrated, fitted, generative
from prl_jax.recipes.own import Divided, divided
from prl_jax.recipes.rounds import ITERATIVE, Iterative, Round, rounds
from prl_jax.stages import config as c
from prl_jax.stages.direct_section import LABELS

Section = dict[str, Any]
JUDGES = ("gold", "bt", "genrm")  # who may rank a policy's samples
_MOST_HELD_OUT = 64  # rows of a stage of pairs that do not train
_OWN_HELD_OUT = 100
_FEW = 100  # prompts, where nobody has counted them
_ADAPTERS = c.lora(rank=16, alpha=32.0)
# Keys of a stage that trains a policy on the user's own pairs.
_OWN: Section = dict(
    lora=_ADAPTERS,
    max_prompt=0,
    max_response=0,
    duration="1 epochs",
    batch_size=32,
    accumulate=8,
    optimizer=dict(learning_rate=5e-5),
)


def judge_of(method: str) -> str:
    """Who ranks the policy's samples for a direct loss that the built-in pairs have no number for; "" for a loss that
    learns from these as they are."""
    values = DIRECT[method].values
    if values.get("beta_scale") or "scores" in LABELS[values.get("label", "hard")].needs:
        return "bt"
    return "genrm" if LABELS[values.get("label", "hard")].needs else ""


def built_in_direct(method: str, judge: str, size: Size) -> ConfigDict:
    """SFT, a direct loss on the built-in pairs, or on samples of SFT that a judge has ranked, and an exact evaluation.

    Args:
      method: a row of `DIRECT`.
      judge: of `JUDGES`, who ranks four samples to each prompt, of which the best and the worst become a pair; "" for
        the built-in pairs.
      size: of everything.
    """
    stages = dict(sft=demonstrated(size), **_judge_stages((judge,), size))
    data: Section = {}
    if judge:
        stages |= dict(pairs=c.pairs(judge=judge, prompts=c.source(limit=size.prompts)))
        data = _split(c.source(kind="stage", path="pairs"), size.prompts)
    stages[method] = c.direct(method, **{**training(size, made=bool(judge)), **data})
    return _with_evaluation(
        stages, {method: DIRECT[method].title}, judge, size, f"{DIRECT[method].title}: built-in tasks"
    )


def built_in_rounds(name: str, judge: str, size: Size) -> ConfigDict:
    """SFT, a judge, the rounds of a method, and an exact evaluation of the policy of each.

    Args:
      name: a row of `ITERATIVE`.
      judge: of `JUDGES`; "" for the judge that the method asks by default.
      size: of everything.
    """
    method = _runnable(name)
    start, judges = "sft", {}
    if judge and method.judge == "own":
        raise ValueError(f"{name},{judge}: {method.title} ranks by its own policies; leave the judge out")
    word = judge or method.judge
    stages = dict(sft=demonstrated(size), **_judge_stages((word,), size))
    if word == "own":
        start = "dpo"  # a policy whose log-ratios mean something
        stages[start] = c.direct("dpo", **training(size))
        judges = _own_judges(method, start)
    prompts = c.source(limit=size.prompts)
    pairs = lambda here: c.pairs(**_ranked(method, here, word), prompts=prompts)  # noqa: E731
    train = lambda here: _trained(method, here, size.prompts, training(size, made=True), fitted(size, 3e-4) | LENGTHS)  # noqa: E731
    made = rounds(method.rounds, pairs, train, start=start, replay=method.replay)
    arms = {stage: f"{method.title}, round {stage.split('_')[1]}" for stage in made if stage.startswith("direct_")}
    return _with_evaluation({**stages, **made}, arms, word, size, f"{method.title}: built-in tasks", judges)


def own_direct(arguments: str, method: str) -> ConfigDict:
    """A direct loss on a model directory and a file of pairs, with adapters, and a referee that tells the win rates.

    Args:
      arguments: `MODEL,PAIRS`, see `own.own_pairs` for how the rows are divided.
      method: a row of `DIRECT`; the file has to hold what its loss reads.
    """
    parts = divided(arguments, _OWN_HELD_OUT, Limits())
    stages = {"referee": _own_judge("genrm", parts, parts.for_referee)}
    stages[method] = c.direct(method, init_from=parts.model, data=parts.train, validation=parts.held_out, **_OWN)
    return _with_referee(stages, {method: DIRECT[method].title}, parts, f"{DIRECT[method].title}: your own pairs")


def own_rounds(arguments: str, name: str) -> ConfigDict:
    """The rounds of a method on a model directory and a file of pairs, with adapters in every stage.

    Each stage has adapters of its own, on what the stage before has come to.

    Args:
      arguments: `MODEL,PAIRS`, see `own.own_pairs` for how the rows are divided.
      name: a row of `ITERATIVE`.
    """
    method = _runnable(name)
    parts = divided(arguments, _OWN_HELD_OUT, Limits())
    stages = {"referee": _own_judge("genrm", parts, parts.for_referee)}
    start, judges = parts.model, {}
    if method.judge == "own":
        start = "dpo"
        stages[start] = c.direct("dpo", init_from=parts.model, data=parts.judge, validation=parts.held_out, **_OWN)
        judges = _own_judges(method, start, parts.model)
    else:
        stages[method.judge] = _own_judge(method.judge, parts, parts.judge)
    prompts = parts.prompts if parts.prompts["limit"] else parts.train
    values = dict(prompts=prompts, batch_size=32)
    direct = dict(_OWN, validation=parts.held_out)
    made = rounds(
        method.rounds,
        lambda here: c.pairs(**_ranked(method, here, method.judge), **values),
        lambda here: _trained(method, here, prompts["limit"] or _FEW, direct, direct, held_out=parts.held_out),
        start=start,
        replay=method.replay,
    )
    arms = {stage: f"{method.title}, round {stage.split('_')[1]}" for stage in made if stage.startswith("direct_")}
    return _with_referee({**stages, **made}, arms, parts, f"{method.title}: your own pairs", judges)


def _own_judge(word: str, parts: Divided, data: Section) -> Section:
    values = dict(init_from=parts.model, data=data, validation=parts.held_out, lora=_ADAPTERS)
    values |= dict(duration="1 epochs", batch_size=32, accumulate=8, optimizer=dict(learning_rate=1e-4))
    if word == "bt":
        return c.bradley_terry(max_prompt=0, max_response=0, **values)
    return c.generative(template="question-v1", w_cons=0.05, max_length=0, **values)


def _with_referee(
    stages: Mapping[str, Section],
    arms: Mapping[str, str],
    parts: Divided,
    title: str,
    judges: Mapping[str, Section] | None = None,
) -> ConfigDict:
    evaluation = c.evaluation(
        judges=("referee",),
        pairs=parts.held_out,
        prompts=parts.held_out,
        opponent=parts.model,
        judge="referee",
        batch_size=32,
        arms={name: dict(title=text, judge="") for name, text in arms.items()},
    )
    return c.build(
        {**stages, "evaluation": evaluation},
        title=title,
        model=dict(dtype="bfloat16", remat=True),
        huggingface=dict(max_prompt=0, max_response=0),
        judges=dict(judges or {}),
    )


def _runnable(name: str) -> Iterative:
    method = ITERATIVE[name]
    if method.misses:
        raise ValueError(f"{name}: {method.title} needs {method.misses}")
    return method


def _ranked(method: Iterative, here: Round, judge: str) -> Section:
    """Keys of the stage of pairs of a round."""
    values = {"policy": here.policy, "judge": judge, **method.pairs(here)}
    if judge != "own":
        return values
    return values | dict(judge=f"own_{here.number}", agrees_with=f"before_{here.number}" if method.agrees else "")


def _own_judges(method: Iterative, start: str, weak: str = "sft") -> Mapping[str, Section]:
    """The implicit rewards of each round's policy and, where their agreement counts, of the policy before it."""
    found = {}
    policies = [start, *(f"direct_{number}" for number in range(1, method.rounds))]
    for number, policy in enumerate(policies, 1):
        found[f"own_{number}"] = c.judge("density_ratio", strong=policy, weak=weak)
        if method.agrees:
            before = policies[number - 2] if number > 1 else ""
            # The first policy was SFT before, whose log-ratio to itself says nothing: its likelihood ranks instead.
            ratio = dict(strong=before, weak=weak) if before else dict(strong=weak, weak="", length="mean")
            found[f"before_{number}"] = c.judge("density_ratio", **ratio)
    return found


def _trained(
    method: Iterative, here: Round, prompts: int, direct: Section, sft: Section, *, held_out: Section | None = None
) -> Section:
    """The stage that trains on the pairs of a round, or on its demonstrations.

    Args:
      method: whose round it is.
      here: the round.
      prompts: how many prompts it samples responses to.
      direct, sft: keys of a stage of either kind.
      held_out: the source of its validation, where labels are such that any pairs have them; None takes the first pairs
        of the round.
    """
    row, values = method.train(here)
    if not row:
        return c.sft(init_from=here.policy, data=here.made, **{**sft, "duration": direct["duration"]})
    needs = LABELS[values.get("label", DIRECT[row].values.get("label", "hard"))].needs or values.get("certainty")
    split = _split(here.made, prompts) if needs or held_out is None else dict(data=here.made, validation=held_out)
    return c.direct(row, init_from=here.policy, **{**direct, **split, **values})


def _split(made: Section, prompts: int) -> Section:
    """Sources of a stage that trains on pairs of another one, made of so many prompts; the first few are held out."""
    few = max(min(_MOST_HELD_OUT, prompts // 16), 1)
    return dict(data=made | dict(skip=few), validation=made | dict(limit=few))


def training(size: Size, *, made: bool = False) -> Section:
    """Keys of a stage that learns from the built-in pairs or, less and more slowly, from a policy's own samples: about
    two epochs of these, which more would only teach by heart."""
    steps, learning_rate = (max(size.direct // 5, 2), 5e-5) if made else (size.direct, 1e-4)
    return dict(duration=f"{steps} steps", batch_size=64, **LENGTHS, **fitted(size, learning_rate))


def _judge_stages(words: Sequence[str], size: Size) -> dict[str, Section]:
    made = {"bt": bradley_terry, "genrm": generative}
    return {word: made[word](size) for word in words if word in made}


def _with_evaluation(
    stages: Mapping[str, Section],
    arms: Mapping[str, str],
    judge: str,
    size: Size,
    title: str,
    judges: Mapping[str, Section] | None = None,
) -> ConfigDict:
    learned = judge if judge in ("bt", "genrm", "gold") else ""
    evaluation = c.evaluation(
        judges=tuple(name for name in ("bt", "genrm") if name in stages),
        pairs=c.source(split="test", limit=size.pairs),
        prompts=c.source(split="test", limit=size.evaluation),
        arms={name: dict(title=text, judge=learned) for name, text in arms.items()},
    )
    return c.build(
        {**stages, "evaluation": evaluation},
        title=title,
        model=dict(layers=size.layers),
        gold=dict(train_rows=size.rows),
        judges=dict(judges or {}),
    )
