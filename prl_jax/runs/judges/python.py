"""A judge that is a function of the user's: `(prompts, first, second) -> P(first is better)`, or scores."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from prl_jax.config.declare import filled
from prl_jax.errors import UserError
from prl_jax.judges import Judge, PythonJudge, ScoredPythonJudge, load_function
from prl_jax.judges.python import file_of
from prl_jax.runs.judges.kind import JudgeKind, Surroundings

GIVES = ("probabilities", "scores")


def declare(**values: Any) -> dict[str, Any]:
    """Returns the section of a function."""
    defaults = dict(
        kind="python",
        path="",  # FILE.py:FUNCTION, or PACKAGE.MODULE:FUNCTION
        gives="probabilities",  # for (prompts, first, second); or "scores" for (prompts, responses)
    )
    return filled(defaults, values, "judge")


def check(section: ConfigDict) -> None:
    """Raises `UserError` for what is no function, or gives something else."""
    if section.gives not in GIVES:
        raise UserError(f"gives={section.gives!r}, expected one of {', '.join(map(repr, GIVES))}")
    try:
        load_function(section.path)
    except UserError as error:
        raise UserError(f"path: {error}") from error


def load(section: ConfigDict, around: Surroundings) -> Judge:
    """The function as a judge."""
    kind = ScoredPythonJudge if section.gives == "scores" else PythonJudge
    return kind(load_function(section.path), section.path)


def files(section: ConfigDict) -> list[Path]:
    """The file of the function; what it imports is not looked at."""
    file = file_of(section.path)
    return [] if file is None else [file]


KIND = JudgeKind(
    name="python",
    declare=declare,
    load=load,
    check=check,
    scores=lambda section: section.gives == "scores",
    files=files,
    word=lambda word: {"path": word} if re.search(r"\.py:\w+$", word) else None,
)
