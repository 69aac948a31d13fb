"""Row 42 of the correctness list: which candidates may become anchors."""

from types import SimpleNamespace

import numpy as np
import pytest
from correctness.world import make_setup
from fakes import LetterTokenizer, UtilityJudge, make_decoder, user
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import ModelCard
from prl_jax.data.jsonl import JsonLines
from prl_jax.data.records import PromptRecord
from prl_jax.runs import models
from prl_jax.stages import anchors, candidates
from prl_jax.stages import config as c
from prl_jax.stages.anchors import Candidates, choose, rank_scores

# Columns are prompts, rows their samples.
TEXTS = [
    ["", "aaaa", "b", "", "qqq"],
    ["a", "bb", "b", " ", "r"],
    ["aa", "c", "dd", "", "rr"],
]
TRUNCATED = np.array([[0, 1, 0, 0, 1], [0, 0, 0, 0, 1], [1, 0, 0, 0, 1]], bool)
CANDIDATES = Candidates(TEXTS, TRUNCATED)
LENGTHS = np.array([[len(text) for text in row] for row in TEXTS], np.float64)


def test_row_42_empty_truncated_and_repeated_candidates_are_passed_over():
    """Each of the best ones here is one of these; the last two prompts have nothing else."""
    chosen, counters = choose(CANDIDATES, LENGTHS, 1)
    assert chosen == [["a"], ["bb"], ["dd"], [" "], ["qqq"]]
    assert counters == {
        "empty_candidates": 4,
        "truncated_candidates": 5,
        "repeated_candidates": 2,
        "prompts_without_candidate": 2,
    }


def test_row_42_a_prompt_with_fewer_usable_candidates_has_fewer_anchors():
    for keep in (2, 3):  # the third prompt's "b" comes twice
        chosen, _ = choose(CANDIDATES, LENGTHS, keep)
        assert chosen == [["a"], ["bb", "c"], ["dd", "b"], [" "], ["qqq"]]


@pytest.mark.usefixtures("unchecked")
def test_row_42_what_cannot_be_an_anchor_has_no_say_in_the_ranking():
    """By mean wins: the judge is asked about all, and the usable ones count as opponents."""
    piece = SimpleNamespace(each=lambda name, items, size, make: list(make(0, items)))
    candidates = Candidates([["a"], ["bb"], ["cccccc"]], np.array([[False], [False], [True]]))
    judge = UtilityJudge(lambda prompt, response: float(len(response)))
    scores, _ = rank_scores(judge, [user("p")], candidates, 4, piece)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    np.testing.assert_allclose(scores[:2, 0], [sigmoid(-1), sigmoid(1)], rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_row_42_the_stage_writes_usable_anchors_and_its_result_has_the_counters(monkeypatch, tmp_path):
    """From sampling to `anchors.jsonl`: which responses are truncated is what the sampler says."""
    tokenizer, model = LetterTokenizer(), make_decoder(layers=1)
    rows = dict(kind="anchors", samples=3, keep=1)
    section = ConfigDict({**c.anchors(), **rows, "batch_size": 5})
    records = [PromptRecord(str(i), user("a")) for i in range(5)]
    calls = iter(range(3))

    def respond(*_, **__):
        k = next(calls)
        return TEXTS[k], SimpleNamespace(logp=np.zeros((5, 2)), truncated=TRUNCATED[k])

    monkeypatch.setattr(candidates, "respond", respond)
    monkeypatch.setattr(models, "load_policy", lambda *_, **__: (ModelCard("policy", {}, 8, 8), model, tokenizer))
    judge = UtilityJudge(lambda prompt, response: float(len(response)))
    monkeypatch.setattr(models, "load_judge", lambda *_, **__: judge)
    context = make_setup(model).context
    fake = SimpleNamespace(
        section=section,
        records=lambda *_: SimpleNamespace(with_unique_ids=lambda: records),
        stage=lambda name: tmp_path,
        directory=tmp_path,
        name="anchors",
        config=ConfigDict({"anchors": section, "judges": {}}),
        key=context.key,
        mesh=context.mesh,
        defaults=context.defaults,
        stop=context.stop,
        progress=context.progress,
    )
    result = anchors.run(fake)
    written = [row["anchors"] for _, row in JsonLines(tmp_path / anchors.ANCHORS_FILE)]
    assert written == [["a"], ["bb"], ["dd"], [" "], ["qqq"]]
    assert (result["empty_candidates"], result["truncated_candidates"], result["repeated_candidates"]) == (4, 5, 2)
    assert result["prompts_without_candidate"] == 2 and result["anchors"] == 5
