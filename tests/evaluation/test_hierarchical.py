"""Intervals over sets of judges, repetitions and prompts: whether they hold what they promise."""

import numpy as np
import pytest

from prl_jax.errors import UserError
from prl_jax.evaluation.hierarchical import arm_estimate, at_divergence, compare_arms

RNG = np.random.default_rng


def arm(rng, mean, sets, repetitions, prompts, *, of_set=0.03, of_run=0.02, shared=None):
    """Wins whose sets, repetitions and prompts have luck of their own; `shared` are the sets' and prompts' parts."""
    shared = shared or [(of_set * rng.normal(), 0.2 * rng.normal(size=prompts)) for _ in range(sets)]
    noise = lambda: of_run * rng.normal() + 0.1 * rng.normal(size=prompts)  # noqa: E731
    return [np.array([mean + luck + hard + noise() for _ in range(repetitions)]) for luck, hard in shared], shared


@pytest.mark.parametrize("of_set", [0.0, 0.01, 0.05])
def test_the_interval_of_an_arm_covers_its_mean_whatever_sets_were_drawn(of_set):
    """Of three sets with five repetitions, 19 in 20 intervals hold the truth, and the error is what means differ by;
    intervals over prompts alone hold it less often, where sets have luck of their own."""
    rng, held, narrow, values, errors, trials = RNG(0), 0, 0, [], [], 400
    for _ in range(trials):
        wins, _ = arm(rng, 0.6, 3, 5, 40, of_set=of_set)
        found = arm_estimate(wins)
        held += found.low <= 0.6 <= found.high
        values.append(found.value)
        errors.append(found.error**2)
        means = np.concatenate([one.mean(0) for one in wins])
        narrow += abs(means.mean() - 0.6) <= 1.96 * means.std() / np.sqrt(len(means))
    assert 0.92 <= held / trials <= 0.98
    assert 0.8 <= np.mean(errors) / np.var(values) <= 1.25
    assert (narrow / trials < 0.85) == (of_set > 0.01)


def test_of_one_set_the_error_is_that_of_repetitions_and_prompts():
    """Its truth is what more repetitions, at other prompts, would have on the same judges."""
    rng, values, errors, held, trials = RNG(5), [], [], 0, 400
    for _ in range(trials):
        wins, _ = arm(rng, 0.6, 1, 6, 40, of_set=0.0)
        found = arm_estimate(wins)
        values.append(found.value)
        errors.append(found.error**2)
        held += found.low <= 0.6 <= found.high
    assert 0.8 <= np.mean(errors) / np.var(values) <= 1.3 and held / trials >= 0.93


def test_what_both_arms_meet_cancels_and_a_true_null_is_seldom_refused():
    rng, refused, wide, trials = RNG(1), 0, [], 200
    for _ in range(trials):
        first, shared = arm(rng, 0.6, 3, 5, 40, of_set=0.1)
        second, _ = arm(rng, 0.6, 3, 5, 40, shared=shared)
        found = compare_arms(first, second)
        refused += found.p_value < 0.05
        wide.append(arm_estimate(first).error / found.difference.error)
    assert 0.02 <= refused / trials <= 0.09 and np.median(wide) > 2


def test_a_difference_as_large_as_the_detectable_one_is_found_four_times_of_five():
    rng, found, trials = RNG(2), 0, 150
    reach = np.mean([_compare(rng, 0.0).detectable for _ in range(40)])
    for _ in range(trials):
        found += _compare(rng, reach).p_value < 0.05
    assert 0.65 <= found / trials <= 0.95


def _compare(rng, difference):
    first, shared = arm(rng, 0.6 + difference, 4, 4, 60)
    return compare_arms(first, arm(rng, 0.6, 4, 4, 60, shared=shared)[0])


def test_of_one_set_the_repetitions_are_the_unit_and_one_run_has_no_interval():
    wins, _ = arm(RNG(3), 0.6, 1, 6, 50)
    found = arm_estimate(wins)
    assert (found.sets, found.repetitions, found.freedom) == (1, 6, 5) and found.low < found.value < found.high
    alone = arm_estimate([wins[0][:1]])
    assert alone.low is alone.error is None and alone.value == wins[0][0].mean()
    compared = compare_arms([wins[0][:1]], [wins[0][1:2]])
    assert compared.p_value is compared.detectable is None


def test_equal_arms_do_not_differ_and_the_same_seed_gives_the_same_numbers():
    wins, _ = arm(RNG(4), 0.6, 3, 2, 30)
    assert compare_arms(wins, wins) == compare_arms(wins, wins)
    fixed = [np.full((2, 5), 0.5)] * 3
    assert compare_arms(fixed, fixed)[1:] == (1.0, 0.0)
    assert compare_arms([x + 0.1 for x in fixed], fixed).p_value < 1e-6


@pytest.mark.parametrize("wins", [[], [np.full((1, 2), np.nan)], [np.zeros((0, 3))]])
def test_nothing_to_count_is_refused(wins):
    with pytest.raises(UserError, match="needs"):
        arm_estimate(wins)


def test_arms_of_other_prompts_are_refused():
    with pytest.raises(ValueError, match="5 and 4 prompts"):
        compare_arms([np.zeros((1, 5))], [np.zeros((1, 4))])


def test_wins_at_a_divergence_lie_between_those_of_its_neighbours():
    wins = np.array([[0.7, 0.9], [0.5, 0.5], [0.6, 0.6]])
    np.testing.assert_allclose(at_divergence([2.0, 0.0, 1.0], wins, 1.5), [0.65, 0.75])
    np.testing.assert_allclose(at_divergence([2.0, 0.0, 1.0], wins, 1.0), wins[2])
    np.testing.assert_allclose(at_divergence([2.0, 0.0, 1.0], wins, 2.0), wins[0])
    np.testing.assert_allclose(at_divergence([1.0], wins[:1], 1.0), wins[0])
    assert at_divergence([2.0, 0.5], wins[:2], 0.4) is None and at_divergence([], wins[:0], 1.0) is None
