"""The protocol: probabilities of both orders, identical responses, batches."""

import jax.numpy as jnp
import numpy as np
import pytest
from fakes import LetterTokenizer, UtilityJudge, make_decoder, make_scalar_model, one_device, token_rows, user

from prl_jax.judges import GenerativeJudge, GoldJudge, Judge, Judged, ScalarJudge, judge_pairs
from prl_jax.judges.base import check_lengths, in_batches
from prl_jax.judges.density_ratio import DensityRatioJudge, PolicyReader
from prl_jax.text import padding
from prl_jax.text.judging import JudgeTemplate
from prl_jax.types import TokenRows

PROMPTS = [user(text) for text in ("p", "q", "p", "r")]
FIRST, SECOND = ["a", "bb", "ccc", "dd"], ["aa", "bb", "c", "d"]


def length_judge(bias: float = 0.0) -> UtilityJudge:
    return UtilityJudge(lambda prompt, response: 0.7 * len(response) + 0.1 * ord(prompt[0]), bias)


def test_row_20_the_symmetric_probability_averages_both_orders():
    judged = Judged(np.array([0.3, -2.0], np.float32), np.array([1.1, 40.0], np.float32))
    p_12, p_21 = 1 / (1 + np.exp(-judged.z_12)), 1 / (1 + np.exp(-judged.z_21))
    np.testing.assert_allclose(judged.p_12, p_12, rtol=1e-6)
    np.testing.assert_allclose(judged.p_21, p_21, rtol=1e-6)
    np.testing.assert_allclose(judged.p_first, (p_12 + 1 - p_21) / 2, rtol=1e-5, atol=1e-7)
    swapped = Judged(judged.z_21, judged.z_12)
    np.testing.assert_allclose(judged.p_first + swapped.p_first, 1.0, rtol=1e-6)


def test_probabilities_stay_in_range_without_overflow():
    extreme = Judged(np.array([-1e4, 1e4], np.float32), np.array([1e4, -1e4], np.float32))
    np.testing.assert_array_equal(extreme.p_first, [0.0, 1.0])
    assert extreme.p_12.dtype == np.float32


def test_identical_responses_are_even_without_asking():
    judge = length_judge(bias=0.4)
    judged = judge_pairs(judge, PROMPTS, FIRST, SECOND)
    assert judge.asked == [("p", "a", "aa"), ("p", "ccc", "c"), ("r", "dd", "d")]
    np.testing.assert_array_equal(judged.p_first[1], 0.5)
    direct = judge(*([column[i] for i in (0, 2, 3)] for column in (PROMPTS, FIRST, SECOND)))
    np.testing.assert_array_equal(judged.z_12[[0, 2, 3]], direct.z_12)
    np.testing.assert_array_equal(judged.z_21[[0, 2, 3]], direct.z_21)


def test_a_judge_is_not_asked_about_nothing():
    judge = length_judge()
    judged = judge_pairs(judge, PROMPTS, FIRST, FIRST)
    assert judge.asked == [] and (judged.p_first == 0.5).all()
    assert isinstance(judge, Judge)


def test_a_position_bias_moves_both_orders_alike():
    fair, biased = (judge_pairs(length_judge(b), PROMPTS, FIRST, SECOND) for b in (0.0, 0.4))
    asked = [0, 2, 3]
    np.testing.assert_allclose((biased.z_12 - fair.z_12)[asked], 0.4, rtol=1e-5)
    np.testing.assert_allclose((biased.z_21 - fair.z_21)[asked], 0.4, rtol=1e-5)
    np.testing.assert_array_equal(np.sign(biased.p_first - 0.5), np.sign(fair.p_first - 0.5))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_batches_change_nothing_and_have_one_shape(batch_size):
    rows, shapes = token_rows([[i, i + 1] for i in range(5)], 3), set()

    def forward(batch):
        shapes.add(batch.tokens.shape)
        return jnp.stack([batch.tokens.sum(1), batch.segments.sum(1)], axis=1).astype(jnp.float32)

    encode = lambda index: (TokenRows(*(x[index] for x in rows)), index[:, None] % 2 > 0)  # noqa: E731
    for mesh in (None, one_device()):
        judged, odd = in_batches(forward, encode, 5, batch_size, mesh)
        np.testing.assert_array_equal(odd, [[False], [True], [False], [True], [False]])
        np.testing.assert_array_equal(judged, [[2 * i + 1, 2] for i in range(5)])
    assert shapes == {(batch_size, 3)}


def test_rows_of_about_one_length_share_a_batch_and_come_back_in_their_order(monkeypatch):
    """Sizes decide about mates alone: without them, or with wrong ones, batches are longer, and that is all."""
    monkeypatch.setattr(padding, "_SHORTEST", 2)
    ids = [[n] * (1 + n % 5) for n in range(11)]
    rows, shapes = token_rows(ids, 16), []

    def forward(batch):
        shapes.append(batch.tokens.shape)
        return batch.tokens.sum(1).astype(jnp.float32)

    encode = lambda index: (TokenRows(*(x[index] for x in rows)), index[:, None])  # noqa: E731
    expected = [n * (1 + n % 5) for n in range(11)]
    for sizes, lengths in ((list(map(len, ids)), [2, 4, 4, 8]), (None, [4, 8, 4, 8]), ([1] * 11, [4, 8, 4, 8])):
        for mesh in (None, one_device()):
            found, known = in_batches(forward, encode, 11, 3, mesh, sizes)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(known[:, 0], range(11))
            assert shapes == [(3, length) for length in lengths]
            shapes.clear()


@pytest.mark.parametrize("kind", ["generative", "scalar", "density_ratio"])
def test_a_judge_says_the_same_whatever_its_rows_are_padded_to(kind, monkeypatch):
    tokenizer, lengths = LetterTokenizer(), dict(max_prompt=16, max_response=16)
    make = {
        "generative": lambda: GenerativeJudge(
            make_decoder(layers=1), tokenizer, JudgeTemplate(), max_length=32, batch_size=3
        ),
        "scalar": lambda: ScalarJudge(make_scalar_model(layers=1), tokenizer, max_length=32, batch_size=3),
        "density_ratio": lambda: DensityRatioJudge(
            PolicyReader(make_decoder(layers=1), tokenizer, batch_size=3, **lengths), None
        ),
    }
    texts = ["a", "bcdefghij", "", "k", "lmnop"]
    prompts = [user(text) for text in ("ab", "cdefghijk", "defg", "h", "ab")]
    expected = make[kind]()(prompts, texts, texts[::-1])
    monkeypatch.setattr(padding, "_SHORTEST", 4)
    found = make[kind]()(prompts, texts, texts[::-1])
    np.testing.assert_allclose(found.p_first, expected.p_first, atol=1e-5)
    assert np.std(found.z_12) > 0.01


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 1\]"):
        check_lengths([1, 2], [1])
    with pytest.raises(ValueError):
        judge_pairs(length_judge(), PROMPTS, FIRST, SECOND[:2])


def test_the_gold_judge_tells_the_exact_probability():
    table = {("p", "a", "aa"): 0.25, ("q", "bb", "bb"): 0.5, ("p", "ccc", "c"): 1.0, ("r", "dd", "d"): 0.9}
    judged = GoldJudge(lambda *row: table[row])(PROMPTS, FIRST, SECOND)
    np.testing.assert_allclose(judged.p_12, [0.25, 0.5, 1.0, 0.9], rtol=1e-5)
    np.testing.assert_array_equal(judged.z_21, -judged.z_12)
    assert np.isfinite(judged.z_12).all()
    np.testing.assert_allclose(judged.p_first, judged.p_12, rtol=1e-5)
