"""Groups of responses that all earn the same: left out, or drawn again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from correctness.world import make_setup, policy_state
from fakes import UtilityJudge

from prl_jax.sampling import decode_responses
from prl_jax.stages.online_samples import roll_out
from prl_jax.stages.online_step import iteration
from prl_jax.streams import Stream, stream_key
from prl_jax.training.compare import Rewarded, rewards_of
from prl_jax.training.policy import Updates
from prl_jax.training.redraws import flat_groups, with_rewards

GROUPS = dict(group_size=2, baseline=dict(kind="leave_one_out"))


def judge() -> UtilityJudge:
    """Likes long responses, up to six letters."""
    return UtilityJudge(lambda prompt, response: 0.3 * min(len(response), 6))


@pytest.fixture(scope="module")
def draws(models):
    """A step without and with two redraws, and the judges that were asked."""
    setups = [
        make_setup(models.policy, flat_groups="redraw", redraws=2, **GROUPS)._replace(judges=[judge()]),
        make_setup(models.policy, **GROUPS)._replace(judges=[judge()]),
    ]
    return [(setup, roll_out(setup, policy_state(models.policy), np.arange(4), 3)) for setup in setups]


def test_flat_groups_are_drawn_again_and_others_stay(draws):
    (setup, done), (plain, once) = draws
    flat, still = (flat_groups(one.reward, 2) for one in (once, done))
    assert flat.any() and not flat.all() and not still[~flat].any()
    first, last = (np.array(one.responses).reshape(4, 2) for one in (once, done))
    assert (first[~flat] == last[~flat]).all() and (first[flat] != last[flat]).any(1).all()
    assert done.prompts == once.prompts and once.redrawn == 0
    assert flat.sum() <= done.redrawn <= 2 * flat.sum()
    # The judge is asked about what is new alone; identical responses are even without asking.
    assert len(plain.judges[0].asked) <= len(setup.judges[0].asked) <= len(plain.judges[0].asked) + done.redrawn


def test_what_was_drawn_again_is_one_batch(draws, models):
    """Texts, tokens, judgements and rewards are those of a batch that was drawn at once; the same each time."""
    setup, done = draws[0]
    assert decode_responses(setup.tokenizer, jax.device_get(done.rollout), setup.sampling.stop_ids) == done.responses
    keys = jax.random.split(stream_key(setup.context.key, Stream.OPPONENTS, 3), 4)
    method = setup.method
    whole = rewards_of(
        [judge()],
        method.opponents,
        method.reward,
        done.prompts,
        done.responses,
        group_size=2,
        anchors=[()] * 8,
        keys=keys,
    )
    for one, other in zip(jax.tree.leaves(whole.judged), jax.tree.leaves(done.judged), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(whole.reward, done.reward)
    again = roll_out(setup, policy_state(models.policy), np.arange(4), 3)
    assert again.responses == done.responses and (again.reward == done.reward).all()


def test_flat_groups_do_not_train_the_policy(draws, models, fresh):
    setup = make_setup(models.policy, flat_groups="drop", **GROUPS)._replace(judges=[judge()])
    flat = np.repeat(flat_groups(draws[1][1].reward, 2), 2)
    no_update = Updates(lambda state, *_: (state, {}), None)
    run = lambda setup, updates: iteration(setup, updates, state, np.arange(4), 3, train_policy=True)  # noqa: E731
    state = fresh()._replace(critic=None)
    _, metrics, _, experience = run(setup, no_update)
    np.testing.assert_array_equal(experience.frozen.mask.any(1), ~flat)
    np.testing.assert_array_equal(experience.mask.any(1), True)
    assert (metrics["flat_groups"], metrics["redrawn"]) == (flat.mean(), 0)
    # Where all groups are flat, no update is asked for.
    same = setup._replace(judges=[UtilityJudge(lambda prompt, response: 0.0)])
    after, metrics, _, _ = run(same, Updates(None, None))
    assert after.policy is state.policy and metrics["flat_groups"] == 1
    assert all(jnp.isfinite(value) for value in metrics.values())


def test_fewer_opponents_leave_the_remaining_places_empty(draws):
    """Anchors of prompts differ in number; what was asked of others is not left behind."""
    judged = draws[1][1].judged[0]._replace(mask=jnp.ones((2, 3), bool), z_ya=jnp.ones((2, 3)), z_ay=jnp.ones((2, 3)))
    again = judged._replace(mask=jnp.ones((1, 2), bool), z_ya=jnp.full((1, 2), 5.0), z_ay=jnp.full((1, 2), 5.0))
    before = Rewarded(np.zeros(2, np.float32), (judged,), 1, 0.3)
    found = with_rewards(before, Rewarded(np.ones(1, np.float32), (again,), 2, 0.6), np.array([1]))
    np.testing.assert_array_equal(found.judged[0].mask, [[True] * 3, [True, True, False]])
    np.testing.assert_array_equal(found.judged[0].z_ya, [[1, 1, 1], [5, 5, 0]])
    assert found.reward.tolist() == [0, 1] and found.cut == 3 and found.disagreement == pytest.approx(0.4)
