"""Checksums show what changed, and only that."""

import jax.numpy as jnp
import numpy as np
import pytest

from prl_jax.integrity import checksums, digest

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32, jnp.uint8, jnp.bool_)


def array(dtype, shape=(6, 50)) -> np.ndarray:
    return np.asarray(np.random.default_rng(0).integers(0, 2 if dtype == jnp.bool_ else 100, shape)).astype(dtype)


def one(x) -> int:
    return checksums({"x": jnp.asarray(x)})["x"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_changed_bit_shows(dtype):
    x = array(dtype)
    for _ in range(2):
        sums = [one(x)]
        for index in ((0, 0), (3, 17), (5, 49)):
            flipped = x.copy()
            flipped.view(np.uint8)[index[0], index[1] * x.itemsize] ^= 1
            sums.append(one(flipped))
        assert len(set(sums)) == 4
        x = x[::-1].copy()


def test_words_that_change_places_show():
    x = array(jnp.float32, (2, 3, 20))
    others = [x[::-1], x[:, ::-1], x[:, :, ::-1], x.swapaxes(1, 2).reshape(x.shape), np.roll(x, 1)]
    assert len({one(x), *map(one, others)}) == 6


def test_zeros_are_told_from_negative_zeros_and_shapes_from_their_contents():
    assert one(np.zeros(3, np.float32)) != one(-np.zeros(3, np.float32))
    assert one(np.zeros(3, np.float32)) != one(np.zeros(4, np.float32))
    assert one(np.float32(1)) == one(np.float32(1)) != one(np.float32(2))


def test_arrays_are_told_apart_by_name_and_the_order_does_not_count():
    a, b = jnp.arange(4.0), jnp.arange(5)
    assert checksums({"a": a, "b": b}) == checksums({"b": b, "a": a}) == {"a": one(a), "b": one(b)}


def test_the_digest_is_of_the_content():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
