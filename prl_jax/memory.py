"""Errors that say that memory is out, of a device or of this machine, and how much was asked for."""

from __future__ import annotations

import re
from typing import NamedTuple

# XLA says it in as many ways as it has backends; the last two are CPU's matrix products and NVIDIA's driver.
_NO_MEMORY = re.compile(
    r"out of memory|RESOURCE_EXHAUSTED.*(alloc|memory)|fail\w* to allocate|YNNPACK operation failed|OUT_OF_MEMORY",
    re.IGNORECASE | re.DOTALL,
)
_BYTES = re.compile(r"\((\d+)B\)|alloc\w*(?: an? \w+ of)? (\d+) ?(?:bytes|B)\b", re.IGNORECASE)
_SIZE = re.compile(r"(?:allocate|request for) ([\d.]+ ?[KMGTP]i?B?)\b", re.IGNORECASE)
_USED = re.compile(r"used ([\d.]+ ?[KMGTP]?i?B?) of ([\d.]+ ?[KMGTP]?i?B?)", re.IGNORECASE)


class Shortage(NamedTuple):
    """Memory that was not there.

    Attributes:
      error: what says so; its traceback leads to where.
      memory: whose it is, "device memory" or "this machine's memory".
      wanted: such as "asked for 29.1 GiB"; "" where it does not say.
    """

    error: BaseException
    memory: str
    wanted: str


def shortage(error: BaseException | None) -> Shortage | None:
    """Reads off an error, or what it came from, which memory was not there; None for any other error."""
    while error is not None:
        # By name: what only reads files imports no jax.
        names = {kind.__name__ for kind in type(error).__mro__}
        xla = bool(names & {"JaxRuntimeError", "XlaRuntimeError"})
        if "MemoryError" in names or (xla and _NO_MEMORY.search(str(error))):
            return Shortage(error, "device memory" if xla else "this machine's memory", _wanted(str(error)))
        error = error.__cause__ or error.__context__
    return None


def _wanted(text: str) -> str:
    if used := _USED.search(text):
        return f"needs {used[1]} of {used[2]}"
    if exact := _BYTES.search(text):
        return f"asked for {int(exact[1] or exact[2]) / 2**30:.3g} GiB"
    size = _SIZE.search(text)
    return f"asked for {size[1]}" if size else ""
