"""Compilers write to the process's standard error, which belongs to the command."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def said_to_stderr() -> Iterator[Callable[[], list[str]]]:
    """Keeps what native code writes to standard error; the function gives its lines, afterwards too."""
    sys.stderr.flush()
    lines: list[str] = []
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += file.read().splitlines()
