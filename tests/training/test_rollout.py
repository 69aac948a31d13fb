"""Rows of prompt and response, and what is read off them."""

import jax
import numpy as np
import pytest
from fakes import make_decoder, make_rollout, make_scalar_model

from prl_jax.models import last_index
from prl_jax.training.rollout import join_rows, response_logprobs, response_values

PROMPTS, LENGTHS, ROOM = [3, 1, 4], [2, 5, 1], 5


@pytest.fixture(scope="module")
def rollout():
    return make_rollout(0, PROMPTS, LENGTHS, [False, True, False], room=ROOM)


@pytest.fixture(scope="module")
def rows(rollout):
    return join_rows(rollout.prompt, rollout.prompt_mask, rollout.response, rollout.mask)


def test_row_06_log_probs_are_those_of_the_tempered_distribution(rollout, rows):
    model = make_decoder(layers=1)

    @jax.jit
    def run(model):
        logits = model.logits(model.hidden(*rows))
        return logits, [response_logprobs(model, rows, rollout.response, rollout.mask, t) for t in (1.0, 0.5)]

    logits, results = jax.device_get(run(model))
    for temperature, (logp, entropy) in zip((1.0, 0.5), results, strict=True):
        law = np.asarray(jax.nn.log_softmax(logits / temperature, axis=-1))
        for i, t in np.ndindex(3, ROOM):
            if t < LENGTHS[i]:  # the token before it predicts a token; the first one follows the prompt
                before = law[i, 4 + t - 1]
                np.testing.assert_allclose(logp[i, t], before[rollout.response[i, t]], atol=2e-5)
                np.testing.assert_allclose(entropy[i, t], -(np.exp(before) * before).sum(), atol=2e-5)
            else:
                assert logp[i, t] == entropy[i, t] == 0
        assert logp.dtype == np.float32


def test_values_stand_before_each_token_and_after_the_last(rollout, rows):
    critic = make_scalar_model(layers=1)

    @jax.jit
    def run(critic):
        return response_values(critic, rows, ROOM), critic.values(rows)

    (values, after), everywhere = run(critic)
    np.testing.assert_allclose(values, everywhere[:, 3:-1], atol=1e-6)
    last = last_index(rows.segments)
    np.testing.assert_allclose(after, everywhere[np.arange(3), last], atol=1e-6)
    assert len(set(last.tolist())) > 1
    assert values.shape == (3, ROOM) and after.shape == (3,)
