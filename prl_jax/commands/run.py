"""Runs the stages of a config, in order."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from prl_jax.commands.shortage import shortage_told
from prl_jax.comparing.sharing import keep, places, take
from prl_jax.errors import Stopped, UserError
from prl_jax.file_names import CHECKPOINTS_DIR, LOCK_FILE
from prl_jax.files import lock, make_directory, open_lock
from prl_jax.inputs.checks import check_config
from prl_jax.inputs.checks_of_data import check_finished, check_inputs, recognise_models
from prl_jax.inputs.lengths import with_lengths
from prl_jax.inputs.measurements import Measurements
from prl_jax.plan.expected import announce
from prl_jax.plan.knobs import helpful_keys
from prl_jax.processes import greatest, is_leader, wait_for_all
from prl_jax.runs.context import StageContext, first_model, keep_tokenizer, trains_from_text
from prl_jax.runs.pieces import drop_pieces
from prl_jax.runs.stopping import StopSignal
from prl_jax.runs.workdir import Workdir, kept_config
from prl_jax.sharding import make_mesh
from prl_jax.stages import KINDS


def run_stages(
    config: ConfigDict, path: Path, stop: StopSignal | None = None, *, shared: Path | None = None
) -> Workdir:
    """Runs what is not finished in the workdir; an interrupted stage continues from its last checkpoint, or behind the
    last of its pieces.

    Stages that another run has left in the folder `shared`, and would be the same here, are copied from there, and what
    others may need is left there (`comparing.places`).

    Raises:
      UserError: before anything is written, for whatever can be told to be wrong by then.
      Stopped: `stop` said so, between two steps, pieces or stages.
    """
    stop = StopSignal() if stop is None else stop
    check_config(config)
    mesh = make_mesh(**config.mesh.to_dict())
    surroundings = lambda config: StageContext(config.stages[0], config, Workdir(path, config), mesh, stop)  # noqa: E731
    measurements = Measurements()
    kept = {} if shared is None else places(config, shared)  # by the lengths that are given, as other runs have them
    config = with_lengths(config, surroundings, measurements, known=kept_config(path), tell=_tell)
    workdir = Workdir(path, config)
    stages = [StageContext(name, config, workdir, mesh, stop) for name in config.stages]
    recognise_models(stages[0])
    contexts = [context for context in stages if not workdir.finished(context.name)]
    check_finished([context for context in stages if workdir.finished(context.name)])
    scratch = [context for context in contexts if trains_from_text(context.section) and not first_model(context)]
    tokenizer = measurements.tokenizer(scratch[0], "") if scratch else None
    left_out = check_inputs(contexts, measurements)
    contexts = [dataclasses.replace(context, left_out=left_out[context.name]) for context in contexts]
    announce(contexts, measurements, _tell)
    wait_for_all("all have looked at the workdir")
    if is_leader():
        workdir.create()
        if shared is not None:
            make_directory(shared)
    with _alone(workdir.path):
        if is_leader():
            measurements.keep(workdir)
        if tokenizer is not None and is_leader():
            keep_tokenizer(scratch[0], tokenizer)
        for name in config.stages:
            if workdir.finished(name) and is_leader():
                print(f"{name:<16} finished before, skipped", file=sys.stderr)
                if name in kept:
                    keep(workdir.stage(name), kept[name])
        for context in contexts:
            if stop():
                raise Stopped(f"{context.name} is not started")
            if context.name in kept and _taken(context, kept[context.name]):
                continue
            stop.starts()
            _finish(context)
            if context.name in kept and is_leader():
                keep(context.directory, kept[context.name])
            wait_for_all(f"{context.name} is finished")
    return workdir


def _finish(context: StageContext) -> None:
    """Runs a stage to its end, and says so in the workdir."""
    make_directory(context.directory)
    start = time.monotonic()
    with jax.set_mesh(context.mesh):
        metrics = _run_stage(context)
    seconds = time.monotonic() - start
    if is_leader():
        metrics |= context.counters
        kind = KINDS[context.section.kind]
        context.workdir.finish(context.name, kind=kind.name, family=kind.family, metrics=metrics, seconds=seconds)
        drop_pieces(context.directory)


def _taken(context: StageContext, place: Path) -> bool:
    """Takes a stage that has begun nowhere, or elsewhere alone, from where another run has kept it."""
    if is_leader() and not (context.directory / CHECKPOINTS_DIR).exists():
        taken = take(place, context.directory)
    else:
        taken = False
    if not greatest(int(taken)):
        return False
    _tell(f"{context.name:<16} taken from {place}")
    wait_for_all(f"{context.name} is taken")
    return True


def _tell(line: str) -> None:
    if is_leader():
        print(line, file=sys.stderr, flush=True)


def _run_stage(context: StageContext) -> dict[str, float]:
    def keys(called: str) -> list[str]:
        what = "parameters" if called in ("", "loading") else "temporary memory"
        name, mesh = f"{context.name}/{called}", context.mesh.shape
        return [*helpful_keys(context.config, name, what, mesh, batches_too=True), "a look at prl plan"]

    with shortage_told(context.name, keys, "what was saved before is kept"):
        return KINDS[context.section.kind].run(context)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two runs at once in one workdir would write over each other. The lock goes with the process, however it ends."""
    if not is_leader():  # the first process holds it for all
        yield
        return
    try:
        file = open_lock(path / LOCK_FILE)
    except OSError as error:
        raise UserError(f"{path / LOCK_FILE}: cannot be locked ({error.strerror}); remove it") from error
    with file:
        if not lock(file):
            raise UserError(f"{path}: another run is at work here; wait for it, or name another --workdir")
        yield
