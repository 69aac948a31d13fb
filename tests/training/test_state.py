"""What a policy's state carries beside what an update changes."""

import jax
import jax.numpy as jnp
import numpy as np
from fakes import make_decoder

from prl_jax.training.state import PolicyState, TrainState, remember


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
