"""Orbax checkpoints of flat, named arrays: they outlive any module framework.

A checkpoint has three items: `model` (the trained parameters, alone, for whoever only uses the model), `train`
(everything else that the next step depends on) and `data` (the state of the data iterator, JSON).
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from prl_jax.errors import UserError
from prl_jax.models import combine, split
from prl_jax.tree import Tree, flatten, unflatten


class Checkpoints:
    """The checkpoints of one stage.

    A save is atomic: it is written beside and renamed, so that a process killed at any moment leaves the previous
    checkpoint whole.
    """

    def __init__(self, directory: Path, *, keep: int = 1, read_only: bool = False):
        self.directory = directory
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=False,
        )
        if read_only and not directory.is_dir():
            raise UserError(f"{directory}: no such checkpoint directory; train the stage first")
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            self._manager.close()
        except Exception:
            if kind is None:  # else the first error is the one to report
                raise

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, *, model: Any, train: Any, data: dict[str, Any]) -> None:
        """Writes a checkpoint of what is trained (`models.split`), unless `step` is there.

        Raises:
          UserError: the disk takes no more, or a parameter is not finite; the checkpoint before stays the newest.
        """
        if step == self.latest():
            return
        model, train = split(model)[0], split(train)[0]
        if not _all_finite(model):
            raise UserError(
                f"{self.directory}: parameters are not finite after step {step}; stopped, the last good checkpoint is "
                "kept; lower the learning rate"
            )
        args = ocp.args.Composite(
            model=ocp.args.StandardSave(flatten(model)),
            train=ocp.args.StandardSave(flatten(train)),
            data=ocp.args.JsonSave(data),
        )
        with _without_stragglers():
            try:
                self._manager.save(step, args=args)
            except Exception as error:  # Orbax and TensorStore raise OSError, ValueError and their own kinds alike.
                raise UserError(
                    f"{self.directory}: cannot save step {step} ({_reason(error)}); the checkpoint before it is "
                    "kept; free some disk space and run the same command again"
                ) from error

    def restore(self, *, model: Tree, train: Any) -> tuple[Tree, Any, dict[str, Any]]:
        """The newest checkpoint, onto the shapes and shardings of the given trees (arrays or abstract).

        What is frozen of them was not saved, and stays as given.
        """
        (model, frozen_model), (train, frozen_train) = split(model), split(train)
        with self._readable() as step:
            args = ocp.args.Composite(
                model=ocp.args.StandardRestore(_abstract(model)),
                train=ocp.args.StandardRestore(_abstract(train)),
                data=ocp.args.JsonRestore(),
            )
            out = self._manager.restore(step, args=args)
        model = combine(unflatten(model, out.model), frozen_model)
        return model, combine(unflatten(train, out.train), frozen_train), dict(out.data)

    def restore_model(self, like: Tree) -> Tree:
        """Only the parameters of the newest checkpoint; what is frozen of `like` stays as given."""
        like, frozen = split(like)
        with self._readable() as step:
            args = ocp.args.Composite(model=ocp.args.StandardRestore(_abstract(like)))
            out = self._manager.restore(step, args=args)
        return combine(unflatten(like, out.model), frozen)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[int]:
        step = self.latest()
        if step is None:
            raise UserError(f"{self.directory}: holds no checkpoint; train the stage first")
        with _without_stragglers():
            try:
                yield step
            except Exception as error:
                raise UserError(
                    f"{self.directory}/{step}: the checkpoint cannot be read ({_reason(error)}); delete "
                    f"{self.directory.parent} to train this stage anew"
                ) from error


@contextlib.contextmanager
def _without_stragglers() -> Iterator[None]:
    """Keeps quiet what Orbax's other reads and writes say, out of their threads, once one of them has failed.

    A write that was given up speaks when it is collected: as a coroutine through the hook for unraisable exceptions,
    as a task through the logger of asyncio. That may be after this is left, so both stay where there was an error.
    """
    before = sys.unraisablehook
    asyncio_log = logging.getLogger("asyncio")

    def hook(unraisable: Any) -> None:
        coroutine = unraisable.object if inspect.iscoroutine(unraisable.object) else None
        of_orbax = coroutine is not None and "orbax" in coroutine.cr_code.co_filename
        if not of_orbax and "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    def not_of_orbax(record: logging.LogRecord) -> bool:
        return "orbax" not in record.getMessage()

    sys.unraisablehook = hook
    asyncio_log.addFilter(not_of_orbax)
    yield
    sys.unraisablehook = before
    asyncio_log.removeFilter(not_of_orbax)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _abstract(tree: Any) -> dict[str, Any]:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), flatten(tree))


def _reason(error: Exception) -> str:
    """The operating system's reason, where there is one, in place of where in a database it was met."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code is not None:
        return os.strerror(int(code[1]))
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + " ..."
