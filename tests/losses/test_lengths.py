import jax.numpy as jnp
import numpy as np

from prl_jax.losses import overlong_penalty, relative_brevity


def test_the_penalty_grows_over_the_buffer_and_is_whole_at_the_end_of_the_room():
    lengths = jnp.array([1, 12, 13, 14, 15, 16])
    np.testing.assert_allclose(overlong_penalty(lengths, 16, 4, 0.5), [0, 0, 0.125, 0.25, 0.375, 0.5], rtol=1e-6)
    np.testing.assert_allclose(overlong_penalty(lengths, 16, 16, 1.0), lengths / 16, rtol=1e-6)


def test_the_shortest_of_a_group_earns_most():
    lengths = jnp.array([[2, 6, 4], [5, 5, 5]])
    terms = relative_brevity(lengths)
    np.testing.assert_allclose(terms, [[0.5, -0.5, 0.0], [0, 0, 0]], atol=1e-6)
    uneven = np.array([1.0, 0.75, 0.0]) - 1.75 / 3
    np.testing.assert_allclose(relative_brevity(jnp.array([[1, 2, 5]]))[0], uneven, rtol=1e-5)
