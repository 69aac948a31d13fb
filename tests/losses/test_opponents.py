"""Opponent sets, group baselines, and the bridges between the pairwise surrogate and policy gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prl_jax.losses import (
    even_reward,
    gae,
    group_advantage,
    opponents,
    pairwise_policy_loss,
    pairwise_rl_reward,
    symmetrise,
    token_rewards,
    win_rate,
)

EVERYONE = jnp.ones((2, 4, 4), bool)


def test_masks_by_hand():
    assert opponents("anchor", EVERYONE).all()
    peers = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    np.testing.assert_array_equal(opponents("peer", EVERYONE)[1], peers)
    np.testing.assert_array_equal(opponents("group", EVERYONE)[0], 1 - np.eye(4))
    missing = EVERYONE.at[0, :, 2].set(False)
    for kind in ("anchor", "peer", "group"):
        np.testing.assert_array_equal(opponents(kind, missing), opponents(kind, EVERYONE) & missing)


def test_a_pool_is_drawn_without_replacement_for_each_prompt():
    there = (jnp.arange(5)[None] < jnp.array([5, 3, 1])[:, None])[:, None].repeat(2, 1)  # three prompts, groups of two
    met = np.zeros((3, 5))
    for seed in range(200):
        keys = jax.random.split(jax.random.key(seed), 3)
        mask = np.asarray(opponents("pool", there, keys=keys, draws=2))
        np.testing.assert_array_equal(mask.sum(-1), [[2, 2], [2, 2], [1, 1]])
        np.testing.assert_array_equal(mask[:, 0], mask[:, 1])
        assert not mask[~np.asarray(there)].any()
        met += mask[:, 0]
    np.testing.assert_allclose(met / 200, [[0.4] * 5, [2 / 3] * 3 + [0, 0], [1, 0, 0, 0, 0]], atol=0.12)
    # A prompt's draw is its own key's, whatever its batch is.
    keys = jax.random.split(jax.random.key(0), 3)
    whole = opponents("pool", there, keys=keys)
    np.testing.assert_array_equal(opponents("pool", there[1:], keys=keys[1:]), whole[1:])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="kind: expected one of 'anchor', 'peer', 'group', 'pool', given 'rival'"):
        opponents("rival", EVERYONE)
    with pytest.raises(ValueError, match=r"exists: expected shape \(B, G, G\) for 'group', given \(2, 4, 3\)"):
        opponents("group", EVERYONE[..., :3])
    with pytest.raises(ValueError, match="'pool' needs a key a prompt and at least 1 draw"):
        opponents("pool", EVERYONE)


@pytest.mark.parametrize("f", ["id", "centred", "logit", "log"])
def test_value_targets_of_an_even_match_are_the_even_reward_at_every_token(f):
    """A policy that equals its opponent, judged without KL: the critic's targets are where `even_reward` starts it."""
    mask = jnp.arange(5)[None] < jnp.array([[5], [2]])
    z = jnp.zeros((2, 3))
    reward = pairwise_rl_reward(z, z, jnp.ones((2, 3), bool), f=f)
    start = jnp.full((2, 5), even_reward(f))
    advantages, targets = gae(token_rewards(reward, jnp.zeros((2, 5)), mask, 0.1), start, mask)
    np.testing.assert_allclose(targets, jnp.where(mask, even_reward(f), 0.0), rtol=1e-5)
    np.testing.assert_allclose(advantages, np.zeros((2, 5)), atol=1e-6)


def test_value_targets_are_the_win_probability_at_every_token():
    """With a critic's lambda of 1 they don't depend on the critic, as `V(x, y_<t) = E[p | x, y_<t]` asks."""
    mask, z = jnp.arange(5)[None] < jnp.array([[5], [3]]), jnp.array([[1.3], [-0.4]])
    reward = pairwise_rl_reward(z, -z, jnp.ones((2, 1), bool))
    values = jax.random.normal(jax.random.key(0), (2, 5))
    _, targets = gae(token_rewards(reward, jnp.zeros((2, 5)), mask, 0.0), values, mask, lam_critic=1.0)
    np.testing.assert_allclose(targets, jnp.where(mask, jax.nn.sigmoid(z), 0.0), rtol=1e-5)


def test_a_shift_of_a_prompts_scores_drops_out_of_comparisons_and_not_of_scores():
    """What a scalar reward has to be calibrated for: the same responses, all of a prompt's scores moved by 3."""
    mask, values = jnp.ones((2, 4), bool), jnp.zeros((2, 4))
    scores, anchor = jnp.array([1.0, -0.5]), jnp.array([0.3, 0.3])
    shift = jnp.array([3.0, 0.0])

    def compared(r, a):
        z = (r - a)[:, None]
        return pairwise_rl_reward(z, -z, jnp.ones((2, 1), bool))

    np.testing.assert_allclose(compared(scores + shift, anchor + shift), compared(scores, anchor), rtol=1e-6)

    def advantages(r):
        return gae(token_rewards(r, jnp.zeros((2, 4)), mask, 0.0), values, mask)[0]

    plain, moved = advantages(scores), advantages(scores + shift)
    assert np.abs(moved - plain)[0].min() > 2.0, "PPO on scores should feel the shift"
    np.testing.assert_array_equal(moved[1], plain[1])
    squashed = jax.nn.sigmoid(scores + shift) - jax.nn.sigmoid(scores)
    assert abs(float(squashed[0])) > 0.2, "squashing without a reference should feel it too"


# Group baselines


R = jnp.array([[1.0, 0.0, 2.5, -1.0], [0.3, 0.3, 0.3, 0.3]])
ALL = jnp.ones((2, 4), bool)


@pytest.mark.parametrize("kind", ["leave_one_out", "mean", "standardised"])
def test_group_advantages_add_up_to_zero_and_ignore_a_shift_of_the_prompt(kind):
    advantage = group_advantage(R, ALL, kind=kind)
    np.testing.assert_allclose(advantage.sum(-1), [0.0, 0.0], atol=1e-5)
    np.testing.assert_allclose(group_advantage(R + jnp.array([[3.0], [-5.0]]), ALL, kind=kind), advantage, atol=1e-4)
    assert np.abs(advantage[0]).min() > 0.1 and not np.any(advantage[1])


def test_standardised_ignores_the_scale_and_two_members_get_half_a_root():
    np.testing.assert_allclose(
        group_advantage(7.0 * R, ALL, kind="standardised", eps=0.0),
        group_advantage(R, ALL, kind="standardised", eps=0.0),
        rtol=1e-5,
    )
    two = group_advantage(jnp.array([[1.0, 0.0]]), jnp.ones((1, 2), bool), kind="standardised", eps=0.0)
    np.testing.assert_allclose(two, [[np.sqrt(0.5), -np.sqrt(0.5)]], rtol=1e-5)


def test_leave_one_out_is_the_mean_difference_from_the_others():
    advantage = group_advantage(R, ALL)
    gaps = np.asarray(R)[:, :, None] - np.asarray(R)[:, None]
    np.testing.assert_allclose(advantage, gaps.sum(-1) / 3, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(advantage, group_advantage(R, ALL, kind="mean") * 4 / 3, rtol=1e-5)


def test_round_robin_win_rates_have_the_constant_baseline_one_half():
    z = jax.random.normal(jax.random.key(1), (3, 5, 5))
    wins = win_rate(symmetrise(z, jnp.swapaxes(z, 1, 2)), jnp.ones((3, 5, 5), bool))
    np.testing.assert_allclose(wins.sum(-1), [2.5] * 3, rtol=1e-5)
    np.testing.assert_allclose(group_advantage(wins, jnp.ones((3, 5), bool), kind="mean"), wins - 0.5, atol=1e-6)


def test_all_pairs_of_the_joint_surrogate_are_the_policy_gradient_with_a_group_baseline():
    """On-policy with `beta = 0`: the sum over pairs has the gradient of `G / 2` REINFORCE with the group's mean."""
    size = 4
    rewards, logits = jax.random.uniform(jax.random.key(2), (size,)), jax.random.normal(jax.random.key(3), (size, 6))
    i, j = np.triu_indices(size, 1)
    win = 0.5 * (1.0 + rewards[i] - rewards[j])  # `2 win - 1` is the gap of the rewards

    def logps(parameters):
        return jax.nn.log_softmax(logits * parameters[None], -1)[:, 0]

    def pairs(parameters):
        new, old = logps(parameters), jax.lax.stop_gradient(logps(parameters))
        return pairwise_policy_loss(new[i], new[j], old[i], old[j], win, beta=0.0).sum

    def reinforce(parameters):
        advantage = group_advantage(rewards[None], jnp.ones((1, size), bool), kind="mean")[0]
        return -jnp.sum(advantage * logps(parameters))

    at = jnp.ones(6)
    np.testing.assert_allclose(jax.grad(pairs)(at), size / 2 * jax.grad(reinforce)(at), rtol=1e-4, atol=1e-6)
