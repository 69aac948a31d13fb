"""Runs the cells of a comparison, each in a process and a folder of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from prl_jax.comparing.cells import Cell, Comparison
from prl_jax.comparing.sharing import places
from prl_jax.errors import Stopped
from prl_jax.file_names import SUMMARY_FILE

SHARED_DIR = "shared"
_POLL = 0.2  # seconds


class Running(NamedTuple):
    """A cell at work."""

    cell: Cell
    process: subprocess.Popen[bytes]
    shared: frozenset[Path]
    start: float


def finished(folder: Path, cell: Cell) -> bool:
    """Whether a cell has its result."""
    return (folder / cell.folder / SUMMARY_FILE).is_file()


def run_cells(
    comparison: Comparison,
    experiment: Path,
    folder: Path,
    *,
    config_of: Callable[[Cell], ConfigDict],
    jobs: int = 1,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = print,
    after: Callable[[], None] = lambda: None,
) -> dict[Cell, str]:
    """Runs what is not finished; one that fails stops no other, and is tried again by the next call.

    What several cells have in common is made once: a cell waits for another that is about to make what it needs.

    Args:
      comparison: what is compared.
      experiment: the file whose `get_config` gives the cells.
      folder: of the comparison.
      config_of: the config of a cell.
      jobs: how many run at once.
      stop: whether to end; the cells at work are told, and continue next time.
      tell: is given a line for each cell that ends.
      after: called once some have ended, while others are at work.

    Returns:
      The cells that failed, with the last line that each of them said.

    Raises:
      Stopped: `stop` said so.
    """
    waiting = [cell for cell in comparison.cells if not finished(folder, cell)]
    shared = {cell: frozenset(places(config_of(cell), folder / SHARED_DIR).values()) for cell in waiting}
    total, begun, failed = len(waiting), time.monotonic(), {}
    running: list[Running] = []
    try:
        while waiting or running:
            if stop():
                raise Stopped(f"{total - len(waiting) - len(running)} of {total} cells have ended")
            running, ended = _parted(running)
            done = total - len(waiting) - len(running)
            while len(running) < jobs and (started := _started(waiting, running, experiment, folder, shared)):
                running.append(started)
            for one in ended:
                if one.process.returncode:
                    failed[one.cell] = last_line(log_of(folder, one.cell))
                tell(_line(one, done, total, begun, failed.get(one.cell, "")))
            if ended:
                after()
            time.sleep(_POLL)
    finally:
        for one in running:  # only where something went wrong, or it is to end
            one.process.send_signal(signal.SIGTERM)
        for one in running:
            one.process.wait()
    return failed


def _parted(running: list[Running]) -> tuple[list[Running], list[Running]]:
    """The cells that are still at work, and those that have ended."""
    ended = [one for one in running if one.process.poll() is not None]
    return [one for one in running if one not in ended], ended


def _started(
    waiting: list[Cell],
    running: list[Running],
    experiment: Path,
    folder: Path,
    shared: Mapping[Cell, frozenset[Path]],
) -> Running | None:
    """Starts the first cell that waits for none of the running ones, and takes it from the list."""
    busy = {place for one in running for place in one.shared if not place.exists()}
    for cell in waiting:
        if busy & shared[cell]:
            continue
        command = [sys.executable, "-m", "prl_jax", "run", "--config", f"{experiment}:{cell.words}"]
        command += [f"--config.seed={cell.seed}", f"--config.gold.seed={cell.seed}"]
        command += ["--workdir", str(folder / cell.folder), "--shared", str(folder / SHARED_DIR)]
        log = log_of(folder, cell)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            # In a session of its own: a signal to all of this one is passed on once, and a second would end it unsaved.
            apart = dict(stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
            process = subprocess.Popen(command, **apart)
        waiting.remove(cell)
        return Running(cell, process, shared[cell], time.monotonic())
    return None


def log_of(folder: Path, cell: Cell) -> Path:
    """The file with all that a cell has said."""
    return folder / "logs" / f"{cell.name.replace(' ', '_')}.log"


def last_line(log: Path) -> str:
    """The last line of a log."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "said nothing"


def _line(one: Running, done: int, total: int, begun: float, failure: str) -> str:
    passed = time.monotonic() - begun
    words = f"failed: {failure}" if failure else _clock(time.monotonic() - one.start)
    return f"[{done}/{total}] {one.cell.name:<40} {words}, ETA {_clock(passed / done * (total - done))}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"
