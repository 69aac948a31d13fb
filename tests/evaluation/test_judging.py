import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from prl_jax.evaluation import judging

KEYS = ["n", "not_finite", "accuracy", "accuracy_low", "accuracy_high", "longer_wins", "ece", "brier", "log_loss"]
KEYS += ["order_consistency", "position_bias", "ties"]
PROBABILITY = st.floats(0, 1, width=32)


def arrays(n):
    return hnp.arrays(np.float32, n, elements=PROBABILITY)


def plain(p_12, p_21, label, soft, tie, longer):
    """The definitions as a loop over pairs."""
    right, length_right, brier, log_loss, consistent, bins = [], [], [], [], [], [[] for _ in range(10)]
    for a, b, y, s, t, n in zip(p_12, p_21, label, soft, tie, longer, strict=True):
        p = (float(a) + 1 - float(b)) / 2
        target = (0.5 if t else y) if math.isnan(s) else s
        if not t:
            right.append(0.5 if 0.5 in (p, y) else float((p > 0.5) == (y > 0.5)))
            length_right.append(0.5 if 0.5 in (n, y) else float((n > 0.5) == (y > 0.5)))
        brier.append((p - target) ** 2)
        log_loss.append(-target * math.log(max(p, 1e-12)) - (1 - target) * math.log(max(1 - p, 1e-12)))
        winner_12 = 1 if a > 0.5 else 2 if a < 0.5 else None
        winner_21 = 2 if b > 0.5 else 1 if b < 0.5 else None
        consistent.append(winner_12 == winner_21)
        confidence = max(p, 1 - p)
        frequency = target if p > 0.5 else 1 - target if p < 0.5 else 0.5
        number = next(i for i in range(10) if confidence < np.linspace(0.5, 1, 11)[i + 1] or i == 9)
        bins[number].append((confidence, frequency))
    gaps = [abs(np.mean(b, axis=0) @ [1, -1]) * len(b) for b in bins if b]
    return {
        "n": len(brier),
        "accuracy": np.mean(right) if right else None,
        "longer_wins": np.mean(length_right) if right else None,
        "ece": sum(gaps) / len(brier),
        "brier": np.mean(brier),
        "log_loss": np.mean(log_loss),
        "order_consistency": np.mean(consistent),
        "ties": sum(tie),
    }


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.integers(1, 30))
def test_metrics_equal_the_definitions_pair_by_pair(data, n):
    p_12, p_21 = data.draw(arrays(n)), data.draw(arrays(n))
    label = data.draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 0.5, 1.0])))
    soft = data.draw(hnp.arrays(np.float64, n, elements=PROBABILITY | st.just(float("nan"))))
    longer = data.draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 0.5, 1.0])))
    tie = label == 0.5
    got = judging.judge_metrics(p_12, p_21, label, soft=soft, longer=longer)
    want = plain(p_12, p_21, label, soft, tie, longer)
    assert list(got) == KEYS and got["not_finite"] == 0
    if got["accuracy"] is not None:
        assert 0 <= got["accuracy_low"] <= got["accuracy"] <= got["accuracy_high"] <= 1
    for key, value in want.items():
        assert got[key] == (None if value is None else pytest.approx(value, abs=1e-9)), key
    json.dumps(got, allow_nan=False)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.integers(1, 30))
def test_naming_the_responses_the_other_way_round_changes_nothing(data, n):
    p_12, p_21 = data.draw(arrays(n)), data.draw(arrays(n))
    label = data.draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 0.5, 1.0])))
    soft, longer = data.draw(arrays(n)), data.draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 0.5, 1.0])))
    one = judging.judge_metrics(p_12, p_21, label, soft=soft, longer=longer)
    # 1 - p is exact on [0.5, 1] only: the bin of a probability at an edge may differ, so ECE is compared elsewhere.
    other = judging.judge_metrics(p_21, p_12, 1 - label, soft=1 - soft, longer=1 - longer)
    for key in KEYS:
        if key == "position_bias":
            assert one[key] == pytest.approx(other[key], abs=1e-6)
        elif key != "ece":
            assert one[key] == (None if one[key] is None else pytest.approx(other[key], abs=1e-6)), key


def test_hand_computed():
    # A right pair, a wrong one, an exact half and a tie.
    p_12 = np.array([0.9, 0.3, 0.5, 0.8])
    p_21 = np.array([0.1, 0.5, 0.5, 0.4])
    got = judging.judge_metrics(p_12, p_21, np.array([1, 1, 1, 0.5]), longer=np.array([1, 0.5, 0, 1]))
    p = np.array([0.9, 0.4, 0.5, 0.7])
    assert got["n"] == 4 and got["ties"] == 1
    assert got["accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert got["longer_wins"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert got["brier"] == pytest.approx(np.mean((p - [1, 1, 1, 0.5]) ** 2))
    # The order (2, 1) of the second pair is undecided while (1, 2) is not; the third is undecided in both.
    assert got["order_consistency"] == pytest.approx(3 / 4)
    # Bins: .9 -> 1, .6 -> 0 (response 2 is the predicted side), .5 -> .5, .7 -> .5.
    assert got["ece"] == pytest.approx((abs(0.9 - 1) + abs(0.6 - 0) + 0 + abs(0.7 - 0.5)) / 4)


def test_a_perfect_and_a_constant_judge():
    ones, halves = np.ones(5), np.full(5, 0.5)
    perfect = judging.judge_metrics(ones, 1 - ones, ones)
    assert (perfect["accuracy"], perfect["ece"], perfect["brier"], perfect["order_consistency"]) == (1, 0, 0, 1)
    assert perfect["log_loss"] == pytest.approx(0, abs=1e-9) and perfect["longer_wins"] is None
    constant = judging.judge_metrics(halves, halves, ones)
    assert (constant["accuracy"], constant["ece"], constant["order_consistency"]) == (0.5, 0, 1)
    assert constant["log_loss"] == pytest.approx(math.log(2))


def test_the_true_probability_is_calibrated_and_an_overconfident_one_is_not():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20_000)
    label = (rng.uniform(size=p.size) < p).astype(np.float64)
    assert judging.expected_calibration_error(p, label) < 0.015
    assert judging.expected_calibration_error(p, p) < 1e-12  # against the soft labels themselves
    sharp = p**3 / (p**3 + (1 - p) ** 3)
    assert judging.expected_calibration_error(sharp, label) > 0.1


def test_soft_labels_replace_the_label_only_where_there_are_any():
    p_12, label = np.array([0.8, 0.8]), np.array([1.0, 1.0])
    got = judging.judge_metrics(p_12, 1 - p_12, label, soft=np.array([0.6, np.nan]))
    assert got["brier"] == pytest.approx(((0.8 - 0.6) ** 2 + (0.8 - 1) ** 2) / 2)
    assert got["accuracy"] == 1  # the verdict stays the label's


def test_nothing_to_count_is_none():
    empty = np.zeros(0)
    assert judging.judge_metrics(empty, empty, empty) == dict.fromkeys(KEYS, None) | dict(n=0, not_finite=0, ties=0)
    ties = judging.judge_metrics(np.array([0.7]), np.array([0.3]), np.array([0.5]), longer=np.array([1.0]))
    assert ties["accuracy"] is None and ties["longer_wins"] is None and ties["ties"] == 1
    assert ties["brier"] == pytest.approx(0.04)


def test_pairs_without_a_finite_number_are_left_out_and_counted():
    p_12, p_21 = np.array([0.9, np.nan, 0.2, 0.6]), np.array([0.1, 0.5, 0.9, np.inf])
    label, columns = np.ones(4), dict(soft=np.full(4, np.nan), longer=np.array([1.0, 1.0, 0.0, 1.0]))
    got = judging.judge_metrics(p_12, p_21, label, **columns)
    kept = judging.judge_metrics(p_12[::2], p_21[::2], label[::2], **{k: v[::2] for k, v in columns.items()})
    assert got == kept | {"n": 4, "not_finite": 2}
    json.dumps(got, allow_nan=False)


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [(0.5, 10, 0.2366, 0.7634), (1.0, 3, 0.4385, 1.0), (0.0, 10, 0.0, 0.2775), (0.739, 1000, 0.7109, 0.7653)],
)
def test_the_score_interval_of_a_share(share, count, low, high):
    assert judging.wilson_interval(share, count) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_the_score_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for truth, count in ((0.75, 40), (0.95, 30), (0.5, 200)):
        found = [judging.wilson_interval(rng.binomial(count, truth) / count, count) for _ in range(2000)]
        assert 0.92 <= np.mean([low <= truth <= high for low, high in found]) <= 0.98


def test_the_bins_cover_everything_once():
    p = np.array([0.0, 0.5, 0.55, 0.549, 0.95, 1.0])
    rows = judging.reliability_bins(p, np.ones(6))
    assert [row["count"] for row in rows] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    assert rows[0]["low"] == 0.5 and rows[-1]["high"] == 1.0
    assert rows[2]["confidence"] is None and rows[2]["frequency"] is None
    assert rows[-1]["frequency"] == pytest.approx(2 / 3)  # p = 0 predicts response 2, which is never the better one


def test_position_bias_is_what_is_left_of_a_slot_preference():
    p = np.array([0.2, 0.6, 0.9])
    assert judging.position_bias(p, 1 - p) == pytest.approx(0)
    assert judging.position_bias(p + 0.1, 1 - p + 0.1) == pytest.approx(0.2)
    always_first = np.full(3, 0.9)
    assert judging.order_consistency(always_first, always_first) == 0
    assert judging.symmetric_probability(always_first, always_first) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("a b", "a", 1), ("a", "a b", 0), ("aa bb", "a b", 1), ("a b", "b a", 0.5), ("", "", 0.5), ("a b", "abcdef", 1)],
)
def test_longer_means_more_words_then_more_characters(first, second, expected):
    assert judging.longer_first([first, second], [second, first]).tolist() == [expected, 1 - expected]


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(Exception, match="(?i)shape|type|broadcast"):
        judging.judge_metrics(np.zeros(3), np.zeros(2), np.zeros(3))
