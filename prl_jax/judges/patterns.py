"""Regular expressions, looked for within bounds of time and memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prl_jax.errors import UserError, quoted

MOST_SECONDS, MOST_MEMORY = 5, 2**30  # of CPU for one text, of the worker in bytes
_WALL_SECONDS = 600  # an expression cannot wait, only use the processor: this is for a machine that is busy


class Found(NamedTuple):
    """A match, and what the group `answer` matched in it; None where there is no such group, or it took no part."""

    answer: str | None


def has_answer(pattern: str) -> bool:
    """Whether an expression has a group that is called `answer`.

    Raises:
      UserError: it is no regular expression of Python.
    """
    if not pattern:
        raise UserError("empty, expected a regular expression, such as r'The answer is (?P<answer>.+)\\.'")
    try:
        return "answer" in re.compile(pattern).groupindex
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{quoted(pattern)} is no regular expression of Python: {error}") from error


def search(pattern: str, texts: Sequence[str], *, seconds: float = MOST_SECONDS) -> list[Found | None]:
    """The first match of an expression in each text, None where nothing matches.

    A process of its own searches, and is ended where that takes too long: whether an expression runs away cannot be
    told from its looks, and the texts are a policy's.

    Args:
      pattern: a regular expression of Python.
      texts: where to look.
      seconds: of CPU that one text may take.

    Raises:
      UserError: the bounds are exceeded. The message names the expression and the row.
    """
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("pattern_worker.py"))]
    request = {"pattern": pattern, "texts": list(texts), "seconds": seconds, "memory": MOST_MEMORY}
    try:
        done = subprocess.run(command, input=json.dumps(request).encode(), capture_output=True, timeout=_WALL_SECONDS)
        answers = done.stdout.splitlines()
    except subprocess.TimeoutExpired as error:
        answers = (error.stdout or b"").splitlines()
    if len(answers) < len(texts):
        row = len(answers)
        raise UserError(
            f"pattern {quoted(pattern)}: took more than {seconds} seconds, or too much memory, on row {row + 1} of "
            f"{len(texts)}, a text of {len(texts[row])} characters; expected one without repetitions inside repetitions"
        )
    return [None if found is None else Found(*found) for found in map(json.loads, answers)]
