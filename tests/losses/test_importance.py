"""Responses that an older policy has sampled: what their weights are, and that they undo the older policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prl_jax.losses import reinforce_loss, truncated_importance
from prl_jax.methods.surrogates import CISPO, Frozen, PairClip, Reinforce, SingleRegression, TokenClip

MASK = np.arange(4) < np.array([4, 2, 0])[:, None]
KEPT = jnp.asarray(MASK)
RNG = np.random.default_rng(3)
OLDER, LOGP, ADV = (jnp.float32(np.where(MASK, RNG.normal(size=MASK.shape) - 1.0, np.nan)) for _ in range(3))
RATIO = np.exp(np.where(MASK, np.float64(LOGP) - np.float64(OLDER), 0.0))


def test_weights_are_ratios_up_to_the_cap():
    found = truncated_importance(LOGP, OLDER, KEPT, cap=1.5)
    np.testing.assert_allclose(found, np.where(MASK, np.minimum(RATIO, 1.5), 0.0), rtol=1e-5)
    assert (RATIO[MASK] > 1.5).any() and (RATIO[MASK] < 1.0).any()
    grad = jax.grad(lambda x: truncated_importance(x, OLDER, KEPT, cap=1.5).sum())(LOGP)
    assert not np.asarray(grad).any()


def test_a_sequence_has_one_weight():
    found = np.asarray(truncated_importance(LOGP, OLDER, KEPT, cap=50.0, level="sequence"))
    means = [np.exp(np.log(row[mask]).mean()) if mask.any() else 0.0 for row, mask in zip(RATIO, MASK, strict=True)]
    np.testing.assert_allclose(found, np.where(MASK, np.array(means)[:, None], 0.0), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"), [(dict(cap=0.5), "cap: .*at least 1"), (dict(cap=2.0, level="x"), "level")]
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        truncated_importance(LOGP, OLDER, KEPT, **options)


def test_weighted_samples_of_an_older_policy_have_the_gradient_of_new_ones():
    """Of a policy over five tokens, in expectation by enumeration; without weights the gradient is another one."""
    logits, older, adv = (jnp.asarray(RNG.normal(size=5), jnp.float32) for _ in range(3))
    all_kept = jnp.ones((5, 1), bool)

    def gradient(sampler, weights):
        """Each token is a response; the loss of one is weighed by how often it is sampled."""

        def loss(logits):
            logp = jax.nn.log_softmax(logits)[:, None]
            return 5 * reinforce_loss(logp, logp, (sampler * weights * adv)[:, None], all_kept).value

        return jax.grad(loss)(logits)

    logp, logp_older = jax.nn.log_softmax(logits), jax.nn.log_softmax(older)
    weights = truncated_importance(logp[:, None], logp_older[:, None], all_kept, cap=1e6)[:, 0]
    on_policy = gradient(jnp.exp(logp), jnp.ones(5))
    np.testing.assert_allclose(gradient(jnp.exp(logp_older), weights), on_policy, rtol=1e-4, atol=1e-6)
    assert np.abs(gradient(jnp.exp(logp_older), jnp.ones(5)) - on_policy).max() > 0.01


@pytest.mark.parametrize("surrogate", [TokenClip(dual=3.0), TokenClip(ratio="sequence"), Reinforce(), CISPO()])
def test_each_token_weighs_as_its_ratio_to_the_sampler(surrogate):
    """Loss by loss: that of one token alone is as many times as large as its weight."""
    level = getattr(surrogate, "ratio", "token")
    weights = np.asarray(truncated_importance(LOGP, OLDER, KEPT, cap=1.5, level=level))
    trained, older, logp, adv = (jnp.where(KEPT, x, 0.0) for x in (LOGP + 0.3, OLDER, LOGP, ADV))
    frozen = Frozen(logp, logp, adv, KEPT)
    older, found = surrogate.corrected(frozen, older, 1.5)
    np.testing.assert_array_equal(found, weights)
    for i, t in zip(*np.nonzero(MASK), strict=True):
        alone = np.zeros_like(MASK)
        alone[i, t] = True
        one, other = (
            surrogate(trained, x._replace(advantages=jnp.where(jnp.asarray(alone), x.advantages, 0.0)), jnp.float32(0))
            for x in (frozen, older)
        )
        np.testing.assert_allclose(other.sum, weights[i, t] * one.sum, rtol=1e-5)
        assert float(one.sum) != 0


def test_losses_of_whole_responses_ask_who_sampled():
    kept = jnp.ones((2, 3), bool)
    frozen = Frozen(*(jnp.asarray(RNG.normal(size=(2, 3)), jnp.float32) for _ in range(3)), kept)
    sampled = frozen.logp_old - 0.5
    for surrogate in (PairClip(), SingleRegression()):
        found, weights = surrogate.corrected(frozen, sampled, 2.0)
        assert weights is None
        np.testing.assert_array_equal(found.logp_old, sampled)
        np.testing.assert_array_equal(found.advantages, frozen.advantages)
