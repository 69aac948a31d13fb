"""Shapes of scores against plain numpy, and their limits."""

import jax.numpy as jnp
import numpy as np
import pytest
from losses import references

from prl_jax.losses import centred_shape, log_tame, lsc_shape, minmax_shape, par_shape

RNG = np.random.default_rng(2)
SCORES = RNG.normal(size=4).astype(np.float32)
MASK = np.arange(5) < np.array([5, 1, 3, 2])[:, None]
OTHERS = np.where(MASK, RNG.normal(size=MASK.shape), np.nan).astype(np.float32)


def at(*arrays):
    return map(jnp.asarray, arrays)


@pytest.mark.parametrize("fit", ["normal", "sample"])
def test_lsc_is_the_log_probability_of_beating_a_quantile(fit):
    found = lsc_shape(*at(SCORES, OTHERS, MASK), quantile=0.8, fit=fit)
    expected = references.lsc(SCORES, OTHERS.astype(np.float64), MASK, quantile=0.8, fit=fit)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert (np.asarray(found) < 0).all()
    far = np.array([60.0, -60.0, 0.0, 0.0], np.float32)
    ends = np.asarray(lsc_shape(*at(far, np.zeros((4, 1), np.float32), np.ones((4, 1), bool))))
    np.testing.assert_allclose(ends[:2], [0.0, -60.0], atol=1e-5)


def test_par_has_the_slope_of_a_quarter_of_k_and_is_exp_of_lsc_for_one_reference():
    one, mask = np.zeros((4, 1), np.float32), np.ones((4, 1), bool)
    step = np.full(4, 1e-2, np.float32)
    slope = (par_shape(*at(step, one, mask), 3.0) - par_shape(*at(-step, one, mask), 3.0)) / 0.02
    np.testing.assert_allclose(slope, 0.75, rtol=1e-3)
    np.testing.assert_allclose(np.exp(lsc_shape(*at(SCORES, one, mask))), par_shape(*at(SCORES, one, mask)), rtol=1e-5)


def test_centred_scores_are_scores_less_the_mean_of_the_references():
    expected = [s - row[m].mean() for s, row, m in zip(SCORES, OTHERS, MASK, strict=True)]
    np.testing.assert_allclose(centred_shape(*at(SCORES, OTHERS, MASK)), expected, rtol=1e-5)


def test_minmax_goes_from_0_to_1_and_equal_scores_are_in_the_middle():
    found = np.asarray(minmax_shape(jnp.asarray(SCORES)))
    assert found.min() == 0.0 and found.max() == 1.0
    np.testing.assert_allclose(found, (SCORES - SCORES.min()) / np.ptp(SCORES), rtol=1e-6)
    np.testing.assert_array_equal(minmax_shape(jnp.full(3, 7.0)), 0.5)


def test_log_tame_touches_the_judges_that_vary_more_than_the_mean():
    calm, wild = np.array([0.5, 0.6, 0.55, 0.5]), np.array([0.0, 1.0, 0.1, 0.9])
    found = np.asarray(log_tame(jnp.float32(np.stack([calm, wild]))))
    np.testing.assert_allclose(found[0], calm, rtol=1e-6)
    np.testing.assert_allclose(found[1], np.log1p(wild), rtol=1e-6)
    assert (np.argsort(found[1]) == np.argsort(wild)).all()
    alone = RNG.uniform(size=(1, 6)).astype(np.float32)
    np.testing.assert_array_equal(log_tame(jnp.asarray(alone)), alone)
    twice = jnp.float32(np.stack([calm, 2 * calm]))  # equal coefficients of variation, but for what is added
    np.testing.assert_allclose(log_tame(twice)[0], calm, rtol=1e-6)
