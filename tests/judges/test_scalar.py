"""A Bradley-Terry model as a judge."""

import jax.numpy as jnp
import numpy as np
import pytest
from fakes import LetterTokenizer, make_scalar_model, token_rows, user

from prl_jax.errors import UserError
from prl_jax.judges import ScalarJudge, judge_pairs
from prl_jax.text.chat import encode_prompt, encode_response

TOKENIZER = LetterTokenizer()
PROMPTS = [user(text) for text in ("ab", "c", "defg", "hh", "ab")]
FIRST, SECOND = ["a", "bcd", "", "kk", "lmno"], ["qq", "b", "rrr", "kk", "m"]


@pytest.fixture(scope="module")
def model():
    return make_scalar_model(layers=1)


@pytest.fixture(scope="module")
def judge(model):
    return ScalarJudge(model, TOKENIZER, max_length=13, batch_size=4)


def test_antisymmetry_is_exact(judge):
    there, back = judge(PROMPTS, FIRST, SECOND), judge(PROMPTS, SECOND, FIRST)
    np.testing.assert_array_equal(there.z_12, -there.z_21)
    np.testing.assert_allclose(back.z_12, -there.z_12, atol=1e-5)
    np.testing.assert_allclose(there.p_first + back.p_first, 1.0, rtol=1e-6)
    np.testing.assert_allclose(there.p_first, 1 / (1 + np.exp(-there.z_12)), rtol=1e-5)
    assert np.std(there.z_12) > 0.1


def test_row_18_scores_are_those_of_unpadded_rows_read_at_the_end(judge, model):
    scores = judge.scores(PROMPTS, FIRST)
    for i in (0, 2):
        ids = encode_prompt(TOKENIZER, PROMPTS[i]) + encode_response(TOKENIZER, FIRST[i])
        values = model.values(token_rows([ids], len(ids)))
        np.testing.assert_allclose(scores[i], values[0, -1], atol=2e-5)


def test_row_18_scores_depend_on_no_batch_size_and_no_pad_token(judge, model):
    expected = judge.scores(PROMPTS, FIRST)
    for other in (
        ScalarJudge(model, TOKENIZER, max_length=13, batch_size=1),
        ScalarJudge(model, LetterTokenizer(pad_is_eos=True), max_length=13, batch_size=4),
    ):
        np.testing.assert_allclose(other.scores(PROMPTS, FIRST), expected, atol=2e-5)


def test_identical_responses_are_even(judge):
    assert judge_pairs(judge, PROMPTS, FIRST, FIRST).p_first.tolist() == [0.5] * 5
    np.testing.assert_allclose(judge(PROMPTS, FIRST, FIRST).p_first, 0.5)


def test_long_rows_lose_the_start_of_their_prompt_and_keep_their_end(judge, model):
    prompt, response = user("abcdefghij"), "klm"  # 13 + 4 tokens
    ids = encode_prompt(TOKENIZER, prompt)[-9:] + encode_response(TOKENIZER, response)
    expected = model.score(token_rows([ids], 13))
    np.testing.assert_allclose(judge.scores([prompt], [response]), expected, atol=2e-5)
    longer = judge.scores([prompt], ["k" * 30])  # even a response that fills the row ends in the stop token
    expected = model.score(token_rows([encode_prompt(TOKENIZER, prompt)[-1:] + [10] * 11 + [TOKENIZER.eos_id]], 13))
    np.testing.assert_allclose(longer, expected, atol=2e-5)


def test_long_rows_are_refused_when_asked(model):
    strict = ScalarJudge(model, TOKENIZER, max_length=13, batch_size=4, on_long="error")
    with pytest.raises(UserError, match="take 17 tokens.*holds 13"):
        strict(PROMPTS[:1] + [user("abcdefghij")], ["a", "klm"], ["b", "n"])
    assert jnp.isfinite(strict.scores(PROMPTS[:1], ["a"])).all()


def test_columns_of_unequal_length_are_refused(judge):
    with pytest.raises(ValueError, match=r"\[2, 1\]"):
        judge.scores(PROMPTS[:2], ["a"])
