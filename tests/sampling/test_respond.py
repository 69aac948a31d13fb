"""From prompts as text to responses as text."""

import jax
import numpy as np
import pytest
from fakes import LetterTokenizer, make_decoder, one_device, user

from prl_jax.errors import UserError
from prl_jax.sampling import SamplingConfig, decode_responses, encode_prompts, respond
from prl_jax.text.chat import encode_prompt
from prl_jax.types import Rollout

TOKENIZER = LetterTokenizer()
PROMPTS = [user("ab"), user("cde"), user("f"), user("ghijk"), user("ba")]


def test_prompts_are_padded_and_cut_on_the_left():
    encoded = encode_prompts(TOKENIZER, PROMPTS, length=6)
    assert encoded.truncated == 1
    for prompt, tokens, mask in zip(PROMPTS, encoded.tokens, encoded.mask, strict=True):
        ids = encode_prompt(TOKENIZER, prompt)
        assert tokens[mask].tolist() == ids[-6:] and mask[6 - min(len(ids), 6) :].all()


def test_row_04_a_prompt_mask_comes_from_lengths():
    encoded = encode_prompts(LetterTokenizer(pad_is_eos=True), PROMPTS[:2], length=10)
    np.testing.assert_array_equal(encoded.mask.sum(1), [5, 6])  # the EOS that closes the user's turn is no padding


def test_a_long_prompt_is_refused_when_asked():
    with pytest.raises(UserError, match="prompt 4 has 8 tokens.*room for 6"):
        encode_prompts(TOKENIZER, PROMPTS, length=6, on_long="error")
    assert encode_prompts(TOKENIZER, PROMPTS, length=8, on_long="error").truncated == 0


def test_texts_are_the_valid_letters():
    response = np.array([[0, 1, TOKENIZER.eos_id, 5], [2, 3, 4, 5]], np.int32)
    mask = np.array([[True, True, True, False], [True, True, True, True]])
    empty = np.zeros((2, 1), np.int32)
    rollout = Rollout(empty, empty > 0, response, mask, mask * 0.0, np.array([False, True]))
    assert decode_responses(TOKENIZER, rollout) == ["ab", "cdef"]


def test_row_08_the_batch_size_changes_nothing():
    model, config = make_decoder(2, layers=1), SamplingConfig(6, (TOKENIZER.eos_id,), TOKENIZER.pad_id)
    arguments = dict(config=config, key=jax.random.key(0), max_prompt=8, mesh=one_device())
    texts, rollout = respond(model, TOKENIZER, PROMPTS, batch_size=2, **arguments)
    again, other = respond(model, TOKENIZER, PROMPTS, batch_size=5, **arguments)
    assert texts == again and len(texts) == len(PROMPTS) and any(texts)
    np.testing.assert_array_equal(rollout.response, other.response)
    np.testing.assert_array_equal(rollout.mask, other.mask)
    assert texts == decode_responses(TOKENIZER, rollout)
