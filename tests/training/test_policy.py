"""What is frozen before an update, beside what tests/correctness holds it to: metrics, contexts of the critic, the
coefficient of the divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import make_decoder, make_rollout, make_scalar_model, one_device, with_pieces

from prl_jax.errors import UserError
from prl_jax.methods import METHODS
from prl_jax.models import LOGICAL_AXES
from prl_jax.training.policy import Schedule, prepare
from prl_jax.training.rollout import CriticContext, join_rows, response_logprobs, response_values
from prl_jax.training.state import PolicyState, create_state, initial_state, steer_kl

PROMPTS, LENGTHS, ROOM = [3, 1, 4, 2], [2, 5, 1, 5], 5
TRUNCATED = np.array([False, True, False, False])  # row 3 ends in the last slot
SCORE = np.array([0.73, -0.2, 1.5, 0.01], np.float32)
VALID = np.arange(ROOM) < np.array(LENGTHS)[:, None]
METHOD = with_pieces(
    METHODS["ppo"].method,
    baseline=dict(whiten=False, gamma=0.9, lam_actor=0.8, lam_critic=0.95),
    regulariser=dict(coefficient=0.3),
)
OPTIONS = dict(method=METHOD, schedule=Schedule(temperature=0.7, missing_eos_penalty=0.5))


@pytest.fixture(scope="module")
def rollout():
    return make_rollout(0, PROMPTS, LENGTHS, TRUNCATED, room=ROOM)


@pytest.fixture(scope="module")
def state():
    optimizer, mesh = optax.sgd(0.1), one_device()
    models = make_decoder(0, layers=1), make_scalar_model(1, layers=1)
    return initial_state(*(create_state(model, optimizer, mesh, LOGICAL_AXES) for model in models), METHOD)


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
    return jax.device_get(prepare(state, reference, rollout, context, jnp.asarray(SCORE), **OPTIONS))


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
        "return_deviation": prepared[0].critique.returns[VALID].std(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5)
    returns = prepared[0].critique.returns[VALID]
    explained = 1 - (returns - forward[2][VALID]).var() / returns.var()
    np.testing.assert_allclose(metrics["explained_variance"], explained, rtol=1e-3)
    assert 0 < metrics["entropy"] < np.log(32)


def test_a_critic_may_read_a_longer_context(state, reference, rollout, prepared):
    """Padding before its context changes nothing; another context changes values, and nothing of the policy."""
    longer = CriticContext(*(jnp.pad(x, ((0, 0), (3, 0))) for x in (rollout.prompt, rollout.prompt_mask)))
    arguments = (state, reference, rollout)
    same, _ = prepare(*arguments, longer, jnp.asarray(SCORE), **OPTIONS)
    before = prepared[0]
    np.testing.assert_allclose(same.critique.values_old, before.critique.values_old, atol=2e-5)
    more = CriticContext(longer.tokens, jnp.ones_like(longer.mask))
    other, _ = prepare(*arguments, more, jnp.asarray(SCORE), **OPTIONS)
    assert np.abs(other.critique.values_old - before.critique.values_old)[VALID].max() > 1e-2
    np.testing.assert_allclose(other.frozen.logp_old, before.frozen.logp_old, atol=2e-5)


def test_long_responses_pay_and_the_shorter_of_a_group_earns(state, reference, rollout):
    """Two groups of two responses, 2 and 5, and 1 and 5 tokens long; the room is 5."""
    method = METHODS["rloo"].method
    schedule = Schedule(group_size=2, overlong=(3, 0.6), length_weight=0.2)
    state = state._replace(critic=None, kl_coef=jnp.float32(0))
    arguments = (state, reference, rollout, None, jnp.asarray(SCORE))
    frozen, metrics = prepare(*arguments, method=method, schedule=schedule)
    earned = SCORE - [0.0, 0.6, 0.0, 0.6] + [0.1, -0.1, 0.1, -0.1]
    gaps = np.repeat(earned[::2] - earned[1::2], 2) * [1, -1, 1, -1]
    np.testing.assert_allclose(frozen.frozen.advantages[:, 0], gaps, rtol=1e-5)
    found = [metrics[name] for name in ("score", "overlong_penalty", "length_term")]
    np.testing.assert_allclose(found, [earned.mean(), 0.3, 0.1], rtol=1e-5)


def steered(kl: float, *steer: float, rows: int = 8) -> float:
    method = with_pieces(METHOD, regulariser=dict(steer=steer))
    state = PolicyState(None, None, jnp.float32(0.3))
    return float(steer_kl(state, jnp.float32(kl), rows, method).kl_coef)


def test_the_coefficient_steers_to_its_target():
    np.testing.assert_allclose(steered(6.6, 6.0, 100.0), 0.3 * np.exp(0.1 * 8 / 100), rtol=1e-6)
    np.testing.assert_allclose(steered(600.0, 6.0, 100.0), 0.3 * np.exp(0.2 * 8 / 100), rtol=1e-6)
    np.testing.assert_allclose(steered(-5.0, 6.0, 100.0), 0.3 * np.exp(-0.2 * 8 / 100), rtol=1e-6)
    assert steered(6.0, 6.0, 100.0) == steered(99.0) == float(jnp.float32(0.3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("epochs", 0),
        ("minibatches", 0),
        ("accumulate", 0),
        ("group_size", 0),
        ("missing_eos_penalty", -0.5),
    ],
)
def test_a_wrong_schedule_is_named(name, value):
    with pytest.raises(UserError, match=f"{name}={value}, expected "):
        Schedule(**{name: value})
