"""Responses that are sampled one step ahead, by the policy before its update."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from correctness.world import TEMPERATURE, chosen, make_setup, policy_state, response_laws
from fakes import one_device

from prl_jax.errors import UserError
from prl_jax.stages.online_ahead import Ahead
from prl_jax.stages.online_samples import roll_out, sample
from prl_jax.stages.online_step import iteration
from prl_jax.training.policy import Updates
from prl_jax.training.schedule import Schedule

INDEX = np.arange(4)


@pytest.fixture(scope="module")
def setup(models):
    return make_setup(
        models.reference,
        rollouts_ahead=True,
        importance_cap=1.2,
        baseline=dict(kind="constant", value=0.5),
        regulariser=dict(kind="reward_kl", coefficient=0.0),
    )


@pytest.fixture(scope="module")
def learned(setup, models):
    """A step on what the policy has sampled when it was another model, three updates before."""
    sampled = sample(setup, policy_state(models.reference), INDEX, 2)
    before = policy_state(models.policy)
    before = before._replace(policy=before.policy._replace(step=jnp.int32(3)))
    unchanged = Updates(lambda state, *_: (state, {}), None)
    _, metrics, done, experience = iteration(setup, unchanged, before, INDEX, 2, train_policy=True, sampled=sampled)
    return jax.device_get(metrics), done, experience


def test_the_older_policy_samples_what_it_would_in_a_step_of_its_own(setup, models, learned):
    _, done, _ = learned
    older, newer = (roll_out(setup, policy_state(model), INDEX, 2) for model in (models.reference, models.policy))
    assert done.responses == older.responses != newer.responses
    np.testing.assert_array_equal(done.rollout.logp, older.rollout.logp)
    np.testing.assert_array_equal(done.reward, older.reward)


def test_its_tokens_weigh_as_likely_as_they_have_become(models, learned):
    """Ratios of the two models, each token's own, up to the cap; the frozen log-probs are the newer policy's."""
    metrics, done, experience = learned
    rollout, mask = done.rollout, np.asarray(done.rollout.mask)
    newer, older = (
        chosen(response_laws(model, rollout, TEMPERATURE), rollout) for model in (models.policy, models.reference)
    )
    ratio = np.exp(newer - older)[mask]
    advantages = np.repeat(done.reward[:, None] - 0.5, mask.shape[1], 1)[mask]
    frozen = experience.frozen
    np.testing.assert_allclose(np.asarray(frozen.logp_old)[mask], newer[mask], atol=1e-5)
    np.testing.assert_allclose(
        np.asarray(frozen.advantages)[mask], np.minimum(ratio, 1.2) * advantages, rtol=1e-4, atol=1e-6
    )
    assert (ratio > 1.2).any() and (ratio < 1.0).any() and np.abs(advantages).max() > 0.1
    expected = {
        "staleness": 3,
        "importance": np.minimum(ratio, 1.2).mean(),
        "importance_capped": (ratio >= 1.2).mean(),
        "sampler_kl": (older - newer)[mask].mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)


def test_a_checkpoint_holds_what_was_sampled(setup, models):
    sampled = sample(setup, policy_state(models.policy), INDEX[::-1], 3)
    kept, other = Ahead(one_device()), Ahead(one_device())
    kept.put(sampled)
    other.set_state(json.loads(json.dumps(kept.get_state())))
    for taken in (kept.take(), other.take()):
        assert jax.tree.structure(taken) == jax.tree.structure(sampled)
        jax.tree.map(np.testing.assert_array_equal, taken, sampled)
        assert [x.dtype for x in jax.tree.leaves(taken)] == [x.dtype for x in jax.tree.leaves(sampled)]
    assert kept.take() is None and kept.get_state() == {}
    other.set_state({})
    assert other.take() is None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(importance_cap=0.5), r"importance_cap=0\.5, expected 0 .* at least 1"),
        (dict(rollouts_ahead=True, flat_groups="redraw", group_size=2), "rollouts_ahead=True: .*flat_groups='drop'"),
    ],
)
def test_schedules_that_cannot_be_are_refused(options, match):
    with pytest.raises(UserError, match=match):
        Schedule(**options)
