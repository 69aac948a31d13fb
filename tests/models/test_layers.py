"""Parts of a block against their formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_decoder

from prl_jax.models.attention import BRANCHES, attention_mask
from prl_jax.models.layers import RMSNorm
from prl_jax.models.rope import rotate, rotation


def test_rms_norm_is_its_formula_and_works_in_float32():
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    norm = RMSNorm(8, 1e-3)
    norm.scale[...] = jnp.arange(8.0)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * np.arange(8)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)
    # 300^2 overflows nothing here, but a mean of squares in bfloat16 would keep only 3 digits.
    wide = norm(jnp.asarray(x * 300, jnp.bfloat16))
    assert wide.dtype == jnp.bfloat16
    np.testing.assert_allclose(wide.astype(np.float32), expected, rtol=0.02, atol=0.02)


def test_rotation_is_complex_multiplication():
    x = np.random.default_rng(1).normal(size=(5, 2, 6)).astype(np.float32)
    positions = np.array([0, 1, 2, 7, 1000])
    turned = rotate(jnp.asarray(x), rotation(jnp.asarray(positions), 6, 10_000.0))
    angles = positions[:, None] * 10_000.0 ** (-np.arange(0, 6, 2) / 6)
    expected = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * angles)[:, None]
    np.testing.assert_allclose(turned, np.concatenate([expected.real, expected.imag], -1), atol=2e-4)


def test_row_16_products_of_rotated_heads_depend_on_the_distance_alone():
    q, k = np.random.default_rng(2).normal(size=(2, 1, 1, 8)).astype(np.float32)
    turn = lambda x, position: rotate(jnp.asarray(x), rotation(jnp.array([position]), 8, 100.0))  # noqa: E731
    near = [float(jnp.sum(turn(q, p + 3) * turn(k, p))) for p in (0, 5, 40)]
    np.testing.assert_allclose(near, near[0], rtol=1e-4)
    assert abs(float(jnp.sum(turn(q, 9) * turn(k, 0))) - near[0]) > 1e-2


def test_row_16_attention_mask_is_causal_within_segments_and_off_padding():
    segments = np.array([[0, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    mask = np.asarray(attention_mask(jnp.asarray(segments), 6))
    for b, t, s in np.ndindex(mask.shape):
        assert mask[b, t, s] == (s <= t and segments[b, s] > 0 and segments[b, t] == segments[b, s])


def test_row_16_branches_see_their_stem_and_not_each_other():
    one, two = BRANCHES, 2 * BRANCHES
    segments = np.array([[one, one, one + 1, one + 1, one + 2, two, two + 1, 0, 1, 1]])
    mask = np.asarray(attention_mask(jnp.asarray(segments), 10))[0]
    seen = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [5], [5, 6], [], [8], [8, 9]]
    assert [np.flatnonzero(row).tolist() for row in mask] == seen


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_queries_equal_repeated_heads(kv_heads):
    grouped, full = make_decoder(kv_heads=kv_heads, layers=1), make_decoder(kv_heads=4, layers=1)
    config = grouped.config
    for name in ("k", "v"):
        shared = getattr(grouped.blocks.attention, name).weight[...].reshape(1, config.width, kv_heads, config.head_dim)
        repeated = jnp.repeat(shared, 4 // kv_heads, axis=2).reshape(1, config.width, 4 * config.head_dim)
        getattr(full.blocks.attention, name).weight[...] = repeated
    tokens = jnp.arange(10, dtype=jnp.int32)[None]
    run = jax.jit(lambda model: model(tokens))
    np.testing.assert_allclose(run(grouped), run(full), atol=1e-5)
