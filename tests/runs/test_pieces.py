"""Stages without steps: their parts are kept, made once, and are the places where they stop."""

import contextlib
import os
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from fakes import LetterTokenizer, UtilityJudge, make_decoder, one_device, user

from prl_jax.artifacts.cards import ModelCard
from prl_jax.data.records import PromptRecord
from prl_jax.errors import Stopped, UserError
from prl_jax.runs import models
from prl_jax.runs import pieces as module
from prl_jax.runs.context import StageContext
from prl_jax.runs.pieces import batches, drop_pieces, pieces
from prl_jax.runs.stopping import StopSignal
from prl_jax.runs.workdir import Workdir
from prl_jax.stages import anchors, candidates, win_rate
from prl_jax.stages import config as c


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
            last = piece("sum", lambda: {"total": sum(square for square, _ in rows)})
        return [list(row) for row in rows], last


PARTS = [(0, (0, 1, 2)), (3, (3, 4, 5)), (6, (6,))]


def kept(directory):
    return sorted(path.name for path in (directory / "squares").rglob("*.json"))


def test_all_parts_are_made_in_order_and_gone_when_the_stage_is_finished(tmp_path, capsys):
    stage = Stage(tmp_path)
    rows, last = stage.run()
    assert rows == [[x * x, 0.1 * x] for x in range(7)] and last == {"total": 91}
    assert stage.made == PARTS and len(kept(tmp_path)) == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("squares") and "4/4" in line
    drop_pieces(stage.context.directory)
    assert kept(tmp_path) == []


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


@pytest.mark.parametrize("size", range(1, 9))
def test_pieces_are_of_like_size_and_hold_every_item(tmp_path, size):
    stage, asked = Stage(tmp_path), []
    for count in range(8):
        with pieces(stage.context, 99) as piece:
            rows = piece.each(f"{count}", list(range(count)), size, lambda first, part: asked.append(part) or part)
        assert rows == list(range(count)) and len(asked) == batches(count, size)
        assert not asked or size >= max(map(len, asked)) and len(asked[-1]) > 0
        # No more than the one of a whole batch, cut in two: then judges, which fill rows up, compile once.
        assert len(asked) < 2 or min(map(len, asked[:-1])) >= size / 2
        asked.clear()


def test_a_signal_waits_for_the_end_of_a_piece(tmp_path):
    stop, config = StopSignal(), c.build({})
    context = StageContext("one", config, Workdir(tmp_path, config), one_device(), stop)
    with pytest.raises(Stopped, match="one has kept 2 of its 3 parts"), stop.caught(), pieces(context, 3) as piece:
        piece("first", lambda: [1])
        piece("second", lambda: [os.kill(os.getpid(), signal.SIGTERM)] and [2])
        piece("third", lambda: [3])
    assert sorted(path.name for path in tmp_path.rglob("*.json")) == ["first.json", "second.json"]


def test_a_signal_in_the_first_piece_ends_it_at_once(tmp_path):
    stop, config = StopSignal(), c.build({})
    context = StageContext("one", config, Workdir(tmp_path, config), one_device(), stop)
    with pytest.raises(Stopped, match="what was saved before is kept"), stop.caught(), pieces(context, 2) as piece:
        piece("first", lambda: [os.kill(os.getpid(), signal.SIGTERM)] and pytest.fail("went on"))
    assert not list(tmp_path.rglob("*.json"))


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


def test_a_part_of_a_stage_draws_as_its_rows_of_the_whole(tmp_path, monkeypatch):
    """Both stages tell the sampler which rows a part has: else each part would draw the noise of the first."""
    texts = [f"prompt {i}" for i in range(7)]
    records = [PromptRecord(text, user(text), reference="x") for text in texts]
    stages = {"sft": c.sft(), "bt": c.bradley_terry(), "anchors": c.anchors(samples=2, batch_size=3)}
    config = c.build({**stages, "evaluation": c.evaluation(samples=2, batch_size=3)})
    seen = []

    def respond(model, tokenizer, prompts, *, first_row, key, **_):
        seen.append((str(jax.random.key_data(key)), first_row, [prompt[0].content for prompt in prompts]))
        return ["text"] * len(prompts), SimpleNamespace(
            mask=np.ones((len(prompts), 4), bool),
            logp=np.zeros((len(prompts), 4)),
            truncated=np.zeros(len(prompts), bool),
        )

    card, tokenizer = ModelCard("policy", {}, 5, 4), LetterTokenizer()
    for stage in (candidates, win_rate):
        monkeypatch.setattr(stage, "respond", respond)
    monkeypatch.setattr(models, "load_policy", lambda *_, **__: (card, None, tokenizer))
    monkeypatch.setattr(models, "load_judge", lambda *_, **__: UtilityJudge(lambda prompt, text: 0.0))
    monkeypatch.setattr(win_rate, "read_card", lambda *_: card)
    monkeypatch.setattr(win_rate, "model_tokenizer", lambda *_: tokenizer)
    monkeypatch.setattr(win_rate, "_kl", lambda _, __, ___, rollout, *____: np.zeros(len(rollout.mask)))

    def check(count):
        for key in {key for key, _, _ in seen}:
            parts = [(first, part) for k, first, part in seen if k == key]
            assert sum((part for _, part in parts), []) == texts and len(parts) == 3
            assert all(texts.index(part[0]) == first for first, part in parts)
        assert len({key for key, _, _ in seen}) == count
        seen.clear()

    workdir = Workdir(tmp_path, config)
    anchors._best_of_n(StageContext("anchors", config, workdir, one_device()), records)
    check(2)
    context = StageContext("evaluation", config, workdir, one_device())
    with pieces(context, 6) as piece:
        model = make_decoder(layers=1)
        win_rate.sample_policy(context, records, piece, model, model, "x", temperature=1.0)
    check(2)


def test_scores_that_are_not_finite_end_the_ranking(tmp_path):
    """Before they are kept: NaN would sort anywhere."""
    stage, judge = Stage(tmp_path), UtilityJudge(lambda prompt, text: float("nan") if text == "b" else 0.0)
    prompts = [user("x"), user("y")]
    with pytest.raises(UserError, match="1 of 2 are not finite"), pieces(stage.context, 9) as piece:
        both = candidates.Candidates([["a", "b"], ["c", "d"]], np.zeros((2, 2), bool))
        anchors.rank_scores(judge, prompts, both, 2, piece)
    assert kept(tmp_path) == []
