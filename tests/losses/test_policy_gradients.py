"""REINFORCE, CISPO, and the reductions that they share with PPO."""

import jax
import jax.numpy as jnp
import numpy as np
from losses import references

from prl_jax.losses import cispo_loss, ppo_policy_loss, reduce_tokens, reinforce_loss

MASK = np.arange(4) < np.array([4, 2, 0])[:, None]
KEPT = jnp.asarray(MASK)
RNG = np.random.default_rng(0)
SAMPLED = -RNG.exponential(size=MASK.shape)
DRAWN = [SAMPLED + 0.3 * RNG.normal(size=MASK.shape), SAMPLED, RNG.normal(size=MASK.shape)]
LOGP, OLD, ADV = (jnp.float32(np.where(MASK, x, np.nan)) for x in DRAWN)


def gradient(loss, **options):
    return np.asarray(jax.grad(lambda logp: loss(logp, OLD, ADV, KEPT, **options).value)(LOGP))


def test_cispo_weighs_tokens_by_a_bounded_ratio_without_gradient():
    options = dict(low=0.3, high=0.2)
    found = cispo_loss(LOGP, OLD, ADV, KEPT, **options)
    expected = references.weighted_logp(
        *map(np.float64, (LOGP, OLD, ADV)), MASK, reduce="token_mean", bounds=(0.7, 1.2)
    )
    np.testing.assert_allclose(found.value, expected, rtol=1e-5)
    ratio = np.exp(np.where(MASK, np.asarray(LOGP - OLD), 0.0))
    weights = np.clip(ratio, 0.7, 1.2)
    np.testing.assert_allclose(
        gradient(cispo_loss, **options)[MASK], -(weights * np.asarray(ADV))[MASK] / MASK.sum(), rtol=1e-5
    )
    clipped = ((ratio < 0.7) | (ratio > 1.2))[MASK].mean()
    total, count = found.aux["clip_fraction"]
    np.testing.assert_allclose(total / count, clipped, rtol=1e-6)
    assert 0 < clipped < 1


def test_a_token_that_ppo_clips_still_moves_the_policy_in_cispo():
    logp, old, adv, one = (jnp.full((1, 1), x) for x in (-0.5, -2.0, 1.0, True))
    stopped = jax.grad(lambda x: ppo_policy_loss(x, old, adv, one).value)(logp)
    moving = jax.grad(lambda x: cispo_loss(x, old, adv, one).value)(logp)
    assert float(stopped[0, 0]) == 0.0 and abs(float(moving[0, 0]) + 1.28) < 1e-6


def test_on_policy_all_three_have_one_gradient():
    losses = (reinforce_loss, cispo_loss, ppo_policy_loss)
    grads = [jax.grad(lambda x, loss=loss: loss(x, LOGP, ADV, KEPT).value)(LOGP) for loss in losses]
    for grad in grads[1:]:
        np.testing.assert_allclose(grad, grads[0], rtol=1e-5, atol=1e-7)
    assert np.abs(np.asarray(grads[0])[MASK]).min() > 0


def test_reinforce_does_not_look_at_the_ratio():
    far = reinforce_loss(LOGP, OLD - 3.0, ADV, KEPT)
    np.testing.assert_array_equal(far.value, reinforce_loss(LOGP, OLD, ADV, KEPT).value)


def test_the_room_divides_all_responses_alike():
    total, count = reduce_tokens(jnp.where(KEPT, 1.0, jnp.nan), KEPT, "seq_mean_room_mean")
    assert float(total) == 6 / 4 and float(count) == 2
