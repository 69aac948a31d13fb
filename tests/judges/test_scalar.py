"""A Bradley-Terry model as a judge."""

import jax
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


@pytest.fixture(scope="module")
def expected_scores(model):
    """Scores of given tokens, left-padded: the last valid token is simply the last column."""
    run = jax.jit(lambda model, rows: model.values(rows)[:, -1])
    return lambda ids: run(model, token_rows([*ids, *[ids[0]] * (5 - len(ids))], 13, side="left"))[: len(ids)]


def test_identical_responses_are_even(judge):
    assert judge_pairs(judge, PROMPTS, FIRST, FIRST).p_first.tolist() == [0.5] * 5
    np.testing.assert_allclose(judge(PROMPTS, FIRST, FIRST).p_first, 0.5)


def test_long_rows_lose_the_start_of_their_prompt_and_keep_their_end(judge, expected_scores):
    prompt = user("abcdefghij")
    asked = encode_prompt(TOKENIZER, prompt)
    ids = [
        asked[:1] + asked[-8:] + encode_response(TOKENIZER, "klm"),
        # A response that fills the row still ends in the stop token, and the frame of the prompt stays.
        asked[:1] + asked[-2:] + [10] * 9 + [TOKENIZER.eos_id],
    ]
    np.testing.assert_allclose(judge.scores([prompt] * 2, ["klm", "k" * 30]), expected_scores(ids), atol=2e-5)


def test_long_rows_are_refused_when_asked(model):
    strict = ScalarJudge(model, TOKENIZER, max_length=13, batch_size=4, on_long="error")
    with pytest.raises(UserError, match="take 17 tokens.*holds 13"):
        strict(PROMPTS[:1] + [user("abcdefghij")], ["a", "klm"], ["b", "n"])
    assert jnp.isfinite(strict.scores(PROMPTS[:1], ["a"])).all()


def test_columns_of_unequal_length_are_refused(judge):
    with pytest.raises(ValueError, match=r"\[2, 1\]"):
        judge.scores(PROMPTS[:2], ["a"])
