"""Row 37: arms are compared prompt by prompt, and many of them at once cost something."""

import itertools

import numpy as np
import pytest
from two_arms import curve, make_judge, tables, write_prompts

from prl_jax.judges import Scored
from prl_jax.stages import arms, win_rate


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The prompts, and the final table of two arms, one of which equals the opponent."""
    folder = tmp_path_factory.mktemp("arms")
    prompts = write_prompts(folder)
    with pytest.MonkeyPatch.context() as patch:
        return folder, prompts, tables(folder, prompts, patch)()


def wins_of(found) -> dict[str, np.ndarray]:
    """`[N, K]` wins of each arm, as they were kept."""
    return {name: np.array([line["wins"][name] for line in found.wins]) for name in found.wins[0]["wins"]}


def test_row_37_equal_policies_win_alike_whatever_their_stages_are_called(world):
    folder, prompts, found = world
    wins = wins_of(found)
    np.testing.assert_array_equal(wins["Twin"], wins["sft, sampled"])
    assert len(wins) == 4 and all(won.shape == (7, 2) for won in wins.values())
    assert not np.array_equal(wins["other"], wins["Twin"])
    # The curves of training have the same prompts, opponents and noise as each other, and as the table.
    curves = [curve(folder, prompts, stage, policy="alike")["win_rate"] for stage in ("ppo", "another_ppo")]
    assert curves[0] == curves[1] == pytest.approx(wins["Twin"][:, 0].mean())


@pytest.mark.parametrize("scores", [False, True])
def test_the_best_of_several_is_the_one_that_its_judge_prefers(world, scores, tmp_path, monkeypatch):
    """It wins at least as often by that judge as what it is chosen from, which is the first samples of the policy."""
    prompts, judge = world[1], make_judge()
    if scores:
        worth = lambda asked, texts: [judge.utility(*row) for row in zip(asked, texts, strict=True)]  # noqa: E731
        judge.scored = lambda *rows: Scored(np.array(worth(*rows), np.float32), np.zeros(len(rows[0]), bool))
    best = dict(other=dict(title="best of 3", judge="genrm", best_of=3))
    compare = tables(tmp_path, prompts, monkeypatch)
    one = compare(arms_of=dict(other=dict(title="alone", judge="")))
    monkeypatch.setattr(arms, "sample_policy", spied(arms.sample_policy, seen := []))
    more = compare(arms_of=best, judge=judge)
    drawn = next(texts for texts in seen if len(texts) == 6)  # three for each of two samples
    letters = "abcdefg"
    for n, sample in enumerate(more.samples):
        utilities = [judge.utility(letters[n], column[n]) for column in drawn[:3]]
        assert sample["responses"]["best of 3"] == drawn[int(np.argmax(utilities))][n]
    of = lambda table: next(row for row in table.summary["arms"] if not row["is_opponent"])  # noqa: E731
    assert of(more)["win_rate"] > of(one)["win_rate"] + 0.05
    np.testing.assert_allclose(of(more)["kl"], np.log(3) - 2 / 3)


def spied(function, seen):
    def call(*args, **options):
        found = function(*args, **options)
        seen.append(found.texts)
        return found

    return call


def test_row_37_differences_are_paired(world):
    found = world[2]
    wins = {name: won.mean(1) for name, won in wins_of(found).items()}
    for pair in found.summary["paired"]:
        differences = wins[pair["arm"]] - wins[pair["other"]]
        assert pair["difference"] == pytest.approx(differences.mean())
        # The ends of the interval lie where 2.5 and 97.5 % of resampled differences are below.
        means = np.random.default_rng(1).choice(differences, (4000, 7)).mean(1)
        spread = 0.35 * means.std() + 1e-12  # of 100 resamples
        assert abs(pair["difference_low"] - np.quantile(means, 0.025)) <= 2.5 * spread
        assert abs(pair["difference_high"] - np.quantile(means, 0.975)) <= 2.5 * spread


def test_row_37_tests_are_paired_and_corrected_for_their_number(world):
    found = world[2]
    wins, pairs = {name: won.mean(1) for name, won in wins_of(found).items()}, found.summary["paired"]
    signs = np.array(list(itertools.product((1, -1), repeat=7)))
    for pair in pairs:
        differences = wins[pair["arm"]] - wins[pair["other"]]
        as_far = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12
        assert pair["p_value"] == pytest.approx(as_far.mean())
    check_corrected(pairs)
    assert len(pairs) == 6


def test_row_37_many_tests_are_corrected_in_their_order():
    # Two equal arms and one that is worse nearly everywhere: p-values that are small, equal and far from 1.
    hard, loss = np.random.default_rng(0).uniform(0.4, 0.6, (10, 2)), np.array([[0.2] * 9 + [-0.02]]).T
    wins = [hard, hard.copy(), hard - loss]
    nothing = win_rate.Sampled([], np.zeros((10, 2)), np.zeros((10, 2)))
    compared = [arms.Arm(name, name, False, None, nothing) for name in ("a", "b", "worse")]
    pairs = arms._differences(compared, wins, 100)
    check_corrected(pairs)
    assert sorted(pair["p_value"] for pair in pairs) == [4 / 1024, 4 / 1024, 1]


def check_corrected(pairs) -> None:
    """Holm: the smallest times their number, the next times one less, and none below the one before."""
    ranked, least = sorted(pairs, key=lambda pair: pair["p_value"]), 0.0
    for rank, pair in enumerate(ranked):
        least = max(least, min(1.0, (len(pairs) - rank) * pair["p_value"]))
        assert pair["p_corrected"] == pytest.approx(least)
    assert ranked[0]["p_value"] < ranked[0]["p_corrected"]
