"""P3O token by token, and the regression of single responses, against plain loops and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import references

from prl_jax.losses import pair_token_loss, pairwise_policy_loss, single_regression_loss

PAIRS, ROOM = 3, 4
MASK = (np.arange(ROOM) < np.array([[4, 2], [1, 3], [2, 2]])[..., None]).reshape(PAIRS, 2, ROOM)
RNG = np.random.default_rng(1)
KEPT = jnp.asarray(MASK)
NEW, OLD, REF = (jnp.float32(np.where(MASK, -RNG.exponential(size=MASK.shape), np.nan)) for _ in range(3))
GAP = jnp.float32(RNG.normal(size=PAIRS))
OPTIONS = dict(beta=0.3, eps=0.2, c=3.0)


def value(logp, **options):
    return pair_token_loss(logp, OLD, REF, KEPT, GAP, **{**OPTIONS, **options}).value


def test_it_equals_plain_loops_and_is_blind_to_what_is_masked():
    flat = [np.where(MASK, np.asarray(x), 0.0).astype(np.float64).reshape(PAIRS, -1) for x in (NEW, OLD, REF)]
    weight = np.array([1.0, 0.0, 0.5], np.float32)
    for given in (np.ones(PAIRS, np.float32), weight):
        expected = references.pair_token_loss(*flat, np.float64(GAP), given, **OPTIONS)
        np.testing.assert_allclose(value(NEW, weight=jnp.asarray(given)), expected, rtol=1e-5)
    grad = jax.grad(lambda x: value(x, weight=jnp.asarray(weight)))(NEW)
    assert np.isfinite(grad).all() and not np.asarray(grad)[1].any() and not np.asarray(grad)[~MASK].any()


def test_on_policy_it_has_the_gradient_of_the_joint_form():
    ratios = lambda x: jnp.where(KEPT, x - REF, 0.0).sum(-1).T  # noqa: E731

    def joint(logp):
        return pairwise_policy_loss(*ratios(logp), *ratios(NEW), 0.5 * (1 + GAP), **OPTIONS).value

    ours = jax.grad(lambda x: pair_token_loss(x, NEW, REF, KEPT, GAP, **OPTIONS).value)(NEW)
    np.testing.assert_allclose(ours, jax.grad(joint)(NEW), rtol=1e-4, atol=1e-6)


def test_exchanging_the_two_responses_changes_nothing():
    swapped = pair_token_loss(NEW[:, ::-1], OLD[:, ::-1], REF[:, ::-1], KEPT[:, ::-1], -GAP, **OPTIONS)
    np.testing.assert_allclose(swapped.value, value(NEW), rtol=1e-5)


def test_a_token_beyond_its_bound_stops_alone():
    """In the joint form the whole pair would."""
    one, gap = jnp.ones((1, 2, 2), bool), jnp.array([1.0])
    old = jnp.full((1, 2, 2), -2.0)
    new = old.at[0, 0, 0].add(0.5)
    grad = jax.grad(lambda x: pair_token_loss(x, old, old, one, gap, beta=0.0, eps=0.2).value)(new)
    assert float(grad[0, 0, 0]) == 0.0 and float(grad[0, 0, 1]) < 0 < float(grad[0, 1, 0])


def test_wrong_bounds_raise():
    with pytest.raises(ValueError, match="c: expected a number of at least 1"):
        value(NEW, c=0.5)


def test_a_regression_stops_where_the_log_ratio_is_the_target_over_beta():
    target = jnp.array([0.2, -0.4])
    grad = jax.grad(lambda ratio: single_regression_loss(ratio, target, beta=0.1).value)(target / 0.1)
    np.testing.assert_allclose(grad, 0.0, atol=1e-6)
