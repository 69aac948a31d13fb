"""A judge that was trained: by a stage of the run, or in a model directory. Its name alone would do, too."""

from __future__ import annotations

from typing import Any

from prl_jax.config.declare import filled
from prl_jax.errors import UserError
from prl_jax.runs.judges.kind import JudgeKind


def declare(**values: Any) -> dict[str, Any]:
    """Returns the section of a trained judge."""
    return filled(dict(kind="model", model=""), values, "judge")


def check(section) -> None:
    """Raises `UserError` where no model is named."""
    if not section.model:
        raise UserError("model: empty, expected a stage that trains a judge, or a model directory")


KIND = JudgeKind(
    name="model",
    declare=declare,
    load=lambda section, around: around.judge(section.model),
    check=check,
    model=lambda section: section.model,
    word=lambda word: {"model": word},
)
