"""The pieces that a stage without steps has done so far, so that an interrupted one goes on from there."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from prl_jax.errors import Stopped, UserError
from prl_jax.file_names import PIECES_DIR
from prl_jax.files import parse_json, write_json
from prl_jax.processes import agreed, is_leader
from prl_jax.progress import Progress
from prl_jax.runs.context import StageContext

Item = TypeVar("Item")


class Pieces:
    """The parts of a stage's work, made one after the other. Each is kept in a file."""

    def __init__(self, context: StageContext, total: int, progress: Progress):
        self._context, self._total, self._progress, self._done = context, total, progress, 0

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """Returns what `make` gives, which JSON holds: from the file of an earlier attempt, else made now.

        Args:
          name: of the file, another for each piece.
          make: gives the same in every process.

        Raises:
          Stopped: the run is to end; what was made before is kept.
        """
        if self._context.stop():
            raise Stopped(f"{self._context.name} has kept {self._done} of its {self._total} parts")
        path, value = self._context.directory / PIECES_DIR / f"{name}.json", None
        with contextlib.suppress(OSError, ValueError):  # not there, or lost with the power
            value = parse_json(path.read_text(encoding="utf-8"))
        if not agreed(value is not None):
            value = make()
            if is_leader():
                write_json(path, value)
        self._context.stop.done()
        self._done += 1
        self._progress.update(self._done)
        return value

    def each(
        self, name: str, items: Sequence[Item], size: int, make: Callable[[int, Sequence[Item]], Sequence[Any]]
    ) -> list[Any]:
        """One value for each item, in `batches(len(items), size)` pieces of like size; `make` takes the number of the
        first item, and the items."""
        out: list[Any] = []
        step = -(-len(items) // max(batches(len(items), size), 1))
        for first in range(0, len(items), max(step, 1)):
            part = items[first : first + step]
            out += self(f"{name}_{first}", functools.partial(make, first, part))
        return out


@contextlib.contextmanager
def pieces(context: StageContext, total: int, name: str = "") -> Iterator[Pieces]:
    """For a stage of `total` pieces: shows its progress, under the stage's name if no other is given, and lets a signal
    to stop wait for the end of a piece."""
    with context.progress(total, name=name) as progress, context.stop.after_steps():
        yield Pieces(context, total, progress)


def drop_pieces(directory: Path) -> None:
    """Removes what a stage has kept, once it is finished."""
    shutil.rmtree(directory / PIECES_DIR, ignore_errors=True)


def batches(count: int, size: int) -> int:
    """Into how many pieces `Pieces.each` cuts so many items."""
    return -(-count // size)


def check_finite(values: Float[np.ndarray, "N"], what: str) -> None:
    """Raises `UserError`, with how many there are, where numbers that a stage goes on with are not finite."""
    failed = int((~np.isfinite(values)).sum())
    if failed:
        raise UserError(
            f"{what}: {failed} of {len(values)} are not finite; the model's parameters or activations hold NaN or "
            "infinities: use another model, an earlier checkpoint or another dtype"
        )
