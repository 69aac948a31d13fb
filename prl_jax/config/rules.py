"""What each kind of stage may be given, as data. `checks.py` holds a config against it before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from prl_jax.config import declare as config
from prl_jax.data.rows import TRAIN_ON
from prl_jax.losses.advantages import KL_KINDS
from prl_jax.losses.pairwise_ppo import OPPONENTS, REWARD_MAPS
from prl_jax.losses.ppo import REDUCTIONS
from prl_jax.losses.preference import FORMS
from prl_jax.text.judging import NAMES as JUDGE_TEMPLATES

POLICIES = ("sft", "ppo")
JUDGES = ("bradley_terry", "generative")
# What the model directory of each kind of stage holds.
CARDS: Mapping[str, str] = MappingProxyType(
    {"sft": "policy", "ppo": "policy", "bradley_terry": "scalar_judge", "generative": "generative_judge"}
)
RESULTS = ("last", "best")  # which parameters of a stage are its result
NONE, GOLD = "none", "gold"  # beside kinds of stages: the empty name, and the exact judge


@dataclasses.dataclass(frozen=True)
class Rules:
    """Of one kind of stage. Keys are dotted names inside its section.

    Attributes:
      declared: the section with its defaults: its keys, and the type of each.
      stages: key -> what it may name: kinds of earlier stages, `GOLD`, `NONE`.
      sources: key of a data source -> the kind of record that is read from it.
      choices: key -> the words that it may be.
      lengths: durations that count the data, so that epochs and examples mean something.
      durations: durations that are parts of the stage.
      optimizers: keys of optimizers.
      at_least: key -> its smallest value.
      from_data: lengths that may be 0: as long as the data need.
      unused: a section -> keys that it does not look at, as it stands.
    """

    declared: Callable[[], dict[str, Any]]
    stages: Mapping[str, Sequence[str]]
    sources: Mapping[str, str]
    choices: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    lengths: Sequence[str] = ()
    durations: Sequence[str] = ()
    optimizers: Sequence[str] = ()
    at_least: Mapping[str, int] = dataclasses.field(default_factory=dict)
    from_data: Sequence[str] = ()
    unused: Callable[[ConfigDict], Sequence[str]] = lambda section: ()


_SUPERVISED: Mapping[str, Any] = dict(
    stages={"init_from": (*POLICIES, *JUDGES, NONE)},
    lengths=("duration",),
    durations=("optimizer.warmup", "log_every", "save_every", "evaluate_every"),
    optimizers=("optimizer",),
)
_RESULT = {"result": RESULTS}
_SIZES = {"batch_size": 1, "accumulate": 1}
_ROOM = {"max_prompt": 2, "max_response": 2}
_FROM_DATA = tuple(_ROOM)

RULES: Mapping[str, Rules] = MappingProxyType(
    {
        "sft": Rules(
            declared=config.sft,
            sources={"data": "sft", "validation": "sft"},
            choices={"train_on": TRAIN_ON, **_RESULT},
            at_least={**_SIZES, **_ROOM},
            from_data=_FROM_DATA,
            **_SUPERVISED,
        ),
        "bradley_terry": Rules(
            declared=config.bradley_terry,
            sources={"data": "preference", "validation": "preference"},
            choices=_RESULT,
            at_least={**_SIZES, **_ROOM, "label_smoothing": 0, "center": 0},
            from_data=_FROM_DATA,
            **_SUPERVISED,
        ),
        "generative": Rules(
            declared=config.generative,
            sources={"data": "preference", "validation": "preference"},
            choices={"template": JUDGE_TEMPLATES, "form": FORMS, **_RESULT},
            at_least={**_SIZES, "max_length": 1, "w_ce": 0, "w_cons": 0},
            from_data=("max_length",),
            **_SUPERVISED,
        ),
        "anchors": Rules(
            declared=config.anchors,
            stages={"policy": POLICIES, "judge": JUDGES},
            sources={"prompts": "prompt"},
            choices={"choice": ("best_of_n", "reference")},
            at_least={"samples": 1, "keep": 1, "temperature": 0, "batch_size": 1},
            unused=lambda section: ("policy", "judge") if section.choice == "reference" else (),
        ),
        "ppo": Rules(
            declared=config.ppo,
            stages={
                "policy": POLICIES,
                "judge": (*JUDGES, GOLD),
                "anchors": ("anchors", NONE),
                "evaluation.judge": (*JUDGES, GOLD),
            },
            sources={"prompts": "prompt", "evaluation.prompts": "prompt"},
            choices={
                "reward": ("pairwise", "score"),
                "reward_form": REWARD_MAPS,
                "opponents": OPPONENTS,
                "algorithm.reduce": REDUCTIONS,
                "algorithm.kl_estimator": KL_KINDS,
                **_RESULT,
            },
            lengths=("duration",),
            durations=(
                "critic_warmup",
                "policy_optimizer.warmup",
                "critic_optimizer.warmup",
                "evaluation.every",
                "log_every",
                "save_every",
            ),
            optimizers=("policy_optimizer", "critic_optimizer"),
            at_least={
                "group_size": 1,
                "opponent_draws": 1,
                "judge_batch_size": 1,
                "prompts_per_step": 1,
                "evaluation.batch_size": 1,
                "evaluation.temperature": 0,
                "algorithm.kl_coef": 0,
                "algorithm.kl_horizon": 1,
            },
        ),
        "evaluation": Rules(
            declared=config.evaluation,
            stages={"baseline": (*POLICIES, NONE), "judge": (*JUDGES, GOLD)},
            sources={"pairs": "preference", "prompts": "prompt"},
            choices={"anchors": ("reference", "")},
            at_least={"samples": 1, "temperature": 0, "batch_size": 1, "bootstrap": 1},
            unused=lambda section: (
                *(() if section.baseline else ("prompts", "judge")),
                *(() if section.judges else ("pairs",)),
            ),
        ),
    }
)


def value_at(section: ConfigDict, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        section = section[part]
    return section
