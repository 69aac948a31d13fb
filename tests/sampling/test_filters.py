"""Filters against plain Python; draws against the law they should follow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prl_jax.sampling import filtered_log_probs, sample_categorical


def reference(logits, temperature, top_k, top_p, min_p):
    """One row, one token at a time, in float64."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    kept = order[:top_k] if top_k else order
    weights = {i: np.exp((logits[i] - max(logits)) / temperature) for i in kept}
    total, mass, nucleus = sum(weights.values()), 0.0, []
    for i in kept:
        if mass >= top_p:
            break
        nucleus.append(i)
        mass += weights[i] / total
    nucleus = [i for i in nucleus if weights[i] >= min_p * weights[order[0]]]
    total = sum(weights[i] for i in nucleus)
    return np.array([np.log(weights[i] / total) if i in nucleus else -np.inf for i in range(len(logits))])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0), (0.5, 0, 1.0, 0.0), (2.0, 3, 1.0, 0.0), (1.0, 0, 0.7, 0.0), (0.7, 0, 0.05, 0.0),
        (1.5, 10, 0.6, 0.0), (1.0, 40, 0.999, 0.0), (0.7, 0, 0.99, 0.2), (1.0, 6, 0.97, 0.3),
    ],
)  # fmt: skip
def test_filters_equal_plain_python(temperature, top_k, top_p, min_p):
    logits = np.random.default_rng(0).normal(size=(5, 20)).astype(np.float32) * 2
    got = filtered_log_probs(jnp.asarray(logits), temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = np.stack([reference(row.astype(np.float64), temperature, top_k, top_p, min_p) for row in logits])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.exp(got).sum(1), 1.0, rtol=1e-5)
    kept = np.isfinite(expected).sum(1)
    assert (kept < 20).all() if top_p < 0.99 or min_p or 0 < top_k < 20 else (kept > 10).all()


def test_one_likeliest_token_always_stays():
    logits = jnp.array([[0.0, 3.0, 1.0]])
    for arguments in ({"top_k": 1}, {"top_p": 1e-6}):
        np.testing.assert_allclose(filtered_log_probs(logits, **arguments), [[-np.inf, 0.0, -np.inf]], atol=1e-7)


def test_ties_with_the_last_kept_token_stay():
    logits = jnp.array([[2.0, 1.0, 1.0, 0.0]])
    np.testing.assert_array_equal(np.isfinite(filtered_log_probs(logits, top_k=2)), [[True, True, True, False]])
    np.testing.assert_array_equal(np.isfinite(filtered_log_probs(logits, top_p=0.6)), [[True, True, True, False]])


def test_row_15_filters_work_in_float32():
    logits = jnp.array([[1.0, 1.01, -3.0]], jnp.bfloat16)
    assert filtered_log_probs(logits, temperature=0.7, top_p=0.9).dtype == jnp.float32


def distribution(vocab: int) -> np.ndarray:
    """Uneven probabilities over several blocks, with zeros at both ends, inside, and over a whole block."""
    p = np.random.default_rng(1).gamma(0.3, size=vocab)
    p[::5] = 0
    p[-3:] = 0
    if vocab > 128:
        p[64:128] = 0
    return p / p.sum()


def draw(p: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        log_probs = np.broadcast_to(np.log(p).astype(np.float32), (len(uniform), len(p)))
    return np.asarray(sample_categorical(jnp.asarray(uniform, jnp.float32), jnp.asarray(log_probs)))


@pytest.mark.parametrize("vocab", [7, 64, 300])
def test_draws_follow_the_distribution(vocab):
    """The chi-square statistic of independent draws, and the exact shares of an even grid of uniforms."""
    p, count = distribution(vocab), 20_000
    counts = np.bincount(draw(p, np.random.default_rng(2).random(count)), minlength=vocab)
    assert counts[p == 0].sum() == 0
    likely = p * count > 5
    statistic = (np.square(counts - p * count)[likely] / (p * count)[likely]).sum()
    freedom = likely.sum() - 1
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)
    even = np.bincount(draw(p, (np.arange(count) + 0.5) / count), minlength=vocab)
    # An interval of length p holds p count grid points, give or take one at each of its ends and rounding.
    assert np.abs(even - p * count).max() <= 3 and even[p == 0].sum() == 0


@pytest.mark.parametrize("vocab", [7, 64, 300])
def test_a_token_of_probability_zero_is_never_drawn(vocab):
    p = distribution(vocab)
    edges = np.cumsum(p)
    uniform = np.concatenate([[0.0, 1e-45, 1 - 2.0**-24, 0.5], edges, np.nextafter(edges, 0), np.nextafter(edges, 2)])
    uniform = np.clip(uniform, 0.0, 1 - 2.0**-24)
    assert (p[draw(p, uniform)] > 0).all()
    one = np.zeros(vocab)
    one[vocab // 2] = 1.0
    assert (draw(one, uniform) == vocab // 2).all()


def test_rows_use_their_own_uniform_and_their_own_distribution():
    log_probs = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1]]))
    np.testing.assert_array_equal(sample_categorical(jnp.array([0.4, 0.6, 0.6]), log_probs), [0, 1, 0])


def test_a_temperature_near_zero_takes_the_largest_with_certainty():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(64, 300)).astype(np.float32) * 5 + 30)
    for temperature in (1e-9, 1e-30):
        run = jax.jit(functools.partial(filtered_log_probs, temperature=temperature))
        log_probs = np.asarray(run(logits))
        assert log_probs.max() == 0.0 and (log_probs.argmax(1) == np.asarray(logits).argmax(1)).all()
        assert np.isneginf(log_probs[log_probs < 0]).all() or log_probs[log_probs < 0].max() < -1000
