"""Rows 1, 2, 5, 11, 12 and 14 of the correctness list: what an update is given to learn from."""

import dataclasses

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
from prl_jax.stages import config as stage_config
from prl_jax.training.opponents import compare
from prl_jax.training.ppo import PPOConfig

LAST = np.array(LENGTHS) - 1
# KL in the loss, so that rewards are scores; and every other switch the other way.
OTHER = dataclasses.replace(
    PLAIN, kl_placement="loss", kl_estimator="k3", whiten=True, bootstrap_truncated=True, mask_truncated=True
)


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
    np.testing.assert_allclose(experience.returns - zero.returns, SCORE[:, None] * share, atol=1e-5)


def test_row_02_a_win_probability_survives_as_a_float(freeze):
    """Judge, comparison and reward: 0.73 stays 0.73, and logits smaller than 1 are not 0."""
    judge = UtilityJudge(lambda prompt, response: {"a": 0.99, "b": -0.004, "c": 0.4, "d": -0.3}[response])
    prompts, responses = [user("p")] * 2 + [user("q")] * 2, ["a", "b", "c", "d"]
    reward = compare(judge, "peer", prompts, responses, group_size=2, anchors=[()] * 4).reward
    wins = 1 / (1 + np.exp(-np.array([0.994, -0.994, 0.7, -0.7])))
    np.testing.assert_allclose(wins[0], 0.73, atol=1e-3)
    experience, zero = freeze(score=reward)[0], freeze(score=np.zeros(4))[0]
    np.testing.assert_allclose((experience.returns - zero.returns)[range(4), LAST], wins, atol=1e-5)
    floats = (experience.logp_old, experience.values_old, experience.advantages, experience.returns)
    assert all(x.dtype == np.float32 for x in floats)


def test_row_05_the_penalty_is_the_configured_one_and_on_truncated_rows_alone(freeze, truth):
    rewards = token_rewards(SCORE - PENALTY * TRUNCATED, BETA * (truth.logp - truth.logp_ref))
    experience, metrics = freeze()
    np.testing.assert_allclose(experience.returns, expected_targets(truth, rewards)[1], atol=1e-4)
    np.testing.assert_allclose([metrics["truncated"], metrics["score"]], [0.25, (SCORE - PENALTY * TRUNCATED).mean()])


def test_row_05_truncated_rows_leave_the_policy_loss_when_asked(freeze):
    plain, other = freeze()[0], freeze(OTHER)[0]
    np.testing.assert_array_equal(plain.loss_mask, VALID)
    np.testing.assert_array_equal(other.loss_mask, VALID & ~TRUNCATED[:, None])
    np.testing.assert_array_equal(other.mask, VALID)  # the critic learns from them all the same


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_row_11_the_reward_holds_the_named_estimator(freeze, truth, kind):
    d = truth.logp_ref - truth.logp
    kl = {"k1": -d, "k2": d**2 / 2, "k3": np.exp(d) - 1 - d}[kind]
    _, returns = expected_targets(truth, token_rewards(SCORE - PENALTY * TRUNCATED, BETA * kl))
    experience, metrics = freeze(dataclasses.replace(PLAIN, kl_estimator=kind))
    np.testing.assert_allclose(experience.returns, returns, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(metrics["kl"], -d.sum(1).mean(), rtol=1e-4)  # the unbiased one, whatever is used


def test_row_11_a_negative_kl_is_reported_as_it_is(freeze, rollout, truth):
    """Of the four rows the one whose tokens the reference likes better than the policy does, four times."""
    sums = (truth.logp - truth.logp_ref).sum(1)
    worst = int(sums.argmin())
    assert sums[worst] < -0.1
    _, metrics = freeze(rollout=jax.tree.map(lambda x: x[np.full(4, worst)], rollout))
    np.testing.assert_allclose(metrics["kl"], sums[worst], rtol=1e-4)


def test_row_11_k1_is_the_default_in_the_reward_and_refused_in_the_loss():
    for config in (PPOConfig(), PPOConfig(**stage_config.ppo()["algorithm"])):
        assert (config.kl_placement, config.kl_estimator) == ("reward", "k1")
    for kind in ("k2", "k3"):
        PPOConfig(kl_placement="loss", kl_estimator=kind)
    with pytest.raises(UserError, match="'k1' in the loss has no gradient"):
        PPOConfig(kl_placement="loss")


def test_row_12_whitening_runs_over_all_valid_tokens_and_returns_are_taken_before(freeze, truth):
    advantages, returns = expected_targets(truth, token_rewards(SCORE - PENALTY * TRUNCATED, 0.0), bootstrap=True)
    experience, _ = freeze(OTHER)
    valid = advantages[VALID]
    np.testing.assert_allclose(experience.advantages[VALID], (valid - valid.mean()) / valid.std(), atol=1e-3)
    assert (experience.advantages[~VALID] == 0).all()
    np.testing.assert_allclose(experience.returns, returns, atol=1e-4)


def test_row_14_the_value_after_the_end_is_0_or_the_critics_after_a_truncation(freeze, truth):
    """By a switch. The last row fills its room too, but with a stop token."""
    for config, beta in ((PLAIN, BETA), (OTHER, 0.0)):
        rewards = token_rewards(SCORE - PENALTY * TRUNCATED, beta * (truth.logp - truth.logp_ref))
        _, returns = expected_targets(truth, rewards, bootstrap=config.bootstrap_truncated)
        np.testing.assert_allclose(freeze(config)[0].returns, returns, atol=1e-4)
    assert OTHER.bootstrap_truncated and not PLAIN.bootstrap_truncated and np.abs(truth.after).min() > 1e-2
