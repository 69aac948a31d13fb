"""SFT learns responses, their stop token included, and nothing of the prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import LetterTokenizer, make_decoder, user

from prl_jax.data.records import SFTRecord
from prl_jax.data.rows import encode_sft, stack_rows
from prl_jax.text.chat import encode_prompt
from prl_jax.training.sft import SFT
from prl_jax.types import SFTBatch

PROMPTS, RESPONSES = ("ab", "c", "defg"), ("hi", "jklm", "")


def encoded(tokenizer: LetterTokenizer) -> SFTBatch:
    records = [SFTRecord(str(i), user(p), r) for i, (p, r) in enumerate(zip(PROMPTS, RESPONSES, strict=True))]
    rows = [encode_sft(tokenizer, record, max_prompt=8, max_response=6)[0] for record in records]
    return jax.tree.map(jnp.asarray, stack_rows(rows))


@pytest.fixture(scope="module")
def model():
    return make_decoder(layers=1)


@pytest.fixture(scope="module")
def loss():
    return jax.jit(lambda model, batch: SFT.terms(model, batch)["nll"])


def test_row_03_the_loss_is_that_of_the_response_and_its_stop_token(model, loss):
    tokenizer = LetterTokenizer()
    log_probs = jax.jit(lambda model, batch: jax.nn.log_softmax(model.logits(model.hidden(*batch.rows)), axis=-1))
    batch = encoded(tokenizer)
    log_probs, total, count = np.asarray(log_probs(model, batch)), 0.0, 0
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        start = len(encode_prompt(tokenizer, user(prompt)))
        for t, token in enumerate([*tokenizer.encode(response), tokenizer.eos_id]):
            total, count = total - log_probs[i, start + t - 1, token], count + 1
    term = loss(model, batch)
    np.testing.assert_allclose(term.sum, total, rtol=1e-5)
    assert float(term.denominator) == count == 9
    np.testing.assert_allclose(term.value, total / count, rtol=1e-5)


def test_prompt_targets_are_not_learnt(model, loss):
    batch = encoded(LetterTokenizer())
    assert (~batch.mask).sum() > 10
    changed = batch._replace(targets=jnp.where(batch.mask, batch.targets, (batch.targets + 1) % 32))
    np.testing.assert_array_equal(loss(model, changed).sum, loss(model, batch).sum)
    learnt = batch._replace(targets=jnp.where(batch.mask, (batch.targets + 1) % 32, batch.targets))
    assert abs(float(loss(model, learnt).sum - loss(model, batch).sum)) > 0.1
