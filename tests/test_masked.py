import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prl_jax import masked

X = jnp.array([[1.0, 2.0, 4.0, jnp.nan], [3.0, jnp.inf, jnp.nan, jnp.nan]])
MASK = jnp.array([[True, True, True, False], [True, False, False, False]])
KEPT = np.array([1.0, 2.0, 4.0, 3.0])
EMPTY = jnp.zeros((2, 4), bool)


def test_reductions_see_only_what_the_mask_keeps():
    assert float(masked.masked_sum(X, MASK)) == KEPT.sum()
    assert float(masked.masked_count(MASK)) == 4
    assert float(masked.masked_mean(X, MASK)) == KEPT.mean()
    for ddof in (0, 1):
        np.testing.assert_allclose(masked.masked_var(X, MASK, ddof=ddof), KEPT.var(ddof=ddof), rtol=1e-6)


def test_reductions_along_an_axis():
    np.testing.assert_allclose(masked.masked_sum(X, MASK, -1), [7.0, 3.0])
    np.testing.assert_allclose(masked.masked_mean(X, MASK, -1), [7.0 / 3, 3.0], rtol=1e-6)
    np.testing.assert_allclose(masked.masked_var(X, MASK, 1), [KEPT[:3].var(), 0.0], rtol=1e-6)
    np.testing.assert_allclose(masked.masked_var(X, MASK, 1, ddof=1), [KEPT[:3].var(ddof=1), 0.0], rtol=1e-6)


@pytest.mark.parametrize("function", [masked.masked_sum, masked.masked_mean, masked.masked_var])
def test_gradients_ignore_what_is_masked(function):
    grad = jax.grad(lambda x: function(x, MASK))(X)
    assert np.isfinite(grad).all()
    assert (grad[~MASK] == 0).all()
    if function is not masked.masked_var:
        assert (grad[MASK] != 0).all()


def test_empty_masks_give_zero():
    for function in (masked.masked_sum, masked.masked_mean, masked.masked_var):
        assert float(function(X, EMPTY)) == 0.0
        np.testing.assert_array_equal(function(X, EMPTY, -1), [0.0, 0.0])
    np.testing.assert_array_equal(masked.masked_whiten(X, EMPTY), np.zeros((2, 4)))


def test_variance_survives_a_large_offset():
    x = jnp.array([1e4, 1e4 + 1, 1e4 + 2])
    np.testing.assert_allclose(masked.masked_var(x, jnp.ones(3, bool)), 2 / 3, rtol=1e-5)


@pytest.mark.parametrize("ddof", [0, 1])
def test_whiten_has_mean_zero_and_variance_one(ddof):
    white = masked.masked_whiten(X, MASK, ddof=ddof)
    np.testing.assert_allclose(masked.masked_mean(white, MASK), 0.0, atol=1e-6)
    np.testing.assert_allclose(masked.masked_var(white, MASK, ddof=ddof), 1.0, rtol=1e-5)
    assert (white[~MASK] == 0).all()


def test_whiten_can_keep_the_mean():
    white = masked.masked_whiten(X, MASK, shift_mean=False)
    np.testing.assert_allclose(masked.masked_mean(white, MASK), KEPT.mean(), rtol=1e-6)
    np.testing.assert_allclose(masked.masked_var(white, MASK), 1.0, rtol=1e-5)


def test_whiten_is_invariant_to_scale_and_padding():
    white = masked.masked_whiten(X, MASK)
    np.testing.assert_allclose(masked.masked_whiten(1e-3 * X, MASK), white, rtol=1e-4)
    padded = masked.masked_whiten(jnp.pad(X, ((0, 1), (0, 2)), constant_values=7.0), jnp.pad(MASK, ((0, 1), (0, 2))))
    np.testing.assert_allclose(padded[:2, :4], white, rtol=1e-6)


def test_whiten_eps_is_outside_the_root():
    x = jnp.array([0.0, 2.0])
    np.testing.assert_allclose(masked.masked_whiten(x, jnp.ones(2, bool), eps=1.0), [-0.5, 0.5])


@pytest.mark.parametrize("constant", [0.0, 0.1, 0.3, -1234.567])
def test_whitening_equal_values_gives_zero(constant):
    x = jnp.full((7, 9), constant)
    np.testing.assert_array_equal(masked.masked_whiten(x, jnp.ones((7, 9), bool)), np.zeros((7, 9)))


def test_whiten_passes_no_gradient():
    grad = jax.grad(lambda x: jnp.sum(jnp.arange(3.0) * masked.masked_whiten(x, jnp.ones(3, bool))))
    np.testing.assert_array_equal(grad(jnp.array([1.0, 2.0, 4.0])), np.zeros(3))


def test_results_are_float32():
    for x in (X.astype(jnp.bfloat16), jnp.nan_to_num(X).astype(jnp.int32)):
        for function in (masked.masked_sum, masked.masked_mean, masked.masked_var):
            assert function(x, MASK).dtype == jnp.float32
    assert masked.masked_whiten(X.astype(jnp.bfloat16), MASK).dtype == jnp.float32
    # 257 does not exist in bfloat16.
    assert float(masked.masked_sum(jnp.ones(257, jnp.bfloat16), jnp.ones(257, bool))) == 257.0


def test_check_shapes_names_expected_and_given():
    masked.check_shapes(1, a=jnp.ones(3), b=jnp.ones(3))
    with pytest.raises(ValueError, match=r"b: expected shape \(3,\) \(as a\), given \(3, 1\)"):
        masked.check_shapes(a=jnp.ones(3), b=jnp.ones((3, 1)))
    with pytest.raises(ValueError, match=r"a: expected 1 axes, given shape \(3, 1\)"):
        masked.check_shapes(1, a=jnp.ones((3, 1)), b=jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="mask: expected shape"):
        masked.masked_mean(jnp.ones((2, 3)), jnp.ones((2, 1), bool))


def test_check_option_names_the_options():
    masked.check_option("f", "id", ("id", "log"))
    with pytest.raises(ValueError, match="f: expected one of 'id', 'log', given 'lgo'"):
        masked.check_option("f", "lgo", ("id", "log"))


def test_bounded_exp_is_exp_then_its_tangent():
    x = jnp.array([-1e4, -1.0, 0.0, 3.0, 19.0])
    np.testing.assert_allclose(masked.bounded_exp(x), jnp.exp(x), rtol=1e-6)
    grad = jax.vmap(jax.grad(masked.bounded_exp))
    np.testing.assert_allclose(grad(x), jnp.exp(x), rtol=1e-6)
    far = jnp.array([21.0, 100.0, 1e4])
    assert np.isfinite(masked.bounded_exp(far)).all()
    np.testing.assert_allclose(grad(far), np.full(3, np.exp(20.0)), rtol=1e-5)


def test_rows_of_weight_zero_are_cleared():
    weight = masked.row_weights(jnp.array([True, False]), X)
    np.testing.assert_array_equal(weight, [1.0, 0.0])
    np.testing.assert_array_equal(masked.row_weights(None, X), [1.0, 1.0])
    assert (masked.keep_rows(X, weight)[1] == 0).all()
    with pytest.raises(ValueError, match=r"weight: expected shape \(2,\), given \(3,\)"):
        masked.row_weights(jnp.ones(3), X)
