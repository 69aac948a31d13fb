"""The exact judge of the built-in tasks. Every config has one, under the name "gold"."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from prl_jax.config.declare import filled
from prl_jax.data.gold import make_arguments, preference
from prl_jax.judges import GoldJudge
from prl_jax.runs.context import gold_arguments
from prl_jax.runs.judges.kind import JudgeKind, Surroundings


def declare(**values: Any) -> dict[str, Any]:
    """Returns the section of the exact judge, which has no keys."""
    return filled(dict(kind="gold"), values, "judge")


def load(section: ConfigDict, around: Surroundings) -> GoldJudge:
    """The judge of the tasks as the config has them."""
    arguments = make_arguments(gold_arguments(around.config))
    how = dict(intransitivity=arguments.intransitivity, sharpness=arguments.scale)
    return GoldJudge(lambda prompt, first, second: preference(prompt, first, second, **how))


KIND = JudgeKind(
    name="gold",
    declare=declare,
    load=load,
    word=lambda word: {} if word == "gold" else None,
    built_in_tasks=True,
)
