"""A judge that is made of two policies, without training: the log-probabilities that they give to a response."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from prl_jax.config.declare import filled
from prl_jax.errors import UserError
from prl_jax.judges import DensityRatioJudge
from prl_jax.judges.density_ratio import LENGTHS
from prl_jax.runs.judges.kind import JudgeKind, Surroundings


def declare(**values: Any) -> dict[str, Any]:
    """Returns the section of two policies as a judge."""
    defaults = dict(
        kind="density_ratio",
        strong="",  # stages that train policies, or model directories
        weak="",  # "" for none: the score is the log-probability of the strong model alone
        length="sum",  # of log-probabilities over the tokens of a response; or "mean"
        criteria="",  # a text before the prompt of the strong model: what makes a response good
        beta=1.0,  # multiplies the scores; with that of DPO, strong over its reference is DPO's implicit reward
    )
    return filled(defaults, values, "judge")


def check(section: ConfigDict) -> None:
    """Raises `UserError` for a ratio of nothing, or that is always 1, and for keys that mean nothing."""
    if not section.strong:
        raise UserError("strong: empty, expected a stage that trains a policy, or a model directory")
    if section.length not in LENGTHS:
        raise UserError(f"length={section.length!r}, expected one of {', '.join(map(repr, LENGTHS))}")
    if section.beta <= 0:
        raise UserError(f"beta={section.beta}, expected more than 0")
    if section.strong == section.weak and not section.criteria:
        raise UserError(
            f"weak={section.weak!r}: is the strong model too, so that every score is 0; name another model, or give "
            "criteria"
        )


def load(section: ConfigDict, around: Surroundings) -> DensityRatioJudge:
    """The judge, with both policies."""
    strong = around.policy(section.strong, section.criteria)
    weak = around.policy(section.weak, "") if section.weak else None
    return DensityRatioJudge(strong, weak, beta=section.beta, length=section.length)


KIND = JudgeKind(
    name="density_ratio",
    declare=declare,
    load=load,
    check=check,
    policies=("strong", "weak"),
    scores=lambda section: True,
)
