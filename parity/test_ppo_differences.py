"""TRL's PPOTrainer beside prl_jax's losses, where the definitions differ.

Each test shows the difference exactly: TRL's number comes out when TRL's definition is put in, and not otherwise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ppo_step import run
from tiny import EOS, STOP, assert_close, assert_differs, to_jax
from trl.experimental.ppo import ppo_trainer

from prl_jax.losses import (
    chunked_logprobs,
    gae,
    kl_estimate,
    masked_whiten,
    ppo_policy_loss,
    ppo_value_loss,
    token_rewards,
)


def our_rewards(step):
    rollout = step.rollout
    return token_rewards(rollout.scores, rollout.kl, rollout.mask, step.args.kl_coef)


def our_gae(step):
    rollout, lam = step.rollout, step.args.lam
    return gae(our_rewards(step), rollout.values, rollout.mask, gamma=step.args.gamma, lam_actor=lam, lam_critic=lam)


def extra_position(rollout):
    """The one position behind each response that TRL counts in, where there is room for it."""
    return rollout.mask_p1 & ~rollout.mask


def test_score_lies_behind_the_response():
    rollout = run().rollout
    gap = rollout.rewards - our_rewards(run())
    extra = extra_position(rollout)
    last = jnp.pad(extra[:, 1:], ((0, 0), (0, 1)))  # the last token of the rows that have the extra position
    expected = jnp.where(extra, rollout.scores[:, None], 0.0) - jnp.where(last, rollout.scores[:, None], 0.0)
    assert 0 < np.sum(extra) < len(extra)  # rows without room have the score where prl_jax puts it
    assert_close(gap, expected)


def test_advantages_of_the_two_places():
    """TRL: `delta_last = r + gamma V' - V` and one more step `S - V'`; prl_jax: `delta_last = r + S - V`."""
    step = run()
    rollout, gamma, lam = step.rollout, step.args.gamma, step.args.lam
    advantages, returns = our_gae(step)
    extra = extra_position(rollout)
    after = jnp.sum(jnp.where(extra, rollout.values, 0.0), axis=1)  # V' of the state behind the end token
    jump = jnp.where(extra.any(1), gamma * (1 - lam) * after - (1 - gamma * lam) * rollout.scores, 0.0)
    to_go = jnp.sum(rollout.mask, axis=1)[:, None] - 1 - jnp.arange(rollout.mask.shape[1])
    expected = jnp.where(rollout.mask, jump[:, None] * (gamma * lam) ** to_go, 0.0)
    for theirs, ours in ((rollout.raw_advantages, advantages), (rollout.returns, returns)):
        assert_close(jnp.where(rollout.mask, theirs - ours, 0.0), expected, rtol=1e-4)
        assert_differs(jnp.where(rollout.mask, theirs, 0.0), ours)


def test_advantages_agree_without_discount():
    """With gamma = lambda = 1 the two places give the same advantages and returns on the response."""
    step = run(gamma=1.0, lam=1.0)
    advantages, returns = our_gae(step)
    mask = step.rollout.mask
    assert_close(advantages, jnp.where(mask, step.rollout.raw_advantages, 0.0))
    assert_close(returns, jnp.where(mask, step.rollout.returns, 0.0))
    assert_close(masked_whiten(advantages, mask, ddof=1), step.rollout.advantages)


def test_room_behind_the_response_changes_its_advantages():
    """The same sampled row, with and without room for one more token."""
    roomy = run()
    ended = jnp.any(roomy.rollout.responses == EOS, axis=1)
    lengths = jnp.where(ended, jnp.sum(roomy.rollout.mask, axis=1), 0)
    row, length = int(jnp.argmax(lengths)), int(jnp.max(lengths))
    assert length < roomy.rollout.mask.shape[1]
    tight = run(response_length=length)  # the same seed draws the same tokens, as far as they go
    assert np.all(roomy.rollout.responses[row, :length] == tight.rollout.responses[row])
    assert_close(tight.rollout.scores[row], roomy.rollout.scores[row])
    assert_close(our_gae(tight)[0][row], our_gae(roomy)[0][row, :length])
    assert_differs(tight.rollout.raw_advantages[row], roomy.rollout.raw_advantages[row, :length])


def test_value_loss_counts_the_state_behind_the_response():
    step = run()
    rollout = step.rollout
    for update in step.updates:

        def loss(values, mask, update=update):
            out = ppo_value_loss(values, update.mb_values, update.mb_return, mask, clip_value=step.args.cliprange_value)
            return out.value

        mask, mask_p1 = rollout.mask[update.rows], rollout.mask_p1[update.rows]
        extra = extra_position(rollout)[update.rows]
        assert_close(loss(update.vpred, mask_p1), update.vf_loss)
        assert_differs(loss(update.vpred, mask), update.vf_loss)
        # What TRL's critic learns there is the score itself.
        target = jnp.sum(jnp.where(extra, update.mb_return, 0.0), axis=1)
        assert_close(target, jnp.where(extra.any(1), rollout.scores[update.rows], 0.0))
        assert np.any(update.grad_vpred[extra] != 0)
        assert np.all(jax.grad(loss)(update.vpred, mask)[extra] == 0)


def test_whitening_deviation():
    rollout = run().rollout
    count = jnp.sum(rollout.mask)
    ours = masked_whiten(rollout.raw_advantages, rollout.mask)
    assert_close(ours * jnp.sqrt((count - 1) / count), rollout.advantages)
    assert_close(jnp.mean(jnp.square(ours)[rollout.mask]), 1.0)
    assert_differs(jnp.mean(jnp.square(rollout.advantages)[rollout.mask]), jnp.ones(()))


def test_whitening_small_advantages():
    """1e-8 is added to the variance by TRL and to the deviation by prl_jax, whose result has no scale of its own."""
    rollout = run().rollout
    small = rollout.raw_advantages * 1e-4
    theirs = to_jax(ppo_trainer.masked_whiten(torch.tensor(np.asarray(small)), torch.tensor(np.asarray(rollout.mask))))
    theirs = jnp.where(rollout.mask, theirs, 0.0)
    ours = masked_whiten(small, rollout.mask, ddof=1)
    variance = jnp.var(small[rollout.mask], ddof=1)
    assert_close(ours, rollout.advantages, rtol=1e-3)
    assert_close(ours * jnp.sqrt(variance / (variance + 1e-8)), theirs, rtol=1e-3)
    assert_differs(ours, theirs)


def test_whitening_one_token():
    one, mask = torch.tensor([[0.7, 3.0]]), torch.tensor([[True, False]])
    assert torch.isnan(ppo_trainer.masked_whiten(one, mask)[0, 0])
    assert np.all(masked_whiten(to_jax(one), to_jax(mask)) == 0.0)


def test_pad_equal_to_eos_drops_the_end_token():
    step = run(pad_is_eos=True)
    rollout, update, lam = step.rollout, step.updates[0], step.args.lam
    ends = rollout.responses == EOS
    lengths = jnp.where(ends.any(1), jnp.argmax(ends, axis=1) + 1, ends.shape[1])
    mask = jnp.arange(ends.shape[1]) < lengths[:, None]  # from lengths, as prl_jax's sampler gives it
    dropped = mask & ~rollout.mask
    assert np.all(dropped == (ends & mask)) and np.sum(dropped) > 2
    assert np.all(rollout.logprobs[dropped] == ppo_trainer.INVALID_LOGPROB)

    def grad(logp, logp_old, advantages, mask):
        return jax.grad(lambda logp: ppo_policy_loss(logp, logp_old, advantages, mask).value)(logp)

    theirs = grad(update.new_logprobs, update.mb_logprobs, update.mb_advantage, rollout.mask[update.rows])
    assert_close(theirs, update.grad_new_logprobs)
    assert np.all(theirs[dropped[update.rows]] == 0)

    temperature = step.args.temperature
    logp, _ = chunked_logprobs(
        update.hidden, update.head, update.mb_responses, mask[update.rows], temperature=temperature
    )
    rewards = token_rewards(rollout.scores, rollout.kl, mask, step.args.kl_coef)
    raw, _ = gae(rewards, rollout.values, mask, gamma=step.args.gamma, lam_actor=lam, lam_critic=lam)
    ours = grad(logp, logp, masked_whiten(raw, mask)[update.rows], mask[update.rows])
    assert np.all(ours[dropped[update.rows]] != 0)


def test_penalty_follows_the_eos_token_not_the_stop_token():
    step = run(stop_token=None, stop_token_id=STOP)
    rollout, penalty = step.rollout, step.args.missing_eos_penalty
    stops = rollout.responses == STOP
    before_stop = jnp.cumsum(stops, axis=1) - stops == 0
    has_eos = jnp.any((rollout.responses == EOS) & before_stop, axis=1)
    truncated = ~stops.any(1)
    assert_close(rollout.raw_scores - penalty * ~has_eos, rollout.scores)
    wrong = has_eos == truncated  # stopped, but penalised; or cut, but not penalised
    assert np.any(wrong & ~truncated)
    assert_close(jnp.abs(rollout.raw_scores - penalty * truncated - rollout.scores), penalty * wrong)


def test_accumulation_is_a_mean_of_means():
    whole = run(num_ppo_epochs=1)
    parts = run(num_ppo_epochs=1, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert np.all(whole.rollout.responses == parts.rollout.responses)
    mask, clip = parts.rollout.mask, parts.args.cliprange
    counts = [jnp.sum(mask[update.rows]) for update in parts.updates]
    assert len(counts) == 4 and len({int(count) for count in counts}) > 1
    theirs, ours = jnp.zeros(mask.shape), jnp.zeros(mask.shape)
    for update, count in zip(parts.updates, counts, strict=True):

        def loss(logp, update=update):
            return ppo_policy_loss(
                logp, update.mb_logprobs, update.mb_advantage, mask[update.rows], clip_low=clip, clip_high=clip
            )

        grad = jax.grad(lambda logp: loss(logp).sum)(update.new_logprobs)
        assert_close(grad / count / len(counts), update.grad_new_logprobs)
        theirs = theirs.at[update.rows].set(update.grad_new_logprobs)
        ours = ours.at[update.rows].set(grad / jnp.sum(mask))  # the global denominator
    (one,) = whole.updates
    unsplit = jnp.zeros(mask.shape).at[one.rows].set(one.grad_new_logprobs)
    assert_close(ours, unsplit, rtol=1e-4)
    assert_differs(theirs, unsplit)


def test_accumulation_ends_with_the_prompts():
    """In the last batch of prompts TRL's optimizer steps after each microbatch, so that the second ratio is not 1."""
    middle, last = (
        run(prompts=prompts, num_ppo_epochs=1, per_device_train_batch_size=2, gradient_accumulation_steps=4)
        for prompts in (16, 8)
    )
    assert_close(middle.updates[1].ratio, jnp.ones_like(middle.updates[1].ratio))
    assert_differs(last.updates[1].ratio, jnp.ones_like(last.updates[1].ratio))


def test_gradients_are_not_clipped():
    tight, loose = run(max_grad_norm=1e-6), run(max_grad_norm=1e6)
    for ours, theirs in zip(tight.updates, loose.updates, strict=True):
        assert np.all(ours.new_logprobs == theirs.new_logprobs)
        assert np.all(ours.vpred == theirs.vpred)


def test_logged_divergence_ratio_and_entropy():
    """TRL averages over padding too, where the ratio is 1 and the difference 0, and logs k2 for the divergence."""
    step = run()
    rollout = step.rollout
    share = jnp.mean(rollout.mask)
    ours, k2, entropy = [], [], []
    for update in step.updates:
        mask = rollout.mask[update.rows]
        loss = ppo_policy_loss(update.new_logprobs, update.mb_logprobs, update.mb_advantage, mask)
        ours.append({name: total / count for name, (total, count) in loss.aux.items()})
        k2.append(jnp.mean(kl_estimate(update.mb_logprobs, update.new_logprobs, "k2")))
        everywhere = jnp.ones_like(mask)
        entropy.append(
            [
                jnp.mean(
                    chunked_logprobs(
                        update.hidden, update.head, update.mb_responses, m, temperature=step.args.temperature
                    )[1][m]
                )
                for m in (mask, everywhere)
            ]
        )
    ratio = np.mean([float(one["ratio"]) for one in ours])
    approx_kl = np.mean([float(one["approx_kl"]) for one in ours])
    over_tokens, over_all = np.mean(entropy, axis=0)
    assert_close(share * ratio + 1 - share, step.logged["val/ratio"])
    assert_differs(ratio - 1, step.logged["val/ratio"] - 1)
    assert_close(np.mean(k2), step.logged["policy/approxkl_avg"])
    assert_differs(approx_kl, step.logged["policy/approxkl_avg"])
    assert_close(over_all, step.logged["policy/entropy_avg"])
    assert_differs(over_tokens, step.logged["policy/entropy_avg"])


def test_old_log_probabilities_come_from_the_sampler():
    """In float32 sampling and scoring agree; in bfloat16 TRL's first ratio is not 1."""
    fine, coarse = run(), run(dtype=torch.bfloat16)
    first = fine.updates[0]
    assert_close(first.mb_logprobs, first.new_logprobs)
    first = coarse.updates[0]
    mask = coarse.rollout.mask[first.rows]
    theirs = ppo_policy_loss(first.new_logprobs, first.mb_logprobs, first.mb_advantage, mask)
    assert_close(theirs.value, first.pg_loss, scale=1.0)
    assert jnp.max(jnp.abs(first.ratio - 1)) > 1e-3
    ours = ppo_policy_loss(first.new_logprobs, first.new_logprobs, first.mb_advantage, mask)
    ratio, count = ours.aux["ratio"]
    assert ratio == count
