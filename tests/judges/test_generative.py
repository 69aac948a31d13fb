"""A generative judge: both orders, one verdict token."""

import functools
import itertools

import jax
import numpy as np
import pytest
from fakes import LetterTokenizer, make_decoder, token_rows, user

from prl_jax.errors import UserError
from prl_jax.judges import GenerativeJudge, Judged, generative, judge_pairs
from prl_jax.judges.base import text_sizes
from prl_jax.judges.trees import MOST, trees
from prl_jax.text.judging import JudgeTemplate, encode_judge_row

TOKENIZER = LetterTokenizer()
PROMPTS = [user(text) for text in ("ab", "c", "defg", "hh", "ab")]
FIRST, SECOND = ["a", "bcd", "", "kk", "lmno"], ["qq", "b", "rrr", "kk", "m"]
LENGTH = 16


@pytest.fixture(scope="module")
def model():
    return make_decoder(layers=1)


@pytest.fixture(scope="module")
def judge(model):
    return GenerativeJudge(model, TOKENIZER, JudgeTemplate(), max_length=LENGTH, batch_size=4)


def test_row_19_logits_are_those_of_the_verdict_tokens_in_their_context(judge, model):
    """Left-padded rows: what the judge reads at the last valid token is here simply the last column."""
    encode = functools.partial(encode_judge_row, TOKENIZER, judge.template, max_length=LENGTH)
    there = [encode(*row).ids for row in zip(PROMPTS, FIRST, SECOND, strict=True)]
    back = [encode(*row).ids for row in zip(PROMPTS, SECOND, FIRST, strict=True)]
    rows = token_rows(there + back, LENGTH, side="left")
    logits = np.asarray(jax.jit(lambda model: model.logits(model.hidden(*rows)[:, -1]))(model))
    yes, no = TOKENIZER.encode("YN")
    judged = judge(PROMPTS, FIRST, SECOND)
    different = np.array([a != b for a, b in zip(FIRST, SECOND, strict=True)] * 2)
    expected = np.where(different, logits[:, yes] - logits[:, no], 0.0)  # identical ones are even, whatever it says
    np.testing.assert_allclose(np.concatenate(judged[:2]), expected, atol=5e-5)
    mass = jax.nn.softmax(logits[:5], axis=-1)[:, [yes, no]].sum(1)
    np.testing.assert_allclose(judge.verdict_mass(PROMPTS, FIRST, SECOND), mass, rtol=1e-4)
    assert mass.max() < 0.9


def test_row_20_exchanged_responses_exchange_the_orders(judge):
    there, back = judge(PROMPTS, FIRST, SECOND), judge(PROMPTS, SECOND, FIRST)
    np.testing.assert_allclose(there.z_12, back.z_21, atol=1e-5)
    np.testing.assert_allclose(there.z_21, back.z_12, atol=1e-5)
    np.testing.assert_allclose(there.p_first + back.p_first, 1.0, rtol=1e-5)
    assert np.abs(there.p_12 + there.p_21 - 1).max() > 0.05  # the orders do disagree


@pytest.mark.parametrize(
    ("shape", "template", "length"),
    [
        ({}, JudgeTemplate(), LENGTH),
        ({"attention": "chunked", "layers": 2}, JudgeTemplate(shared_positions=True), LENGTH),
        ({}, JudgeTemplate(), 9),  # some rows are cut
    ],
)
def test_row_20_comparisons_that_share_a_row_answer_as_alone(shape, template, length, monkeypatch):
    """What they begin with is read once; none sees what another one shows. One of the prompts is asked about twice."""
    model = make_decoder(**{"layers": 1, **shape})
    options = dict(max_length=length, batch_size=4)
    judge = GenerativeJudge(model, TOKENIZER, template, **options)
    alone = judge(PROMPTS, FIRST, SECOND)
    calls = always_share(monkeypatch)
    together = judge(PROMPTS, FIRST, SECOND)
    assert calls == [(1, 4 * length)] * 4
    same_answers(together, alone)
    assert alone.cut.any() == (length < LENGTH) and np.abs(alone.z_12 + alone.z_21).max() > 0.1


def always_share(monkeypatch) -> list[tuple[int, ...]]:
    """Rows share trees wherever they can; the shapes of these."""
    calls, plain = [], generative.judge_trees
    monkeypatch.setattr(generative, "_SHORTEST", 0)
    monkeypatch.setattr(generative, "_SHARED", 9.0)
    monkeypatch.setattr(generative, "judge_trees", lambda *a, **k: calls.append(a[1].tokens.shape) or plain(*a, **k))
    return calls


def same_answers(found: Judged, expected: Judged) -> None:
    for name in ("z_12", "z_21"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-5, err_msg=name)
    np.testing.assert_array_equal(found.cut, expected.cut)


def test_all_opponents_of_a_response_share_what_stands_before_them(judge, monkeypatch):
    """Six responses to a prompt, every two of them in both orders: 30 rows in 12 trees of two and three branches."""
    texts = ("a", "bcd", "e", "kk", "lm", "o")
    first, second = zip(*itertools.combinations(texts, 2), strict=True)
    prompts = [user("ab")] * len(first)
    alone = judge(prompts, first, second)
    one_order = judge.one_order(prompts, first, second)
    always_share(monkeypatch)
    grown = trees([*prompts, *prompts], [*first, *second])
    assert sorted(map(len, grown)) == [2] * 6 + [3] * 6 and sorted(sum(grown, [])) == list(range(30))
    same_answers(judge(prompts, first, second), alone)
    same_answers(judge.one_order(prompts, first, second), one_order)


def test_rows_share_a_tree_by_prompt_and_first_response():
    ask, other = user("ab"), user("c")
    grown = trees([ask, other, ask, ask, ask, other, ask], ["x", "x", "y", "x", "z", "x", "x"])
    assert sorted(map(sorted, grown)) == [[0, 3, 6], [1, 5], [2, 4]]
    many = trees([ask] * 9, ["x"] * 9)
    assert [len(tree) for tree in many] == [3, 3, 3] and max(map(len, trees([ask] * 20, ["x"] * 20))) == MOST


def test_row_20_rows_share_a_tree_where_they_begin_long_and_no_window_counts_its_places(model, monkeypatch):
    options = dict(max_length=256, batch_size=4)
    judge = GenerativeJudge(model, TOKENIZER, JudgeTemplate(), **options)
    windowed = GenerativeJudge(make_decoder(layers=1, window=4), TOKENIZER, JudgeTemplate(), **options)
    short = GenerativeJudge(model, TOKENIZER, JudgeTemplate(), max_length=64, batch_size=4)
    long, brief = (
        ([user("abc" * 30)] * 2, ["a", "bb"], ["bb", "a"]),
        ([user("a")] * 2, ["abc" * 30, "b"], ["b", "abc" * 30]),
    )
    shares = lambda judge, columns: judge._grown(*columns, text_sizes(*columns)) is not None  # noqa: E731
    assert shares(judge, long) and not shares(judge, brief)
    assert not shares(windowed, long) and not shares(short, long)
    monkeypatch.setattr(generative, "choose", lambda *_: ("splash", ""))  # a kernel that knows no branches
    assert not shares(judge, long)


def test_batch_size_and_mates_change_nothing(judge, model):
    expected = judge(PROMPTS, FIRST, SECOND)
    for batch_size in (1, 10):
        other = GenerativeJudge(model, TOKENIZER, JudgeTemplate(), max_length=LENGTH, batch_size=batch_size)
        for one, two in zip(other(PROMPTS, FIRST, SECOND)[:2], expected[:2], strict=True):
            np.testing.assert_allclose(one, two, atol=2e-5)
    alone = judge(PROMPTS[4:], FIRST[4:], SECOND[4:])
    np.testing.assert_allclose(alone.z_12, expected.z_12[4:], atol=2e-5)


def test_shared_positions_reach_the_model(judge, model):
    template = JudgeTemplate(shared_positions=True)
    shared = GenerativeJudge(model, TOKENIZER, template, max_length=LENGTH, batch_size=4)
    assert np.abs(shared(PROMPTS, FIRST, SECOND).z_12 - judge(PROMPTS, FIRST, SECOND).z_12).max() > 1e-3


def test_identical_responses_are_even(judge):
    assert judge_pairs(judge, PROMPTS, FIRST, FIRST).p_first.tolist() == [0.5] * 5


@pytest.mark.parametrize("shortest", [128, 0])
def test_the_first_row_that_is_too_long_is_refused_when_asked(model, shortest, monkeypatch):
    """Not the longest one, which is looked at first where orders may share a row."""
    monkeypatch.setattr(generative, "_SHORTEST", shortest)
    strict = GenerativeJudge(model, TOKENIZER, JudgeTemplate(), max_length=LENGTH, on_long="error")
    with pytest.raises(UserError, match="take 23 tokens.*holds 16"):
        strict([user("a"), user("abcdefghij"), user("abcdefghijkl")], ["k", "klm", "klm"], ["n", "nop", "nop"])
