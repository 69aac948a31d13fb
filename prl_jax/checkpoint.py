"""Orbax checkpoints of flat, named arrays: they outlive any module framework.

A checkpoint has three items: `model` (the trained parameters, alone, for whoever only uses the model), `train`
(everything else that the next step depends on) and `data` (JSON: the state of the data iterator and its like, and a
checksum of every array). What is read is held against the checksums.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from prl_jax.errors import Stopped, UserError
from prl_jax.integrity import checksums, digest
from prl_jax.memory import shortage
from prl_jax.models import combine, split
from prl_jax.processes import agreed, is_leader
from prl_jax.tree import Tree, flatten, unflatten


class Restored(NamedTuple):
    """A checkpoint in memory: its step, and what `Checkpoints.save` was given."""

    step: int
    model: Any
    train: Any
    data: dict[str, Any]


class Checkpoints:
    """The checkpoints of one stage: a context, in which saves are written while the caller goes on.

    A save is atomic: it is written beside and renamed, so that a process killed at any moment leaves the previous
    checkpoint whole. An error of a write shows at the next save, at `finish` or when the context is left.
    """

    def __init__(self, directory: Path, *, keep: int = 2, read_only: bool = False):
        """Opens the folder.

        Args:
          directory: made when missing.
          keep: how many of the newest stay; a second one is there for when the first is damaged.
          read_only: changes nothing there.
        """
        self.directory = directory
        self._kept = _Kept(keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else self._kept,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=True,
        )
        if read_only and not directory.is_dir():
            raise UserError(f"{directory}: no such checkpoint directory; train the stage first")
        self._manager = _Manager(directory.absolute(), options=options)
        self._last_save: int | None = None
        self._failed = False  # whether something of Orbax's may still be about that speaks of an error

    def __enter__(self) -> Checkpoints:
        self._quiet = _Quiet()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            self.wait()
            self._manager.close()
        except Exception:
            # Else the first error is the one to report; a run that was stopped says that it has saved.
            if kind is None or issubclass(kind, Stopped):
                raise
        else:
            if kind is None and not self._failed:
                self._quiet.end()

    def latest(self) -> int | None:
        """Step of the newest checkpoint, which may still be written."""
        return self._manager.latest_step()

    def holds(self, step: int) -> bool:
        """Whether there is a checkpoint of a step."""
        return step in self._manager.all_steps()

    def save(self, step: int, *, model: Any, train: Any, data: dict[str, Any], best: int | None = None) -> None:
        """Starts to write a checkpoint of what is trained (`models.split`), unless `step` is there.

        The arrays may be donated as soon as this returns. The checkpoint of step `best`, if given, is kept beside the
        newest ones.

        Raises:
          UserError: the disk takes no more, now or at the save before, or a parameter is not finite; the checkpoints
            that are whole are kept.
        """
        self.wait()
        self._kept.best = best
        if step == self.latest():
            return
        arrays = {"model": flatten(split(model)[0]), "train": flatten(split(train)[0])}
        if not _all_finite(arrays["model"]):
            raise UserError(
                f"{self.directory}: parameters are not finite after step {step}; stopped, the last good checkpoint is "
                "kept; lower the learning rate"
            )
        record = {"state": data, "checksums": checksums(_joined(arrays))}
        args = ocp.args.Composite(
            **{item: ocp.args.StandardSave(part) for item, part in arrays.items()},
            data=ocp.args.JsonSave({**record, "digest": digest(record)}),
        )
        self._last_save = step
        try:
            self._manager.save(step, args=args, force=True)
        except Exception as error:  # Orbax and TensorStore raise OSError, ValueError and their own kinds alike.
            raise self._unsaved(error) from error

    def wait(self) -> None:
        """Waits until what was saved is whole on disk. Errors: `UserError` when it did not get there."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unsaved(error) from error

    def finish(self, result: int | None = None) -> None:
        """Waits, and leaves one checkpoint alone, by default the newest: nobody takes another one for the result of the
        stage."""
        self.wait()
        result = self.latest() if result is None else result
        for step in self._manager.all_steps():
            if step != result:
                self._manager.delete(step)

    def restore(self, *, model: Tree, train: Any) -> Restored:
        """The newest checkpoint that is whole, onto the shapes and shardings of the given trees (arrays or abstract).

        What is frozen of them was not saved, and stays as given. A damaged checkpoint is told on standard error and
        removed, once an older one has been read in its place.

        Raises:
          UserError: there is no checkpoint, or none can be read.
        """
        (model, frozen_model), (train, frozen_train) = split(model), split(train)
        like = {"model": _abstract(model), "train": _abstract(train)}
        damaged: dict[int, Exception] = {}
        for step in reversed(self._steps()):
            try:
                arrays, data = self._read(step, like)
            except Exception as error:
                if shortage(error):  # says nothing of the checkpoint
                    raise
                self._failed = True
                damaged[step] = error
            else:
                break
        else:
            raise self._unreadable(damaged)
        for bad, error in damaged.items():
            _tell(f"{self.directory}/{bad}: the checkpoint is damaged ({_reason(error)}); step {step} is used instead")
            self._manager.delete(bad)
        model = combine(unflatten(model, arrays["model"]), frozen_model)
        return Restored(step, model, combine(unflatten(train, arrays["train"]), frozen_train), data)

    def restore_model(self, like: Tree) -> Tree:
        """Only the parameters of the newest checkpoint; what is frozen of `like` stays as given.

        Raises:
          UserError: there is no checkpoint, or the newest one is damaged: older parameters are other parameters.
        """
        like, frozen = split(like)
        step = self._steps()[-1]
        try:
            arrays, _ = self._read(step, {"model": _abstract(like)})
        except Exception as error:
            if shortage(error):
                raise
            self._failed = True
            raise self._unreadable({step: error}) from error
        return combine(unflatten(like, arrays["model"]), frozen)

    def restore_part(self, name: str, like: Tree) -> Tree:
        """Returns what the newest checkpoint has under a name of its `train` item, alone.

        Raises:
          UserError: there is no checkpoint, or the newest one is damaged or has no such part.
        """
        step = self._steps()[-1]
        wanted = {f"{name}.{key}": leaf for key, leaf in _abstract(like).items()}
        try:
            arrays, _ = self._read(step, {"train": wanted}, partly=True)
        except Exception as error:
            if shortage(error):
                raise
            self._failed = True
            raise self._unreadable({step: error}) from error
        return unflatten(like, {key.removeprefix(f"{name}."): array for key, array in arrays["train"].items()})

    def _steps(self) -> list[int]:
        self.wait()
        steps = list(self._manager.all_steps())
        if not steps:
            raise UserError(f"{self.directory}: holds no checkpoint; train the stage first")
        return steps

    def _read(
        self, step: int, like: Mapping[str, dict[str, Any]], *, partly: bool = False
    ) -> tuple[Mapping[str, dict[str, Any]], Any]:
        """Arrays of the items of `like`, or of parts of these, and what was saved as data. Whatever is wrong with them
        raises an error, in every process if it does in one."""
        error: Exception | None = None
        try:
            # Not through the manager: it would have all processes meet there, and one that fails does not come.
            directory = self._manager.directory / str(step)
            record = dict(ocp.JsonCheckpointHandler().restore(directory / "data"))
            if record.pop("digest") != digest(record):
                raise ValueError("data differs from its checksum")
            read = _read_part if partly else _read_whole
            arrays = {item: read(directory / item, abstract) for item, abstract in like.items()}
        except Exception as caught:
            error = caught
        if not agreed(error is None):
            error = error or ValueError("another process cannot read it")
        if error is not None:
            raise error
        for name, value in checksums(_joined(arrays)).items():
            if value != record["checksums"][name]:
                raise ValueError(f"{name} differs from its checksum")
        return arrays, record["state"]

    def _unsaved(self, error: Exception) -> UserError:
        self._failed = True
        return UserError(
            f"{self.directory}: cannot save step {self._last_save} ({_reason(error)}); the checkpoint before it is "
            "kept; free some disk space and run the same command again"
        )

    def _unreadable(self, damaged: Mapping[int, Exception]) -> UserError:
        newest, *others = sorted(damaged, reverse=True)
        older = f", nor can {', '.join(map(str, others))}" if others else ""
        return UserError(
            f"{self.directory}/{newest}: the checkpoint cannot be read ({_reason(damaged[newest])}){older}; delete "
            f"{self.directory.parent} to train this stage anew"
        )


class _Kept:
    """Which checkpoints Orbax keeps: the newest ones, and that of the best step so far."""

    def __init__(self, newest: int):
        self.newest = newest
        self.best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        first = len(checkpoints) - self.newest
        return [i >= first or one.step == self.best for i, one in enumerate(checkpoints)]


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Leaves JAX's preemption service alone: whoever runs the stages asks it, with numbers that count all steps of
        a run, and it forgets a signal when numbers of another count come between."""
        return False


class _Quiet:
    """Keeps quiet what Orbax's other reads and writes say, out of their threads, once one of them has failed.

    A write that was given up speaks when it is collected: as a coroutine through the hook for unraisable exceptions,
    as a task through the logger of asyncio. That may be at any later time, so both stay unless `end` is called.
    """

    def __init__(self) -> None:
        self._before = sys.unraisablehook
        sys.unraisablehook = self._hook
        logging.getLogger("asyncio").addFilter(self._not_of_orbax)

    def end(self) -> None:
        """Everybody speaks again."""
        sys.unraisablehook = self._before
        logging.getLogger("asyncio").removeFilter(self._not_of_orbax)

    def _hook(self, unraisable: Any) -> None:
        coroutine = unraisable.object if inspect.iscoroutine(unraisable.object) else None
        of_orbax = coroutine is not None and "orbax" in coroutine.cr_code.co_filename
        if not of_orbax and "Event loop is closed" not in str(unraisable.exc_value):
            self._before(unraisable)

    def _not_of_orbax(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.getMessage()


def _read_whole(directory: Any, abstract: dict[str, Any]) -> dict[str, Any]:
    """All arrays of an item."""
    return ocp.StandardCheckpointHandler().restore(directory, args=ocp.args.StandardRestore(abstract))


def _read_part(directory: Any, abstract: dict[str, Any]) -> dict[str, Any]:
    """Some arrays of an item."""
    how = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(abstract, restore_args=how, partial_restore=True)
    return ocp.PyTreeCheckpointHandler().restore(directory, args=args)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _abstract(tree: Any) -> dict[str, Any]:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), flatten(tree))


def _joined(items: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{item}/{name}": array for item, arrays in items.items() for name, array in arrays.items()}


def _tell(line: str) -> None:
    if is_leader():
        print(f"prl: {line}", file=sys.stderr)


def _reason(error: Exception) -> str:
    """The operating system's reason, where there is one, in place of where in a database it was met."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code is not None:
        return os.strerror(int(code[1]))
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + " ..."
