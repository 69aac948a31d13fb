import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from prl_jax.losses import advantages as adv

KEYS = jax.random.split(jax.random.key(0), 3)
REWARDS, VALUES = jax.random.normal(KEYS[0], (3, 5)), jax.random.normal(KEYS[1], (3, 5))
LENGTHS = jnp.array([5, 2, 0])
MASK = jnp.arange(5)[None] < LENGTHS[:, None]


def plain_gae(rewards, values, lengths, bootstrap, gamma, lam):
    out = np.zeros(rewards.shape)
    for b, length in enumerate(lengths):
        later = 0.0
        for t in reversed(range(length)):
            after = values[b, t + 1] if t + 1 < length else bootstrap[b]
            later = rewards[b, t] + gamma * after - values[b, t] + gamma * lam[b] * later
            out[b, t] = later
    return out


# KL estimates


def test_kl_by_hand():
    logp, ref = jnp.array([[-1.0, -2.0]]), jnp.array([[-1.5, -1.0]])
    np.testing.assert_allclose(adv.kl_estimate(logp, ref), [[0.5, -1.0]])
    np.testing.assert_allclose(adv.kl_estimate(logp, ref, "k2"), [[0.125, 0.5]])
    np.testing.assert_allclose(
        adv.kl_estimate(logp, ref, "k3"), [[np.exp(-0.5) + 0.5 - 1, np.exp(1.0) - 1 - 1]], rtol=1e-6
    )


def test_k1_and_k3_are_unbiased_and_k2_has_the_gradient_of_the_kl():
    logits, ref = jnp.array([0.3, -0.2, 1.0]), jax.nn.log_softmax(jnp.array([0.5, 0.1, -0.4]))

    def kl(logits):
        logp = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(logp) * (logp - ref))

    def expected(logits, kind):
        logp = jax.nn.log_softmax(logits)
        weight = jax.lax.stop_gradient(jnp.exp(logp))
        return jnp.sum(weight * adv.kl_estimate(logp[None], ref[None], kind)[0])

    for kind in ("k1", "k3"):
        np.testing.assert_allclose(expected(logits, kind), kl(logits), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(expected)(logits, "k2"), jax.grad(kl)(logits), rtol=1e-4)


def test_k3_is_never_negative_and_exact_near_zero():
    d = jnp.array([[-1e4, -3.0, -1e-4, 0.0, 1e-4, 3.0, 1e4]])
    k3 = adv.kl_estimate(jnp.zeros_like(d), d, "k3")
    assert (k3 >= 0).all() and np.isfinite(k3).all()
    assert float(k3[0, 3]) == 0.0


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_masks_before_it_exponentiates(kind):
    logp, ref = jnp.array([[-1.0, jnp.nan, -1e4]]), jnp.array([[-1.5, 0.0, 0.0]])
    mask = jnp.array([[True, False, True]])
    total, grad = jax.value_and_grad(lambda x: adv.kl_estimate(x, ref, kind, mask=mask).sum())(logp)
    assert np.isfinite(total) and np.isfinite(grad).all()
    assert float(grad[0, 1]) == 0.0 and float(grad[0, 0]) != 0.0
    no_grad = jax.grad(lambda r: adv.kl_estimate(logp, r, kind, mask=mask).sum())(ref)
    np.testing.assert_array_equal(no_grad, np.zeros((1, 3)))


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_gradients(kind):
    ref = jnp.array([[-1.5, -1.0, -0.2]])
    check_grads(
        lambda x: adv.kl_estimate(jnp.asarray(x), ref, kind),
        (jnp.array([[-1.0, -2.0, -0.4]]),),
        1,
        rtol=1e-2,
        atol=1e-2,
    )


# Rewards


def test_score_lands_on_the_last_response_token():
    rewards = adv.token_rewards(jnp.array([0.73, 2.0, 9.0]), jnp.ones((3, 5)), MASK, 0.1)
    expected = np.zeros((3, 5))
    expected[0] = [-0.1, -0.1, -0.1, -0.1, 0.63]
    expected[1, :2] = [-0.1, 1.9]
    np.testing.assert_allclose(rewards, expected, rtol=1e-6)
    assert rewards.dtype == jnp.float32


def test_rewards_are_float32_and_blind_to_padding():
    kl = jnp.where(MASK, 0.5, jnp.nan).astype(jnp.bfloat16)
    rewards = adv.token_rewards(jnp.array([1.0, 1.0, 1.0], jnp.bfloat16), kl, MASK, 0.0)
    assert rewards.dtype == jnp.float32
    np.testing.assert_array_equal(rewards.sum(-1), [1.0, 1.0, 0.0])


# Generalised advantage estimation


def test_gae_by_hand():
    """Two tokens, rewards (1, 2), values (0.5, 0.25), gamma 0.9, lambda 0.8."""
    last = 2 - 0.25
    first = 1 + 0.9 * 0.25 - 0.5
    a, ret = adv.gae(jnp.array([[1.0, 2.0]]), jnp.array([[0.5, 0.25]]), jnp.ones((1, 2), bool), 0.0, 0.9, lam_actor=0.8)
    np.testing.assert_allclose(a, [[first + 0.72 * last, last]], rtol=1e-6)
    np.testing.assert_allclose(ret, [[1 + 0.9 * 2, 2.0]], rtol=1e-6)


@pytest.mark.parametrize("per_row", [False, True])
def test_gae_equals_a_plain_loop(per_row):
    lam_actor = jnp.array([0.9, 0.3, 0.5]) if per_row else 0.95
    lam_critic = jnp.array([1.0, 0.6, 0.0]) if per_row else 0.7
    bootstrap = jnp.array([0.3, -1.0, 2.0])
    a, ret = adv.gae(REWARDS, VALUES, MASK, bootstrap, 0.97, lam_actor, lam_critic)
    args = [np.asarray(x, np.float64) for x in (REWARDS, VALUES)]
    args += [np.asarray(LENGTHS), np.asarray(bootstrap, np.float64), 0.97]
    np.testing.assert_allclose(a, plain_gae(*args, np.broadcast_to(np.asarray(lam_actor), (3,))), rtol=1e-4, atol=1e-6)
    expected = plain_gae(*args, np.broadcast_to(np.asarray(lam_critic), (3,))) + np.where(MASK, VALUES, 0)
    np.testing.assert_allclose(ret, expected, rtol=1e-4, atol=1e-6)


def test_gae_at_lambda_one_is_return_minus_value():
    a, ret = adv.gae(REWARDS, VALUES, MASK, lam_actor=1.0)
    to_go = jnp.cumsum(jnp.where(MASK, REWARDS, 0)[:, ::-1], 1)[:, ::-1]
    np.testing.assert_allclose(a, jnp.where(MASK, to_go - VALUES, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ret, jnp.where(MASK, to_go, 0), rtol=1e-5, atol=1e-6)


def test_gae_at_lambda_zero_is_the_temporal_difference():
    a, _ = adv.gae(REWARDS, VALUES, MASK, lam_actor=0.0, gamma=0.9)
    after = jnp.where(jnp.pad(MASK[:, 1:], ((0, 0), (0, 1))), jnp.pad(VALUES[:, 1:], ((0, 0), (0, 1))), 0)
    np.testing.assert_allclose(a, jnp.where(MASK, REWARDS + 0.9 * after - VALUES, 0), rtol=1e-5)


def test_a_perfect_critic_leaves_no_advantage():
    rewards = jnp.zeros((1, 4)).at[0, 3].set(0.7)
    a, ret = adv.gae(rewards, jnp.full((1, 4), 0.7), jnp.ones((1, 4), bool))
    np.testing.assert_allclose(a, 0.0, atol=1e-6)
    np.testing.assert_allclose(ret, 0.7, rtol=1e-6)


def test_gae_ignores_padding():
    dirty = [jnp.where(MASK, x, jnp.nan) for x in (REWARDS, VALUES)]
    clean = adv.gae(REWARDS, VALUES, MASK, 0.5)
    longer = adv.gae(*(jnp.pad(x, ((0, 1), (0, 3)), constant_values=5.0) for x in (REWARDS, VALUES)),
                     jnp.pad(MASK, ((0, 1), (0, 3))), 0.5)  # fmt: skip
    for ours, padded, expected in zip(adv.gae(*dirty, MASK, 0.5), longer, clean, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
        np.testing.assert_allclose(padded[:3, :5], expected, rtol=1e-6)
        assert (padded[3] == 0).all() and (expected[~MASK] == 0).all() and (expected[MASK] != 0).all()


def test_bootstrap_only_enters_through_the_discount():
    """A truncated row with bootstrap b equals a row that went on and earned b in one more step."""
    with_bootstrap = adv.gae(REWARDS[:1], VALUES[:1], MASK[:1], jnp.array([0.4]), 0.9, 0.8, 0.8)
    longer = adv.gae(
        jnp.pad(REWARDS[:1], ((0, 0), (0, 1)), constant_values=0.4),
        jnp.pad(VALUES[:1], ((0, 0), (0, 1)), constant_values=0.4),
        jnp.ones((1, 6), bool), 0.0, 0.9, 0.8, 0.8,
    )  # fmt: skip
    for a, b in zip(with_bootstrap, longer, strict=True):
        np.testing.assert_allclose(a, b[:, :5], rtol=1e-5)


def test_gae_jit_vmap_float32_and_no_gradient():
    half = [x.astype(jnp.bfloat16) for x in (REWARDS, VALUES)]
    assert {x.dtype for x in adv.gae(*half, MASK)} == {jnp.dtype(jnp.float32)}
    expected = adv.gae(REWARDS, VALUES, MASK)
    for ours in (jax.jit(adv.gae)(REWARDS, VALUES, MASK),):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    stacked = jax.vmap(adv.gae)(REWARDS[None], VALUES[None], MASK[None])
    np.testing.assert_allclose([x[0] for x in stacked], expected, rtol=1e-5, atol=1e-6)
    grad = jax.grad(lambda v: sum(x.sum() for x in adv.gae(REWARDS, v, MASK)))(VALUES)
    np.testing.assert_array_equal(grad, np.zeros((3, 5)))


def test_length_adaptive_lambda():
    lam = adv.length_adaptive_lambda(jnp.array([0, 10, 20, 40, 1000]))
    np.testing.assert_allclose(lam, [0.0, 0.0, 0.0, 0.5, 0.98], atol=1e-6)


def test_wrong_shapes_and_options_raise():
    cases = [
        (adv.kl_estimate, (REWARDS, REWARDS[:, :1])),
        (adv.kl_estimate, (REWARDS[0], REWARDS[0])),
        (adv.token_rewards, (jnp.ones((3, 1)), REWARDS, MASK, 0.1)),
        (adv.token_rewards, (jnp.ones(2), REWARDS, MASK, 0.1)),
        (adv.token_rewards, (jnp.ones(3), REWARDS, MASK[:, :4], 0.1)),
        (adv.gae, (REWARDS, VALUES[:, :1], MASK)),
        (adv.gae, (REWARDS, VALUES, MASK, jnp.ones((3, 1)))),
        (adv.gae, (REWARDS, VALUES, MASK, 0.0, 1.0, jnp.ones((3, 5)))),
    ]
    for function, args in cases:
        with pytest.raises(ValueError, match="expected .* given"):
            inspect.unwrap(function)(*args)
        with pytest.raises((ValueError, TypeError)):
            function(*args)
    with pytest.raises(ValueError, match="kind: expected one of 'k1', 'k2', 'k3', given 'k4'"):
        adv.kl_estimate(REWARDS, REWARDS, "k4")
