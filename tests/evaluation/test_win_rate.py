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
