"""Several judges as one. Its members have any names by which stages ask judges, those of other ensembles too."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from prl_jax.config.declare import filled
from prl_jax.errors import UserError
from prl_jax.judges import Combination, EnsembleJudge, ensemble
from prl_jax.runs.judges.kind import JudgeKind, Surroundings


def declare(**values: Any) -> dict[str, Any]:
    """Returns the section of an ensemble."""
    defaults = dict(
        kind="ensemble",
        of=(),  # the members: entries of `judges`, stages, model directories
        combine="mean",  # or "weighted", "min", "uwo", "lower_confidence" (`judges.ensemble`)
        weights=(),  # of "weighted", one for each member
        coefficient=0.0,  # of "uwo", before the variance, and of "lower_confidence", before the standard deviation
    )
    return filled(defaults, values, "judge")


def check(section: ConfigDict) -> None:
    """Raises `UserError` for members that are none, and for what does not go with the combination."""
    members = tuple(section.of)
    if not members or not all(isinstance(name, str) and name for name in members):
        raise UserError(f"of={members}, expected the names of judges, such as ('bt', 'house')")
    if twice := next((name for name in members if members.count(name) > 1), ""):
        raise UserError(f"of={members}: {twice!r} is named twice; give it a weight instead (combine='weighted')")
    combination = _combination(section)
    if combination.weights and len(combination.weights) != len(members):
        raise UserError(f"weights={combination.weights}, expected {len(members)}, one for each of of={members}")


def load(section: ConfigDict, around: Surroundings) -> EnsembleJudge:
    """The members, and what makes them one."""
    return ensemble([around.judge(name) for name in section.of], _combination(section))


def _combination(section: ConfigDict) -> Combination:
    weights = tuple(section.weights)
    if not all(isinstance(weight, int | float) and not isinstance(weight, bool) for weight in weights):
        raise UserError(f"weights={weights}, expected numbers")
    return Combination(section.combine, tuple(map(float, weights)), section.coefficient)


KIND = JudgeKind(name="ensemble", declare=declare, load=load, check=check, members="of")
