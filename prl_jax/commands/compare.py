"""Runs the cells of a comparison and counts them together."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from prl_jax.comparing import Cell, Comparison, collect, run_cells
from prl_jax.errors import UserError
from prl_jax.file_names import COMPARISON_FILE, LOCK_FILE
from prl_jax.files import leaves, lock, make_directory, open_lock, write_json
from prl_jax.inputs.checks import check_config
from prl_jax.reporting.compared import build_comparison
from prl_jax.runs.stopping import StopSignal
from prl_jax.runs.workdir import kept_config

_LENGTHS = ("max_prompt", "max_response", "max_length")
_FREE = ("mesh.", "profile.", "logging.", "limits.")


def compare(
    experiment: str, folder: Path, *, seeds: int, repetitions: int, jobs: int, quick: bool, stop: StopSignal
) -> tuple[Path, list[str]]:
    """Runs what is not finished; returns the path of the page, and a line for each cell that failed.

    Args:
      experiment: `FILE.py[:ARGUMENTS]`; the file defines `get_comparison` beside its `get_config`.
      folder: of the comparison, new or to be continued.
      seeds, repetitions: sets of data, SFT and judges, and how often each arm is trained on each.
      jobs: runs at once.
      quick: whether everything is small.
      stop: tells whether to end early.

    Raises:
      UserError: the file cannot be used, or a config of it is wrong; before anything runs.
      Stopped: `stop` said so.
    """
    file, _, arguments = experiment.partition(":")
    module = _load(Path(file))
    words = ",".join(filter(None, ("quick" if quick else "", arguments)))
    comparison = _called(
        file, "get_comparison", lambda: module.get_comparison(words, seeds=seeds, repetitions=repetitions)
    )
    if not isinstance(comparison, Comparison):
        raise UserError(f"{file}: get_comparison() returned {type(comparison).__name__}, expected a Comparison")

    def config_of(cell: Cell) -> ConfigDict:
        config = _called(file, "get_config", lambda: module.get_config(cell.words)).unlock()
        config.seed = config.gold.seed = cell.seed
        return config.lock()

    for cell in comparison.cells:
        config = config_of(cell)
        check_config(config)
        _check_same(folder / cell.folder, config)
    make_directory(folder)
    with open_lock(folder / LOCK_FILE) as held:
        if not lock(held):
            raise UserError(f"{folder}: another comparison is at work here; wait for it, or name another --workdir")
        stop.done()  # from here on a signal waits until it is asked for
        failed = run_cells(
            comparison,
            Path(file),
            folder,
            config_of=config_of,
            jobs=jobs,
            stop=stop,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
            after=lambda: _counted(comparison, folder),
        )
        page = _counted(comparison, folder)
    return page, [f"{cell.name}: {line}" for cell, line in failed.items()]


def _check_same(workdir: Path, config: ConfigDict) -> None:
    """Raises `UserError` where a cell is there already and was made with another config, such as a `--quick` one.

    Lengths that the config leaves open were taken from the data when the cell was made.
    """
    before, now = (dict(leaves(one)) for one in (kept_config(workdir), json.loads(json.dumps(config.to_dict()))))
    for key, value in now.items():
        is_open = value == 0 and key.rpartition(".")[2] in _LENGTHS
        if key in before and before[key] != value and not is_open and not key.startswith(_FREE):
            raise UserError(
                f"{workdir}: was made with {key}={before[key]!r}, and now it is {value!r}; name another --workdir, or "
                "the flags that it was made with"
            )


def _counted(comparison: Comparison, folder: Path) -> Path:
    """Writes what the finished cells say; returns the path of the page."""
    found = collect(comparison, folder)
    write_json(folder / COMPARISON_FILE, found)
    return build_comparison(found, folder)


def _load(path: Path) -> ModuleType:
    """The experiment's file as a module."""
    if not path.is_file():
        raise UserError(f"--config: {path}: no such file; expected a Python file with a get_comparison()")
    spec = importlib.util.spec_from_file_location("compared_experiment", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: {path}: expected a Python file")
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    sys.modules[spec.name] = module  # dataclasses look for the module that they stand in
    _called(str(path), "", lambda: loader.exec_module(module))
    for name in ("get_comparison", "get_config"):
        if not hasattr(module, name):
            raise UserError(f"--config: {path}: defines no {name}()")
    return module


def _called(file: str, name: str, call: Callable[[], Any]) -> Any:
    """Calls a function of the experiment's file, which is the user's code and raises what it likes."""
    try:
        return call()
    except UserError:
        raise
    except Exception as error:
        of = f" {name}() says" if name else ""
        raise UserError(f"--config: {file}:{of} {type(error).__name__}: {error}") from error
