"""Stages without steps: their parts are kept, made once, and are the places where they stop."""

import contextlib

import pytest
from fakes import one_device

from prl_jax.errors import Stopped
from prl_jax.stages import config as c
from prl_jax.stages import pieces as module
from prl_jax.stages.context import StageContext
from prl_jax.stages.pieces import batches, pieces
from prl_jax.stages.stopping import StopSignal
from prl_jax.stages.workdir import Workdir


class StopAt(StopSignal):
    """Says so when it is asked for the n-th time."""

    def __init__(self, n):
        super().__init__()
        self.n, self.asked = n, 0

    def __call__(self):
        self.asked += 1
        return self.asked == self.n


class Stage:
    """A stage that squares numbers, three at once."""

    def __init__(self, path, stop_at=None):
        config = c.build({})
        self.context = StageContext("squares", config, Workdir(path, config), one_device(), StopAt(stop_at))
        self.context.workdir.create()
        self.made = []

    def square(self, first, items):
        self.made.append((first, tuple(items)))
        return [(x * x, 0.1 * x) for x in items]

    def run(self):
        with pieces(self.context, batches(7, 3) + 1) as piece:
            rows = piece.each("square", list(range(7)), 3, self.square)
            last = piece("sum", lambda: {"total": sum(square for square, _ in rows)}, shows=("total",))
        return [list(row) for row in rows], last


PARTS = [(0, (0, 1, 2)), (3, (3, 4, 5)), (6, (6,))]


def kept(directory):
    return sorted(path.name for path in (directory / "squares").rglob("*.json"))


def test_all_parts_are_made_in_order_and_nothing_is_left(tmp_path, capsys):
    stage = Stage(tmp_path)
    rows, last = stage.run()
    assert rows == [[x * x, 0.1 * x] for x in range(7)] and last == {"total": 91}
    assert stage.made == PARTS and kept(tmp_path) == []
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("squares") and "4/4" in line and line.endswith("total 91.000")


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_a_stage_that_was_stopped_makes_the_others(tmp_path, stop_at):
    whole, tmp_path = Stage(tmp_path / "whole").run(), tmp_path / "run"
    first, second = Stage(tmp_path, stop_at), Stage(tmp_path)
    with pytest.raises(Stopped, match=f"squares has kept {stop_at - 1} of its 4 parts"):
        first.run()
    assert len(kept(tmp_path)) == stop_at - 1 and first.made == PARTS[: stop_at - 1]
    assert second.run() == whole and second.made == PARTS[stop_at - 1 :]


@pytest.mark.parametrize("damage", ["", "[[0,", "\x80"])
def test_a_part_that_cannot_be_read_is_made_again(tmp_path, damage):
    with pytest.raises(Stopped):
        Stage(tmp_path, 3).run()
    (tmp_path / "squares" / "pieces" / "square_0.json").write_bytes(damage.encode("latin-1"))
    stage = Stage(tmp_path)
    stage.run()
    assert stage.made == [PARTS[0], PARTS[2]]


def test_an_error_keeps_what_was_made(tmp_path):
    stage = Stage(tmp_path)
    with contextlib.suppress(ZeroDivisionError), pieces(stage.context, 2) as piece:
        piece("one", lambda: [1])
        piece("two", lambda: 1 / 0)
    assert kept(tmp_path) == ["one.json"]


def test_what_another_process_has_not_is_made_by_all(tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        Stage(tmp_path, 3).run()
    monkeypatch.setattr(module, "agreed", lambda here: False)
    stage = Stage(tmp_path)
    stage.run()
    assert stage.made == PARTS
