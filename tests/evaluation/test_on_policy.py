"""How a judge sees the responses of a policy, on pairs that are worked out by hand."""

import numpy as np
import pytest

from prl_jax.evaluation import against_truth, saturation


def test_certainty_is_beyond_098_on_either_side():
    assert saturation(np.array([0.981, 0.019, 0.98, 0.5])) == 0.5


def test_accuracy_and_calibration_are_against_the_truth():
    """Right about two of three decided pairs; a tie counts for calibration alone."""
    p, truth = np.array([0.9, 0.6, 0.7, 0.8]), np.array([1.0, 0.75, 0.0, 0.5])
    sorts = {"sort": np.array([True, False, True, False]), "tied": np.array([False, False, False, True])}
    found = against_truth(p, truth, sorts)
    assert found["judge_accuracy"] == pytest.approx(2 / 3) and found["judge_accuracy/sort"] == 0.5
    assert "judge_accuracy/tied" not in found  # nothing is decided
    assert found["judge_brier"] == pytest.approx((0.1**2 + 0.15**2 + 0.7**2 + 0.3**2) / 4)
    assert found["judge_ece"] == pytest.approx((0.1 + 0.15 + 0.7 + 0.3) / 4)  # a bin each
    assert against_truth(truth, truth, {})["judge_ece"] == 0


def test_without_pairs_nothing_is_told():
    assert against_truth(np.zeros(0), np.zeros(0), {}) == {}
