"""What a policy's state carries beside what an update changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import make_decoder, on_mesh, one_device, with_pieces

from prl_jax.errors import UserError
from prl_jax.methods import METHODS, InsideKL, LossKL, RewardKL
from prl_jax.training.policy import make_updates
from prl_jax.training.schedule import Schedule
from prl_jax.training.state import PolicyState, TrainState, initial_state, refreshed, remember, scheduled


def test_earlier_policies_are_a_ring_of_copies():
    """The oldest makes room, and the update that takes the policy's arrays leaves its copies."""
    policy = make_decoder(0, layers=1)
    state = PolicyState(TrainState(policy, None, jnp.int32(0)), None, jnp.float32(0), past=(policy, policy))
    scaled = lambda factor: jax.tree.map(lambda x: factor * x, policy)  # noqa: E731
    for n in range(1, 6):
        state = state._replace(policy=state.policy._replace(model=scaled(float(n))))
        state = remember(state, n, 2)
        jax.tree.map(lambda x: x.delete(), state.policy.model)
    assert len(state.past) == 2
    for n, model in zip((2.0, 4.0), state.past, strict=True):
        jax.tree.map(np.testing.assert_array_equal, model, scaled(n))
    assert remember(state._replace(past=()), 2, 2).past == ()


def test_a_reference_becomes_the_policy_each_so_many_steps():
    policy = make_decoder(0, layers=1)
    state = initial_state(TrainState(policy, None, jnp.int32(0)), None, METHODS["rloo"].method, follows=True)
    assert all(a is not b for a, b in zip(jax.tree.leaves(state.reference), jax.tree.leaves(policy), strict=True))
    moved = state._replace(policy=state.policy._replace(model=make_decoder(1, layers=1)))
    assert refreshed(moved, 3, 2).reference is refreshed(moved, 4, 0).reference is state.reference
    jax.tree.map(np.testing.assert_array_equal, refreshed(moved, 4, 2).reference, moved.policy.model)


def test_a_reference_drifts_by_a_share_of_the_way():
    models = [on_mesh(make_decoder(seed, layers=1), one_device()) for seed in (0, 1)]
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, *models)
    updates = make_updates(METHODS["rloo"].method, Schedule(group_size=2, reference_ema=0.25), optax.sgd(0.1))
    found, _ = updates.drift(*models)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6), found, expected)


def test_coefficients_go_to_their_ends_over_the_steps():
    method = with_pieces(
        METHODS["rloo"].method, regulariser=LossKL(estimator="k2", coefficient=0.4, entropy=0.0, ends=(0.1, 0.03))
    )
    policy = TrainState(make_decoder(0, layers=1), None, jnp.int32(0))
    state = initial_state(policy, None, method)
    found = [scheduled(state, n, 4, method) for n in (1, 2, 4)]
    np.testing.assert_allclose([x.kl_coef for x in found], [0.4, 0.3, 0.1], rtol=1e-6)
    np.testing.assert_allclose([x.entropy for x in found], [0.0, 0.01, 0.03], rtol=1e-6)
    weights = method.regulariser.weights(found[1].kl_coef, found[1].entropy)
    assert weights == {"entropy_loss": found[1].entropy, "kl_loss": found[1].kl_coef}
    kept = with_pieces(method, regulariser=dict(ends=()))
    state = initial_state(policy, None, kept)
    assert scheduled(state, 4, 4, kept) is state and state.entropy is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RewardKL(ends=(0.1,)), "ends=.*expected"),
        (lambda: RewardKL(ends=(0.1, -1.0)), "ends=.*at least 0"),
        (lambda: RewardKL(ends=(0.1, 0.0), steer=(6.0, 100.0)), "ends=.* with steer"),
        (lambda: InsideKL(ends=(0.0, 0.0)), "ends=.* stays above 0"),
    ],
)
def test_ends_that_mean_nothing_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
