"""Cells run in processes of their own: what fails stops no other, and what is shared is made once."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from prl_jax.comparing import Cell, Comparison, run_cells, running
from prl_jax.errors import Stopped

# Stands for `prl run`: leaves a summary, but for the arm that fails, and says which run made what is shared.
PROGRAM = """
import pathlib, sys, time
folder, shared, words = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
if "bad" in words:
    sys.exit("first line\\nprl: it broke")
if not shared.exists():
    time.sleep(0.3)
    shared.parent.mkdir(exist_ok=True)
    shared.open("x").write(words)
if "slow" in words:
    time.sleep(60)
folder.mkdir(parents=True)
(folder / "summary.json").write_text("{}")
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A comparison of three arms and one that fails, whose programs are started as `prl run` would be."""
    started, plain = [], subprocess.Popen

    def start(command, **options):
        folder, words = (command[command.index(name) + 1] for name in ("--workdir", "--config"))
        started.append(words)
        return plain([sys.executable, "-c", PROGRAM, folder, str(tmp_path / "shared" / "sft"), words], **options)

    monkeypatch.setattr(running, "subprocess", SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL))
    monkeypatch.setattr(running, "places", lambda config, folder: {"sft": folder / "sft"})
    monkeypatch.setattr(running, "_POLL", 0.01)
    cells = tuple(Cell("main", arm, 0, arm) for arm in ("one", "bad", "two", "three"))
    comparison = Comparison("Title", cells, {cell.arm: cell.arm for cell in cells}, {"main": "words"}, "one")

    def run(**options):
        return run_cells(comparison, Path("file.py"), tmp_path, config_of=lambda cell: cell, **options)

    return SimpleNamespace(run=run, started=started, folder=tmp_path, comparison=comparison)


def test_one_that_fails_stops_no_other_and_is_tried_again(world):
    told, counted = [], []
    failed = world.run(jobs=2, tell=told.append, after=lambda: counted.append(1))
    assert {cell.arm: line for cell, line in failed.items()} == {"bad": "prl: it broke"}
    assert len(told) == 4 and 1 <= len(counted) <= 4 and sum("failed: prl: it broke" in line for line in told) == 1
    assert told[-1].startswith("[4/4] main seed0")
    assert sorted(words.split(":")[1] for words in world.started) == ["bad", "one", "three", "two"]
    world.started.clear()
    world.run(tell=told.append)
    assert world.started == ["file.py:bad"]


def test_what_is_shared_is_made_by_one_while_the_others_wait(world):
    """With as many jobs as cells, the others begin when it is there."""
    world.run(jobs=4, tell=lambda line: None)
    assert (world.folder / "shared" / "sft").read_text().endswith("one")
    assert not (world.folder / "logs" / "main_seed0_two.log").read_text()


def test_asked_to_end_it_tells_the_runs_and_continues_next_time(world):
    slow = world.comparison._replace(cells=(*world.comparison.cells[:1], Cell("main", "slow", 0, "slow")))
    asked = iter([False] * 200 + [True] * 1000)
    with pytest.raises(Stopped, match="1 of 2 cells"):
        run_cells(
            slow,
            Path("file.py"),
            world.folder,
            config_of=lambda cell: cell,
            stop=lambda: next(asked),
            tell=lambda line: None,
        )
    assert json.loads((world.folder / slow.cells[0].folder / "summary.json").read_text()) == {}
    assert not (world.folder / slow.cells[1].folder).exists()
