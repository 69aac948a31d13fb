"""Rows 1, 2, 5, 11, 12 and 14 of the correctness list: what an update is given to learn from."""

import jax
import numpy as np
import pytest
from correctness.world import (
    BETA,
    GAMMA,
    LAM_ACTOR,
    LAM_CRITIC,
    LENGTHS,
    PENALTY,
    PLAIN,
    SCORE,
    TRUNCATED,
    VALID,
    plain_gae,
    token_rewards,
)
from fakes import UtilityJudge, user

from prl_jax.errors import UserError
from prl_jax.methods import LossKL, Peer, RewardKL, WinProbability, piece_of
from prl_jax.stages import config as stage_config
from prl_jax.training.compare import rewards_of
from prl_jax.training.schedule import check_together

LAST = np.array(LENGTHS) - 1
# KL in the loss, so that rewards are scores, and other switches the other way.
OTHER = PLAIN.but(
    baseline=dict(whiten=True, bootstrap_truncated=True),
    regulariser=LossKL(coefficient=BETA),
    schedule=dict(missing_eos_penalty=0.0),
)
MASKED = PLAIN.but(baseline=dict(whiten=True), schedule=dict(mask_truncated=True))


def expected_targets(truth, rewards, *, bootstrap: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Advantages before whitening, and returns."""
    end = truth.after * TRUNCATED * bootstrap
    advantages, critic = (plain_gae(truth, rewards, end, lam) for lam in (LAM_ACTOR, LAM_CRITIC))
    return advantages, np.where(VALID, critic + truth.values, 0.0)


def test_row_01_the_score_is_added_on_the_last_response_token(freeze):
    """Returns are linear in the score: each token gets its share of what lies on the last one."""
    experience, zero = freeze()[0], freeze(score=np.zeros(4))[0]
    ahead = LAST[:, None] - np.arange(VALID.shape[1])
    share = np.where(VALID, (GAMMA * LAM_CRITIC) ** np.maximum(ahead, 0), 0.0)
    np.testing.assert_allclose(experience.critique.returns - zero.critique.returns, SCORE[:, None] * share, atol=1e-5)


def test_row_02_a_win_probability_survives_as_a_float(freeze):
    """Judge, comparison and reward: 0.73 stays 0.73, and logits smaller than 1 are not 0."""
    judge = UtilityJudge(lambda prompt, response: {"a": 0.99, "b": -0.004, "c": 0.4, "d": -0.3}[response])
    prompts, responses = [user("p")] * 2 + [user("q")] * 2, ["a", "b", "c", "d"]
    keys = jax.random.split(jax.random.key(0), 2)
    options = dict(group_size=2, anchors=[()] * 4, keys=keys)
    reward = rewards_of([judge], Peer(), WinProbability(), prompts, responses, **options).reward
    wins = 1 / (1 + np.exp(-np.array([0.994, -0.994, 0.7, -0.7])))
    np.testing.assert_allclose(wins[0], 0.73, atol=1e-3)
    experience, zero = freeze(score=reward)[0], freeze(score=np.zeros(4))[0]
    np.testing.assert_allclose((experience.critique.returns - zero.critique.returns)[range(4), LAST], wins, atol=1e-5)
    floats = (*experience.frozen[:3], *experience.critique[1:])
    assert all(x.dtype == np.float32 for x in floats)


def test_row_05_the_penalty_is_the_configured_one_and_on_truncated_rows_alone(freeze, truth):
    rewards = token_rewards(SCORE - PENALTY * TRUNCATED, BETA * (truth.logp - truth.logp_ref))
    experience, metrics = freeze()
    np.testing.assert_allclose(experience.critique.returns, expected_targets(truth, rewards)[1], atol=1e-4)
    np.testing.assert_allclose([metrics["truncated"], metrics["score"]], [0.25, (SCORE - PENALTY * TRUNCATED).mean()])


def test_row_05_truncated_rows_leave_the_policy_loss_when_asked(freeze):
    plain, other = freeze()[0], freeze(MASKED)[0]
    np.testing.assert_array_equal(plain.frozen.mask, VALID)
    np.testing.assert_array_equal(other.frozen.mask, VALID & ~TRUNCATED[:, None])
    np.testing.assert_array_equal(other.mask, VALID)  # the critic learns from them all the same


def test_row_11_the_reward_holds_k1(freeze, truth):
    d = truth.logp_ref - truth.logp
    _, returns = expected_targets(truth, token_rewards(SCORE - PENALTY * TRUNCATED, BETA * -d))
    experience, metrics = freeze()
    np.testing.assert_allclose(experience.critique.returns, returns, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(metrics["kl"], -d.sum(1).mean(), rtol=1e-4)


def test_row_11_the_reported_divergence_is_the_unbiased_one_where_the_loss_has_another(freeze, truth):
    _, metrics = freeze(OTHER)
    np.testing.assert_allclose(metrics["kl"], (truth.logp - truth.logp_ref).sum(1).mean(), rtol=1e-4)


def test_row_11_a_negative_kl_is_reported_as_it_is(freeze, rollout, truth):
    """Of the four rows the one whose tokens the reference likes better than the policy does, four times."""
    sums = (truth.logp - truth.logp_ref).sum(1)
    worst = int(sums.argmin())
    assert sums[worst] < -0.1
    _, metrics = freeze(rollout=jax.tree.map(lambda x: x[np.full(4, worst)], rollout))
    np.testing.assert_allclose(metrics["kl"], sums[worst], rtol=1e-4)


def test_row_11_k1_is_refused_in_the_loss_and_the_others_in_the_reward():
    for kind in ("k2", "k3"):
        assert LossKL(estimator=kind).estimator == kind
    with pytest.raises(UserError, match="estimator='k1', expected one of 'k2', 'k3'"):
        LossKL(estimator="k1")
    assert piece_of("regulariser", {"kind": "reward_kl"}) == RewardKL()
    with pytest.raises(UserError, match="regulariser.estimator: 'reward_kl' has no such key"):
        piece_of("regulariser", {"kind": "reward_kl", "estimator": "k3"})


def test_row_11_a_stage_has_k1_in_the_reward_by_default():
    assert {stage_config.online(name)["regulariser"]["kind"] for name in ("ppo", "pairwise_rl")} == {"reward_kl"}


def test_row_12_whitening_runs_over_all_valid_tokens_and_returns_are_taken_before(freeze, truth):
    rewards = token_rewards(np.where(TRUNCATED, 0.0, SCORE), 0.0)
    advantages, returns = expected_targets(truth, rewards, bootstrap=True)
    experience, _ = freeze(OTHER)
    valid = advantages[VALID]
    np.testing.assert_allclose(experience.frozen.advantages[VALID], (valid - valid.mean()) / valid.std(), atol=1e-3)
    assert (experience.frozen.advantages[~VALID] == 0).all()
    np.testing.assert_allclose(experience.critique.returns, returns, atol=1e-4)


def test_row_14_the_value_after_the_end_is_0_or_the_critics_after_a_truncation(freeze, truth):
    """By a switch. The last row fills its room too, but with a stop token."""
    _, plain = expected_targets(truth, token_rewards(SCORE - PENALTY * TRUNCATED, BETA * (truth.logp - truth.logp_ref)))
    np.testing.assert_allclose(freeze()[0].critique.returns, plain, atol=1e-4)
    rewards = token_rewards(np.where(TRUNCATED, 0.0, SCORE), 0.0)
    _, bootstrapped = expected_targets(truth, rewards, bootstrap=True)
    np.testing.assert_allclose(freeze(OTHER)[0].critique.returns, bootstrapped, atol=1e-4)
    assert np.abs(truth.after).min() > 1e-2


def test_row_23_whitening_counts_the_tokens_that_train_the_policy(freeze, truth):
    """What a truncated response would have earned moves no other advantage."""
    rewards = token_rewards(SCORE - PENALTY * TRUNCATED, BETA * (truth.logp - truth.logp_ref))
    advantages, _ = expected_targets(truth, rewards)
    kept = VALID & ~TRUNCATED[:, None]
    expected = (advantages[kept] - advantages[kept].mean()) / advantages[kept].std()
    np.testing.assert_allclose(freeze(MASKED)[0].frozen.advantages[kept], expected, atol=1e-3)
    worse = np.where(TRUNCATED, -50.0, SCORE)
    np.testing.assert_allclose(freeze(MASKED, score=worse)[0].frozen.advantages[kept], expected, atol=1e-3)


def test_row_24_a_bootstrapped_response_earns_a_value_or_a_score_and_not_both(freeze, truth):
    """Its last token's target is the value behind it, whatever its score is; the others keep theirs."""
    for score in (SCORE, SCORE + 3.0):
        returns = freeze(OTHER, score=score)[0].critique.returns[range(4), LAST]
        np.testing.assert_allclose(returns, np.where(TRUNCATED, GAMMA * truth.after, score), atol=1e-4)
    plain, more = (freeze(score=score)[0].critique.returns[range(4), LAST] for score in (SCORE, SCORE + 3.0))
    np.testing.assert_allclose(more - plain, 3.0, atol=1e-4)  # without the switch all earn their scores


def test_row_24_a_penalty_beside_the_bootstrap_is_refused():
    check_together(*OTHER)
    with pytest.raises(UserError, match="missing_eos_penalty=0.5: with baseline.bootstrap_truncated"):
        check_together(*OTHER.but(schedule=dict(missing_eos_penalty=0.5)))
