import numpy as np
import pytest

from prl_jax.errors import UserError
from prl_jax.evaluation import win_rate


def test_the_interval_is_reproducible_and_holds_the_mean():
    values = np.random.default_rng(1).uniform(size=50)
    mean, low, high = win_rate.bootstrap_interval(values)
    assert (mean, low, high) == win_rate.bootstrap_interval(values)
    assert (mean, low, high) != win_rate.bootstrap_interval(values, seed=1)
    assert low < mean < high and mean == pytest.approx(values.mean())


def test_chunks_do_not_change_the_interval(monkeypatch):
    values = np.random.default_rng(1).uniform(size=50)
    whole = win_rate.bootstrap_interval(values, samples=333)
    monkeypatch.setattr(win_rate, "_CHUNK", 200)
    assert win_rate.bootstrap_interval(values, samples=333) == whole


def test_the_interval_has_the_textbook_width():
    values = np.random.default_rng(0).normal(0.5, 0.2, size=2000)
    mean, low, high = win_rate.bootstrap_interval(values)
    standard_error = values.std() / np.sqrt(len(values))
    assert (high - low) / 2 == pytest.approx(1.96 * standard_error, rel=0.08)
    _, low_80, high_80 = win_rate.bootstrap_interval(values, level=0.8)
    assert (high_80 - low_80) / 2 == pytest.approx(1.2816 * standard_error, rel=0.08)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        _, low, high = win_rate.bootstrap_interval(rng.beta(2, 2, size=60), samples=400, seed=seed)
        covered += low <= 0.5 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_constant_values_have_no_width():
    assert win_rate.bootstrap_interval(np.full(7, 0.25)) == (0.25, 0.25, 0.25)


def test_samples_of_one_prompt_are_one_unit():
    per_prompt = np.random.default_rng(0).uniform(size=40)
    repeated = np.repeat(per_prompt[:, None], 8, axis=1)
    one, many = win_rate.win_rate_summary(per_prompt), win_rate.win_rate_summary(repeated)
    assert one["prompts"] == many["prompts"] == 40
    for key in ("win_rate", "win_rate_low", "win_rate_high"):
        assert one[key] == pytest.approx(many[key])


def test_no_values_and_nan_are_refused():
    for values in (np.zeros(0), np.array([0.5, np.nan])):
        with pytest.raises(UserError, match="finite values"):
            win_rate.bootstrap_interval(values)


def test_equal_policies_differ_by_nothing():
    wins = np.random.default_rng(0).uniform(size=(40, 4))
    found = win_rate.paired_interval(wins, wins.copy())
    assert found == {
        "difference": 0, "difference_low": 0, "difference_high": 0, "prompts": 40, "prompts_left_out": 0
    }  # fmt: skip


def test_a_known_difference_is_found_within_its_paired_interval():
    """What is hard or easy for both cancels: the interval is that of the differences, however much prompts differ."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(size=(500, 1))
    first, second = (np.clip(hard + shift + 0.05 * rng.normal(size=(500, 4)), -9, 9) for shift in (0.03, 0.0))
    found = win_rate.paired_interval(first, second)
    assert found["difference_low"] < 0.03 < found["difference_high"] and found["difference_low"] > 0
    standard_error = (first - second).mean(1).std() / np.sqrt(500)
    width = found["difference_high"] - found["difference_low"]
    assert width == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
    alone = [win_rate.win_rate_summary(wins) for wins in (first, second)]
    assert all(wins["win_rate_high"] - wins["win_rate_low"] > 5 * width for wins in alone)
    assert win_rate.paired_interval(second, first)["difference"] == pytest.approx(-found["difference"])
    # Policies may have different numbers of samples.
    assert win_rate.paired_interval(first[:, 0], second)["prompts"] == 500


def test_the_paired_interval_covers_the_truth_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        hard = rng.beta(2, 2, size=60)
        first, second = (rng.binomial(4, np.clip(hard + shift, 0, 1)) / 4 for shift in (0.0, 0.0))
        found = win_rate.paired_interval(first, second, samples=400, seed=seed)
        covered += found["difference_low"] <= 0 <= found["difference_high"]
    assert 0.89 <= covered / 200 <= 0.99


def test_prompts_without_a_finite_number_are_left_out_and_counted():
    wins = np.random.default_rng(0).uniform(size=(30, 2))
    broken = wins.copy()
    broken[3, 1], broken[7] = np.nan, np.inf
    kept = np.delete(wins, [3, 7], axis=0)
    assert win_rate.win_rate_summary(broken) == win_rate.win_rate_summary(kept) | {"prompts_left_out": 2}
    for pair in ((broken, wins), (wins, broken)):
        found = win_rate.paired_interval(*pair)
        assert (found["difference"], found["prompts"], found["prompts_left_out"]) == (0, 28, 2)
    nothing = win_rate.win_rate_summary(np.full((4, 2), np.nan))
    assert nothing == {
        "win_rate": None, "win_rate_low": None, "win_rate_high": None, "prompts": 0, "prompts_left_out": 4
    }  # fmt: skip


def test_one_prompt_has_no_interval():
    one = win_rate.win_rate_summary(np.array([0.9]))
    assert (one["win_rate"], one["win_rate_low"], one["win_rate_high"]) == (0.9, None, None)
    assert win_rate.paired_interval(np.array([0.9]), np.array([0.5]))["difference_low"] is None


def test_a_paired_interval_needs_the_same_prompts():
    with pytest.raises(Exception, match="3 and 4 prompts|Type-check"):
        win_rate.paired_interval(np.zeros(3), np.zeros(4))
