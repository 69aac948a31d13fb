"""The comparison of pairwise RL with what it is held against, on the built-in tasks: its arms, its conditions, the
config of each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from prl_jax.comparing import Cell, Comparison
from prl_jax.methods import METHODS, Anchors
from prl_jax.recipes.built_in import FULL, Size, bradley_terry, demonstrated, generative
from prl_jax.recipes.direct import training
from prl_jax.stages import config as c

Section = dict[str, Any]
_PAIRS = 24_000  # of the built-in tasks, and about as many as the policy's own samples give
_HELD_OUT = 512  # pairs of the policy's own that no judge trains on
_QUICK = FULL._replace(sft=400, bt=150, genrm=300, policy=12, direct=60, prompts=1024, evaluation=128)


class Compared(NamedTuple):
    """An arm.

    Attributes:
      title: its name in tables.
      judge: the judge that it learns from, or that chooses: "bt" or "genrm"; "" for none.
      method: a row of `METHODS`; "" for a direct loss, or for the best of several samples of SFT.
      values: keys of its stage beside those of the method.
      coefficients: of the divergence; the first is its own, the others are for comparisons at one divergence.
      best_of: of how many samples the judge chooses one.
      answers: whether its anchors are the answers that prompts carry.
      loss: a row of `DIRECT`, a loss on the pairs that judges train on; "" for none.
    """

    title: str
    judge: str
    method: str = ""
    values: Mapping[str, Any] = MappingProxyType({})
    coefficients: tuple[float, ...] = ()
    best_of: int = 1
    answers: bool = False
    loss: str = ""


_SEES = dict(baseline=dict(sees_opponent=True))

ARMS: Mapping[str, Compared] = MappingProxyType(
    {
        "pairwise": Compared("Pairwise-RL", "genrm", "pairwise_rl", _SEES, (0.05, 0.02, 0.12)),
        "pairwise_blind": Compared("Pairwise-RL, critic without the opponent", "genrm", "pairwise_rl"),
        "pairwise_one_order": Compared(
            "Pairwise-RL, one order", "genrm", "pairwise_rl", dict(**_SEES, opponents=dict(orders="random"))
        ),
        "pairwise_answers": Compared(
            "Pairwise-RL, demonstrations as anchors", "genrm", "pairwise_rl", _SEES, answers=True
        ),
        "pairwise_peers": Compared(
            "Pairwise-RL against a peer", "genrm", "pairwise_rl", dict(opponents=dict(kind="peer"), group_size=2)
        ),
        "pairwise_group": Compared(
            "Pairwise-RL against its group", "genrm", "pairwise_rl", dict(opponents=dict(kind="group"), group_size=4)
        ),
        "ppo": Compared("BT + PPO", "bt", "ppo", {}, (0.25, 0.1, 0.6)),
        "par": Compared("PAR", "bt", "par", dict(regulariser=dict(coefficient=0.05))),
        "grpo_bt": Compared("GRPO on BT", "bt", "grpo"),
        "grpo_genrm": Compared("GRPO on the pairwise judge", "genrm", "pref_grpo"),
        "rloo_bt": Compared("RLOO on BT", "bt", "rloo", dict(regulariser=dict(coefficient=0.25))),
        "rloo_genrm": Compared(
            "RLOO on the pairwise judge",
            "genrm",
            "rloo",
            dict(opponents=dict(kind="group"), reward=dict(kind="win_probability")),
        ),
        "dpo": Compared("DPO on the judges' pairs", "", loss="dpo"),
        "best_of_8_bt": Compared("best of 8 by BT", "bt", best_of=8),
        "best_of_8_genrm": Compared("best of 8 by the pairwise judge", "genrm", best_of=8),
    }
)


class Condition(NamedTuple):
    """A difference from the main comparison.

    Attributes:
      words: it, for readers.
      gold: arguments of the built-in tasks.
      pairs: how many pairs judges train on, at most.
      of_policy: whether these are samples of SFT that the noisy annotator has labelled.
    """

    words: str
    gold: Mapping[str, Any] = MappingProxyType({})
    pairs: int = _PAIRS
    of_policy: bool = True


CONDITIONS: Mapping[str, Condition] = MappingProxyType(
    {
        "main": Condition("judges train on samples of SFT, 5 % of the labels are flipped, each prompt has its scale"),
        "constructed": Condition("judges train on constructed pairs, not on samples of SFT", of_policy=False),
        "noise_0": Condition("no label is flipped", dict(noise=0.0)),
        "noise_10": Condition("10 % of the labels are flipped", dict(noise=0.1)),
        "noise_25": Condition("25 % of the labels are flipped", dict(noise=0.25)),
        "intransitive": Condition("preferences have cycles", dict(intransitivity=1.5)),
        "one_scale": Condition("all prompts have one scale", dict(scale=10.0)),
        "pairs_1000": Condition("judges train on 1,000 pairs", pairs=1_000),
        "pairs_4000": Condition("judges train on 4,000 pairs", pairs=4_000),
    }
)
_MAIN = tuple(ARMS)
_FEW = ("pairwise", "ppo", "grpo_genrm", "best_of_8_bt", "best_of_8_genrm")


def comparison(arguments: str, *, seeds: int, repetitions: int) -> Comparison:
    """The cells of a comparison.

    Args:
      arguments: words with commas: "quick" for everything small; names of conditions and of arms, by default the main
        condition with all arms, and every other one with a few; "all" for every arm under every condition; "matched"
        for the further coefficients of arms that have some, under the main condition.
      seeds: sets of data, SFT and judges.
      repetitions: of each arm on each set.

    Raises:
      ValueError: a word is none of these.
    """
    words = [word for word in arguments.split(",") if word]
    known = {"quick", "all", "matched", *ARMS, *CONDITIONS}
    if unknown := [word for word in words if word not in known]:
        raise ValueError(f"{unknown[0]!r}: expected names of {', '.join(sorted(known))}, with commas")
    quick = "quick" in words
    conditions = [name for name in CONDITIONS if name in words] or (["main"] if quick else list(CONDITIONS))
    named = [name for name in ARMS if name in words]
    cells = []
    for condition in conditions:
        arms = named or (_FEW if quick or (condition != "main" and "all" not in words) else _MAIN)
        for seed in range(seeds):
            for arm in arms:
                matched = condition == "main" and ("matched" in words or not (quick or named))
                for coefficient in (ARMS[arm].coefficients if matched else ()) or (None,):
                    first = coefficient is None or coefficient == ARMS[arm].coefficients[0]
                    # What is only interpolated between is trained once.
                    cells.append(_cell(condition, arm, seed, coefficient, repetitions if first else 1, quick))
    return Comparison(
        "Pairwise RL and what it is held against, on the built-in tasks",
        tuple(cells),
        {name: ARMS[name].title for name in ARMS if any(cell.arm == name for cell in cells)},
        {name: CONDITIONS[name].words for name in conditions},
        "ppo",
    )


def _cell(condition: str, arm: str, seed: int, coefficient: float | None, repetitions: int, quick: bool) -> Cell:
    at = () if coefficient is None else (f"coefficient={coefficient:g}",)
    words = ",".join([condition, arm, *at, f"repetitions={repetitions}", *(["quick"] if quick else [])])
    return Cell(condition, arm, seed, words, coefficient)


def cell_config(arguments: str) -> ConfigDict:
    """The config of one run: `CONDITION,ARM[,coefficient=X][,repetitions=N][,quick]`.

    Raises:
      ValueError: the arguments are none.
    """
    words = arguments.split(",")
    keys = dict(word.split("=", 1) for word in words if "=" in word)
    plain = [word for word in words if "=" not in word and word != "quick"]
    known = len(plain) == 2 and plain[0] in CONDITIONS and plain[1] in ARMS
    if not known or not keys.keys() <= {"coefficient", "repetitions"}:
        raise ValueError(
            f"{arguments!r}: expected CONDITION,ARM[,coefficient=X][,repetitions=N][,quick], a condition of "
            f"{', '.join(CONDITIONS)}, and an arm of {', '.join(ARMS)}"
        )
    own = (*ARMS[plain[1]].coefficients, None)[0]
    coefficient = float(keys["coefficient"]) if "coefficient" in keys else own
    size = _QUICK if "quick" in words else FULL
    return _config(*plain, coefficient, int(keys.get("repetitions", 1)), size)


def _config(condition: str, arm: str, coefficient: float | None, repetitions: int, size: Size) -> ConfigDict:
    asks, where = ARMS[arm], CONDITIONS[condition]
    stages, judges = dict(sft=demonstrated(size)), {}
    data = dict(data=c.source(limit=where.pairs), validation=c.source(split="validation", limit=_HELD_OUT))
    if where.of_policy:
        judges["annotator"] = c.judge("annotator")
        prompts = c.source(limit=size.prompts if size is _QUICK else 0)
        stages["labelled"] = c.pairs(judge="annotator", prompts=prompts, select=dict(kind="all"))
        made = c.source(kind="stage", path="labelled")
        data = dict(data=made | dict(skip=_HELD_OUT, limit=where.pairs), validation=made | dict(limit=_HELD_OUT))
    if asks.judge:
        stages[asks.judge] = {"bt": bradley_terry, "genrm": generative}[asks.judge](size) | data
    policies = [f"{arm}_{number}" for number in range(1, repetitions + 1)]
    if asks.method:
        prompts = c.source(limit=size.prompts)
        section = _online(asks, coefficient, size, prompts)
        if METHODS[asks.method].method.opponents.candidates == Anchors.candidates and not _among_samples(asks):
            choice = dict(choice="reference") if asks.answers else dict(judge=asks.judge)
            stages["anchors"] = c.anchors(prompts=prompts, **choice)
        stages |= {name: section for name in policies}
    elif asks.loss:
        stages |= {name: c.direct(asks.loss, **{**training(size), **data}) for name in policies}
    stages["evaluation"] = c.evaluation(
        judges=tuple(name for name in ("bt", "genrm") if name in stages),
        # Pairs of the kind that judges train on: of other kinds their accuracy says little about what they are for.
        pairs=data["validation"] if where.of_policy else c.source(split="test", limit=size.pairs),
        prompts=c.source(split="test", limit=size.evaluation),
        arms=_arms(asks, policies),
    )
    return c.build(
        stages,
        title=f"{asks.title}: {where.words}",
        model=dict(layers=size.layers),
        gold=dict(where.gold),
        judges=judges,
    )


def _among_samples(asks: Compared) -> bool:
    """Whether an arm's opponents are its own samples, whatever those of its method are."""
    return asks.values.get("opponents", {}).get("kind", "anchors") != "anchors"


def _online(asks: Compared, coefficient: float | None, size: Size, prompts: Section) -> Section:
    """The stage of a policy; a step has 256 responses, whatever its group."""
    values = dict(asks.values)
    group = values.get("group_size", METHODS[asks.method].group_size)
    if coefficient is not None:
        values["regulariser"] = {**values.get("regulariser", {}), "coefficient": coefficient}
    return c.online(
        asks.method,
        judge=asks.judge,
        prompts=prompts,
        prompts_per_step=256 // group,
        duration=f"{size.policy} steps",
        optimizer=dict(learning_rate=3e-4, schedule="linear"),
        evaluation=dict(every="0 steps", prompts=c.source(split="validation", limit=256), judge="gold"),
        save_every="100%",
        **values,
    )


def _arms(asks: Compared, policies: Sequence[str]) -> dict[str, Section]:
    if asks.best_of > 1:
        return {"sft": dict(title=asks.title, judge=asks.judge, best_of=asks.best_of)}
    titles = [f"{asks.title}, {number}" for number in range(1, len(policies) + 1)]
    return {name: dict(title=title, judge=asks.judge) for name, title in zip(policies, titles, strict=True)}
