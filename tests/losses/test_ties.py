"""Bradley-Terry with ties: three answers, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prl_jax.losses import bt_loss, bt_ties_loss

R_W, R_L = jnp.array([2.0, -1.0, 0.3]), jnp.array([0.5, 0.5, 0.3])


def nll(answer: str, gap: float, log_theta: float) -> float:
    """Minus the log-probability of one answer about one pair."""
    kind = {"first": dict(label=1.0), "second": dict(label=0.0), "tie": dict(tie=1.0)}[answer]
    return float(bt_ties_loss(jnp.array([gap]), jnp.zeros(1), log_theta=log_theta, **kind).value)


@pytest.mark.parametrize("gap", [-3.0, 0.0, 0.7])
@pytest.mark.parametrize("log_theta", [0.01, 0.5, 3.0])
def test_the_three_answers_add_up_to_one(gap, log_theta):
    first, second, tie = (np.exp(-nll(answer, gap, log_theta)) for answer in ("first", "second", "tie"))
    np.testing.assert_allclose(first + second + tie, 1.0, rtol=1e-5)
    theta = np.exp(log_theta)
    np.testing.assert_allclose(first, np.exp(gap) / (np.exp(gap) + theta), rtol=1e-5)  # paper's form


def test_a_tie_is_likeliest_between_equal_scores():
    ties = [np.exp(-nll("tie", gap, 0.8)) for gap in (-2.0, -0.5, 0.0, 0.5, 2.0)]
    np.testing.assert_allclose(ties, ties[::-1], rtol=1e-5)
    assert ties[0] < ties[1] < ties[2]
    np.testing.assert_allclose(ties[2], np.tanh(0.4), rtol=1e-5)


def test_without_ties_and_near_theta_one_it_is_bradley_terry():
    np.testing.assert_allclose(bt_ties_loss(R_W, R_L, log_theta=1e-6).value, bt_loss(R_W, R_L).value, rtol=1e-5)
    assert abs(float(bt_ties_loss(R_W, R_L, log_theta=0.5).value - bt_loss(R_W, R_L).value)) > 0.05


def test_scores_fitted_to_ties_meet_and_theta_is_learnt():
    """The best fit of a pair that ties in `q` of its answers and is even otherwise: equal scores, `tanh(a / 2) = q`."""

    def loss(parameters):
        gap, log_a = parameters
        pair = dict(log_theta=jnp.exp(log_a), tie=jnp.array([0.3]), label=jnp.array([0.5]))
        return bt_ties_loss(gap[None], jnp.zeros(1), **pair).value

    step = jax.jit(lambda p: p - 1.0 * jax.grad(loss)(p))
    fitted = jnp.array([1.5, 0.5])
    for _ in range(300):
        fitted = step(fitted)
    np.testing.assert_allclose([fitted[0], np.tanh(np.exp(fitted[1]) / 2)], [0.0, 0.3], atol=1e-3)


def test_swapping_the_responses_changes_nothing_and_a_shift_drops_out():
    label, tie = jnp.array([1.0, 0.2, 0.5]), jnp.array([0.0, 0.3, 1.0])
    value = bt_ties_loss(R_W, R_L, log_theta=0.5, tie=tie, label=label).value
    np.testing.assert_allclose(bt_ties_loss(R_L, R_W, log_theta=0.5, tie=tie, label=1 - label).value, value, rtol=1e-6)
    np.testing.assert_allclose(
        bt_ties_loss(R_W + 7, R_L + 7, log_theta=0.5, tie=tie, label=label).value, value, rtol=1e-5
    )


def test_accuracy_leaves_ties_out():
    out = bt_ties_loss(R_W, R_L, log_theta=0.5, tie=jnp.array([0.0, 1.0, 0.0]))
    assert [float(x) for x in out.aux["accuracy"]] == [1.5, 2.0]  # equal scores count a half
    np.testing.assert_allclose(out.aux["margin"], [1.5, 2.0])
    assert 0.0 < float(out.aux["tie_prob"][0] / out.aux["tie_prob"][1]) < np.tanh(0.25)


@pytest.mark.parametrize("log_theta", [0.0, -0.5])
def test_theta_of_one_or_less_is_refused(log_theta):
    with pytest.raises(ValueError, match="log_theta: expected a number above 0"):
        bt_ties_loss(R_W, R_L, log_theta=log_theta)
