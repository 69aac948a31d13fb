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


def test_the_interval_of_an_arm_covers_its_mean_whatever_sets_were_drawn():
    """Three sets, five repetitions: 19 in 20 intervals hold the truth, and of those over prompts alone far fewer."""
    rng, held, narrow, trials = RNG(0), 0, 0, 200
    for _ in range(trials):
        wins, _ = arm(rng, 0.6, 3, 5, 40, of_set=0.05)
        found = arm_estimate(wins, samples=150)
        held += found.low <= 0.6 <= found.high
        means = np.concatenate([one.mean(0) for one in wins])
        narrow += abs(means.mean() - 0.6) <= 1.96 * means.std() / np.sqrt(len(means))
    assert 0.91 <= held / trials <= 1.0 and narrow / trials < 0.85


def test_what_both_arms_meet_cancels_and_a_true_null_is_seldom_refused():
    rng, refused, wide, trials = RNG(1), 0, [], 200
    for _ in range(trials):
        first, shared = arm(rng, 0.6, 3, 5, 40, of_set=0.1)
        second, _ = arm(rng, 0.6, 3, 5, 40, shared=shared)
        found = compare_arms(first, second, samples=150)
        refused += found.p_value < 0.05
        wide.append(arm_estimate(first, samples=150).error / found.difference.error)
    assert refused / trials <= 0.09 and np.median(wide) > 2


def test_a_difference_as_large_as_the_detectable_one_is_found_four_times_of_five():
    rng, found, trials = RNG(2), 0, 150
    reach = np.mean([_compare(rng, 0.0).detectable for _ in range(40)])
    for _ in range(trials):
        found += _compare(rng, reach).p_value < 0.05
    assert 0.65 <= found / trials <= 0.95


def _compare(rng, difference):
    first, shared = arm(rng, 0.6 + difference, 4, 4, 60)
    return compare_arms(first, arm(rng, 0.6, 4, 4, 60, shared=shared)[0], samples=150)


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
    assert compare_arms(wins, wins, samples=50) == compare_arms(wins, wins, samples=50)
    fixed = [np.full((2, 5), 0.5)] * 3
    assert compare_arms(fixed, fixed, samples=50)[1:] == (1.0, 0.0)
    assert compare_arms([x + 0.1 for x in fixed], fixed, samples=50).p_value < 1e-6


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
