"""From prompts as text to responses as text."""

import numpy as np
import pytest
from fakes import LetterTokenizer, user

from prl_jax.errors import UserError
from prl_jax.sampling import decode_responses, encode_prompts
from prl_jax.text.chat import encode_prompt
from prl_jax.types import Rollout

TOKENIZER = LetterTokenizer()
PROMPTS = [user("ab"), user("cde"), user("f"), user("ghijk"), user("ba")]


def test_prompts_are_padded_and_cut_on_the_left():
    encoded = encode_prompts(TOKENIZER, PROMPTS, length=6)
    assert encoded.truncated.tolist() == [False, False, False, True, False]
    for prompt, tokens, mask in zip(PROMPTS, encoded.tokens, encoded.mask, strict=True):
        ids = encode_prompt(TOKENIZER, prompt)
        kept = [ids[0], *ids[-5:]]  # the opening of the turn stays
        assert tokens[mask].tolist() == (ids if len(ids) <= 6 else kept) and mask[6 - min(len(ids), 6) :].all()


def test_a_long_prompt_is_refused_when_asked():
    with pytest.raises(UserError, match="prompt 4 has 8 tokens.*room for 6"):
        encode_prompts(TOKENIZER, PROMPTS, length=6, on_long="error")
    assert encode_prompts(TOKENIZER, PROMPTS, length=8, on_long="error").truncated.sum() == 0


def test_texts_are_the_valid_letters():
    response = np.array([[0, 1, TOKENIZER.eos_id, 5], [2, 3, 4, 5]], np.int32)
    mask = np.array([[True, True, True, False], [True, True, True, True]])
    empty = np.zeros((2, 1), np.int32)
    rollout = Rollout(empty, empty > 0, response, mask, mask * 0.0, np.array([False, True]))
    assert decode_responses(TOKENIZER, rollout) == ["ab", "cdef"]
