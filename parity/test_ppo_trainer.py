"""TRL's PPOTrainer beside prl_jax's losses, where both define the same thing.

The score's place differs (test_ppo_differences.py). Fed with TRL's `mask_p1`, a response and one more position, and
with TRL's advantages, everything else is the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ppo_step import run
from tiny import EOS, assert_close

from prl_jax.losses import (
    chunked_logprobs,
    gae,
    kl_estimate,
    masked_whiten,
    ppo_policy_loss,
    ppo_value_loss,
    token_rewards,
)


def policy_loss(step, update, logp):
    mask = step.rollout.mask[update.rows]
    clip = step.args.cliprange
    return ppo_policy_loss(logp, update.mb_logprobs, update.mb_advantage, mask, clip_low=clip, clip_high=clip)


def value_loss(step, update, values):
    mask = step.rollout.mask_p1[update.rows]
    return ppo_value_loss(values, update.mb_values, update.mb_return, mask, clip_value=step.args.cliprange_value)


def test_the_rollout_has_all_kinds_of_rows():
    """With all of them the other tests are worth something: ended, cut and clipped responses of several lengths."""
    step = run()
    lengths, room = np.sum(step.rollout.mask, axis=1), step.rollout.mask.shape[1]
    assert len(set(lengths.tolist())) > 3 and min(lengths) < room - 1 and max(lengths) == room
    assert not np.all(np.any(step.rollout.responses == EOS, axis=1))
    assert 0.05 < step.logged["policy/clipfrac_avg"] < 0.5
    assert 0.05 < step.logged["val/clipfrac_avg"] < 0.5


def test_the_end_token_is_an_action():
    rollout = run().rollout
    ends = rollout.responses == EOS
    lengths = jnp.where(ends.any(1), jnp.argmax(ends, axis=1) + 1, ends.shape[1])
    assert np.all(rollout.mask == (jnp.arange(ends.shape[1]) < lengths[:, None]))


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_kl_estimate(kind):
    rollout = run(kl_estimator=kind).rollout
    kl = kl_estimate(rollout.logprobs, rollout.ref_logprobs, kind, mask=rollout.mask)
    assert jnp.max(jnp.abs(kl)) > 0.5
    assert_close(kl, rollout.kl)


def test_log_probabilities_at_the_sampling_temperature():
    """TRL divides logits by `temperature + 1e-7`, which float32 log-probabilities hardly show."""
    step = run()
    for update in step.updates:
        mask = step.rollout.mask[update.rows]
        logp, _ = chunked_logprobs(
            update.hidden, update.head, update.mb_responses, mask, temperature=step.args.temperature
        )
        assert_close(logp, jnp.where(mask, update.new_logprobs, 0.0))


def test_missing_end_penalty():
    step = run()
    truncated = ~jnp.any(step.rollout.responses == EOS, axis=1)
    assert_close(step.rollout.raw_scores - step.args.missing_eos_penalty * truncated, step.rollout.scores)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_rewards_given_the_place_of_the_score(kind):
    step = run(kl_estimator=kind)
    rollout = step.rollout
    assert rollout.rewards.dtype == jnp.float32
    assert_close(token_rewards(rollout.scores, rollout.kl, rollout.mask_p1, step.args.kl_coef), rollout.rewards)


def test_advantages_and_returns_given_the_rewards():
    step = run()
    rollout, lam = step.rollout, step.args.lam
    advantages, returns = gae(
        rollout.rewards, rollout.values, rollout.mask_p1, gamma=step.args.gamma, lam_actor=lam, lam_critic=lam
    )
    assert_close(advantages, rollout.raw_advantages)
    assert_close(returns, rollout.returns)  # taken before whitening, in both


def test_whitening_with_the_deviation_of_a_sample():
    rollout = run().rollout
    assert_close(masked_whiten(rollout.raw_advantages, rollout.mask, ddof=1), rollout.advantages)


def test_whitened_rewards():
    rollout = run(whiten_rewards=True).rollout
    whitened = masked_whiten(rollout.raw_rewards, rollout.mask_p1, shift_mean=False, ddof=1)
    assert_close(whitened, rollout.rewards)


def test_policy_loss_and_gradient():
    step = run()
    clipped = []
    for update in step.updates:
        loss, grad = jax.value_and_grad(lambda logp, u=update: policy_loss(step, u, logp).value)(update.new_logprobs)
        assert_close(loss, update.pg_loss, scale=1.0)  # whitened advantages cancel out in the first update
        assert_close(grad, update.grad_new_logprobs)
        total, count = policy_loss(step, update, update.new_logprobs).aux["clip_fraction"]
        clipped.append(total / count)
    assert_close(jnp.mean(jnp.array(clipped)), step.logged["policy/clipfrac_avg"])


def test_gradient_of_the_policy_loss_to_hidden_states():
    """Log-probabilities and loss together, back to the output embedding's input."""
    step = run()
    for update in step.updates:
        mask = step.rollout.mask[update.rows]

        def loss(hidden, update=update, mask=mask):
            logp, _ = chunked_logprobs(
                hidden, update.head, update.mb_responses, mask, temperature=step.args.temperature
            )
            return policy_loss(step, update, logp).value

        grad = jax.grad(loss)(update.hidden)[..., :-1]  # without the column that carries the bias
        assert_close(grad, update.grad_hidden)


def test_value_loss_and_gradient_given_the_mask():
    step = run()
    clipped = []
    for update in step.updates:
        loss, grad = jax.value_and_grad(lambda v, u=update: value_loss(step, u, v).value)(update.vpred)
        assert_close(loss, update.vf_loss)
        assert_close(step.args.vf_coef * grad, update.grad_vpred)
        total, count = value_loss(step, update, update.vpred).aux["clip_fraction"]
        clipped.append(total / count)
    assert_close(jnp.mean(jnp.array(clipped)), step.logged["val/clipfrac_avg"])


def test_total_loss():
    step = run()
    for update in step.updates:
        policy, value = policy_loss(step, update, update.new_logprobs), value_loss(step, update, update.vpred)
        assert_close(policy.value + step.args.vf_coef * value.value, update.loss)
