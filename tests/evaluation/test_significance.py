"""P-values against all choices of signs, against the normal law, and their promises about false alarms."""

import itertools
import math

import numpy as np
import pytest

from prl_jax.evaluation import holm, paired_test


def exact(differences: np.ndarray) -> float:
    """The share of all choices of signs with a mean at least as far from 0, by a plain loop."""
    seen = abs(differences.sum())
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    return sum(abs(np.dot(sign, differences)) >= seen - 1e-12 for sign in signs) / len(signs)


def test_few_prompts_are_tested_exactly():
    rng = np.random.default_rng(0)
    for n in (2, 5, 9):
        first, second = rng.uniform(size=(n, 3)), rng.uniform(size=n)
        expected = exact(first.mean(1) - second)
        assert paired_test(first, second) == pytest.approx(expected)
        assert paired_test(second, first) == pytest.approx(expected)  # whoever is named first
    # A sign test, where all differences have one size: two of 32 choices are as far out.
    assert paired_test(np.full(5, 0.7), np.full(5, 0.5)) == 2 / 32


def test_many_prompts_are_tested_as_the_normal_law_would():
    rng = np.random.default_rng(0)
    first = rng.uniform(size=400)
    for shift in (0.005, 0.02, 0.03):
        second = first - shift + 0.2 * rng.normal(size=400)
        differences = first - second
        z = abs(differences.mean()) / math.sqrt((differences**2).mean() / 400)
        assert paired_test(first, second) == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.015)
    assert paired_test(first, first - 0.1) == 1 / 10_001  # as far out as none of those that were drawn
    assert paired_test(first, second) == paired_test(first, second) != paired_test(first, second, seed=1)


def test_drawn_signs_and_all_signs_agree(monkeypatch):
    rng = np.random.default_rng(3)
    first, second = rng.uniform(size=12), rng.uniform(0.1, 1.1, size=12)
    whole, drawn = paired_test(first, second, samples=2**12), paired_test(first, second, samples=2**12 - 1)
    assert whole == pytest.approx(drawn, abs=0.03) and whole != drawn
    monkeypatch.setattr("prl_jax.evaluation.significance._CHUNK", 100)
    assert paired_test(first, second, samples=4095) == pytest.approx(whole, abs=0.03)


def test_equal_policies_are_rarely_told_apart():
    rng, p_values = np.random.default_rng(0), []
    for _ in range(300):
        hard = rng.beta(2, 2, size=30)
        first, second = (rng.binomial(4, hard) / 4 for _ in range(2))
        p_values.append(paired_test(first, second, samples=400))
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.08
    assert 0.4 <= np.mean(np.array(p_values) < 0.5) <= 0.6


def test_what_has_no_number_is_left_out_and_what_is_equal_is_no_difference():
    wins = np.random.default_rng(0).uniform(size=(20, 2))
    broken = wins.copy()
    broken[3, 1] = np.nan
    other = wins[::-1].copy()
    kept = [np.delete(x, 3, axis=0) for x in (wins, other)]
    assert paired_test(broken, other) == paired_test(*kept)
    assert paired_test(wins, wins) == 1.0
    assert paired_test(np.full(4, np.nan), np.zeros(4)) is None and paired_test(np.ones(1), np.zeros(1)) is None
    with pytest.raises(Exception, match="3 and 4 prompts|Type-check"):
        paired_test(np.zeros(3), np.zeros(4))


def test_holms_correction():
    # Holm 1979: 0.01 * 4, 0.02 * 3, then 0.03 * 2, which is no smaller, and 0.5.
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8]) and holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == [] and holm([0.03]) == [0.03]
    assert holm([None, 0.01, None, 0.04]) == [None, 0.02, None, 0.04]
