"""When memory runs out: one line that says in which function, how much it asked for, and which keys help."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import prl_jax
from prl_jax.errors import UserError
from prl_jax.memory import shortage

# What a line of the package calls, or the function that it is in -> the function as `prl plan` names it, or "generate"
# for what is around its "prefill" and "decode"; the innermost line that is one of these tells.
_CALLS = {
    r"\btrain_step\(": "train_step",
    r"\bsums\(": "validation",
    r"\bgenerate\(": "generate",
    r"\bprefill\(": "prefill",
    r"\bdecode\(": "decode",
    r"\bprepare\(": "prepare",
    r"\bupdates\.warm_up\(": "warm_up",
    r"\bupdates\.train\(": "update",
    r"\blog_ratio\(": "log_ratio",
    r"\b(in_batches|forward|judge_rows|judge_trees|score_rows)\(": "judge",
    r"\b(load_\w+|from_hf|restore\w*|construct|create_state|sharded_init)\(": "loading",
}
_INSIDE = {"respond": "generate", "measure": "evaluation"}


@contextlib.contextmanager
def shortage_told(stage: str, keys: Callable[[str], Sequence[str]], kept: str) -> Iterator[None]:
    """Turns an error that says that memory is out into a `UserError` of one line.

    Args:
      stage: the stage or command.
      keys: function -> what helps there.
      kept: what is not lost.
    """
    try:
        yield
    except Exception as error:
        found = shortage(error)
        if found is None:
            raise
        called = function_of(found.error.__traceback__) or function_of(error.__traceback__)
        where = f"{stage}/{called}" if called else stage
        wanted = f" ({found.wanted})" if found.wanted else ""
        raise UserError(
            f"{where}: out of {found.memory}{wanted}; {kept}; what helps: {'; '.join(keys(called))}"
        ) from error


def function_of(trace: TracebackType | None) -> str:
    """The function that a traceback leads to, as `prl plan` names it; "" where it is none of these."""
    root, found, prefix = str(Path(prl_jax.__file__).parent), "", ""
    for frame in traceback.extract_tb(trace):
        if not frame.filename.startswith(root):
            continue
        named = next((name for call, name in _CALLS.items() if re.search(call, frame.line or "")), "")
        found = named or _INSIDE.get(frame.name, "") or found
        if frame.name == "measure":
            prefix = "evaluation_"
    return found if not prefix or found in ("evaluation", "loading") else prefix + found
