"""PPO before an update, beside what tests/correctness holds it to: metrics, contexts of the critic, KL coefficient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import make_decoder, make_rollout, make_scalar_model, one_device

from prl_jax.errors import UserError
from prl_jax.models import LOGICAL_AXES
from prl_jax.training.ppo import CriticContext, PPOConfig, PPOState, adapt_kl, initial_state, prepare
from prl_jax.training.rollout import Experience, join_rows, response_logprobs, response_values
from prl_jax.training.state import create_state

PROMPTS, LENGTHS, ROOM = [3, 1, 4, 2], [2, 5, 1, 5], 5
TRUNCATED = np.array([False, True, False, False])  # row 3 ends in the last slot
SCORE = np.array([0.73, -0.2, 1.5, 0.01], np.float32)
VALID = np.arange(ROOM) < np.array(LENGTHS)[:, None]
PLAIN = PPOConfig(
    kl_coef=0.3, whiten=False, gamma=0.9, lam_actor=0.8, lam_critic=0.95, temperature=0.7, missing_eos_penalty=0.5
)


@pytest.fixture(scope="module")
def rollout():
    return make_rollout(0, PROMPTS, LENGTHS, TRUNCATED, room=ROOM)


@pytest.fixture(scope="module")
def state():
    optimizer, mesh = optax.sgd(0.1), one_device()
    models = make_decoder(0, layers=1), make_scalar_model(1, layers=1)
    return initial_state(*(create_state(model, optimizer, mesh, LOGICAL_AXES) for model in models), PLAIN)


@pytest.fixture(scope="module")
def reference():
    return make_decoder(2, layers=1)


@pytest.fixture(scope="module")
def forward(state, reference, rollout):
    """Log-probs of policy and reference, values and values after the row, by the functions of the rollout module."""

    @jax.jit
    def run(policy, critic):
        rows = join_rows(rollout.prompt, rollout.prompt_mask, rollout.response, rollout.mask)
        logp = [response_logprobs(m, rows, rollout.response, rollout.mask, 0.7)[0] for m in (policy, reference)]
        return *logp, *response_values(critic, rows, ROOM)

    return [np.asarray(x) for x in run(state.policy.model, state.critic.model)]


@pytest.fixture(scope="module")
def prepared(state, reference, rollout):
    context = CriticContext(rollout.prompt, rollout.prompt_mask)
    return jax.device_get(prepare(state, reference, rollout, context, jnp.asarray(SCORE), config=PLAIN))


def test_metrics_are_what_they_are_called(prepared, forward):
    metrics = prepared[1]
    gap = (forward[0] - forward[1])[VALID]
    expected = {
        "score": (SCORE - 0.5 * TRUNCATED).mean(),
        "kl": gap.sum() / 4,
        "response_length": np.mean(LENGTHS),
        "truncated": 0.25,
        "sampler_gap": -forward[0][VALID].mean(),  # the fake sampler says log-prob 0
        "value_mean": forward[2][VALID].mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5)
    returns = prepared[0].returns[VALID]
    explained = 1 - (returns - forward[2][VALID]).var() / returns.var()
    np.testing.assert_allclose(metrics["explained_variance"], explained, rtol=1e-3)
    assert 0 < metrics["entropy"] < np.log(32)


def test_a_critic_may_read_a_longer_context(state, reference, rollout, prepared):
    """Padding before its context changes nothing; another context changes values, and nothing of the policy."""
    longer = CriticContext(*(jnp.pad(x, ((0, 0), (3, 0))) for x in (rollout.prompt, rollout.prompt_mask)))
    arguments = (state, reference, rollout)
    same, _ = prepare(*arguments, longer, jnp.asarray(SCORE), config=PLAIN)
    before: Experience = prepared[0]
    np.testing.assert_allclose(same.values_old, before.values_old, atol=2e-5)
    more = CriticContext(longer.tokens, jnp.ones_like(longer.mask))
    other, _ = prepare(*arguments, more, jnp.asarray(SCORE), config=PLAIN)
    assert np.abs(other.values_old - before.values_old)[VALID].max() > 1e-2
    np.testing.assert_allclose(other.logp_old, before.logp_old, atol=2e-5)


def adapted(kl: float, rows: int = 8, **changes) -> float:
    config = dataclasses.replace(PLAIN, kl_horizon=100.0, **changes)
    state = PPOState(None, None, jnp.float32(0.3))
    return float(adapt_kl(state, jnp.float32(kl), rows, config).kl_coef)


def test_the_kl_coefficient_steers_to_its_target():
    np.testing.assert_allclose(adapted(6.6, kl_target=6.0), 0.3 * (1 + 0.1 * 8 / 100), rtol=1e-6)
    np.testing.assert_allclose(adapted(600.0, kl_target=6.0), 0.3 * (1 + 0.2 * 8 / 100), rtol=1e-6)
    np.testing.assert_allclose(adapted(-5.0, kl_target=6.0), 0.3 * (1 - 0.2 * 8 / 100), rtol=1e-6)
    assert adapted(6.0, kl_target=6.0) == adapted(99.0, kl_target=0.0) == float(jnp.float32(0.3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kl_placement": "both"}, "kl_placement='both'"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"epochs": 0}, "epochs"),
        ({"minibatches": 0}, "minibatches"),
        ({"accumulate": 0}, "accumulate"),
    ],
)
def test_a_wrong_config_is_named(wrong, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(PLAIN, **wrong)
