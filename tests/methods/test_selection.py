"""Selections against truth tables and exact enumeration, and rank agreement against plain loops."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from prl_jax.errors import UserError
from prl_jax.methods.agreement import AGREEMENTS, certainty, kendall_tau_b, spearman, top_order
from prl_jax.methods.selection import (
    SELECTIONS,
    Adjacent,
    All,
    BestWorst,
    Halves,
    JudgedGroup,
    RankThenScore,
    Rejection,
    Selected,
    Selection,
    Softmax,
)

DRAWS = 20_000
NEAR = 4 * math.sqrt(0.25 / DRAWS)  # four standard errors of a frequency
# Win rates 2.3, 1.3, 1.2 and 1.2 thirds; b and c are even, and d beats c, though their win rates are equal.
WINS = np.array([[0.5, 0.9, 0.6, 0.8], [0.1, 0.5, 0.5, 0.7], [0.4, 0.5, 0.5, 0.3], [0.2, 0.3, 0.7, 0.5]])
COMPARED = JudgedGroup(("a", "b", "c", "d"), WINS)
SCORED = JudgedGroup.scored("abcd", np.array([0.0, 1.0, 5.0, 7.0]))
CYCLE = JudgedGroup(("rock", "paper", "scissors"), np.array([[0.5, 0.2, 0.8], [0.8, 0.5, 0.2], [0.2, 0.8, 0.5]]))
PAIRED = [BestWorst(), All(), Adjacent(), Halves(keep=0), Rejection(), Rejection(ranking="tournament"), RankThenScore()]


def selected(selection, group, seed=0):
    """The pairs as tuples of indices."""
    return [tuple(pair) for pair in selection(group, np.random.default_rng(seed))]


def random_group(seed: int, size: int, texts: str = "abcdefgh", scores: bool = True) -> JudgedGroup:
    """Antisymmetric wins with ties, and scores of another judge."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.integers(0, 11, (size, size)) / 10, 1)
    wins = upper + np.tril(1 - upper.T, -1) + np.eye(size) / 2
    return JudgedGroup(tuple(rng.choice(list(texts), size)), wins, rng.normal(size=size) if scores else None)


# Groups


def test_win_rates_are_means_over_the_others_and_sum_to_half_of_the_group():
    np.testing.assert_allclose(COMPARED.win_rates(), [2.3 / 3, 1.3 / 3, 0.4, 0.4])
    for seed, size in itertools.product(range(5), (2, 3, 5, 8)):
        assert random_group(seed, size).win_rates().sum() == pytest.approx(size / 2)
    assert JudgedGroup(("a",), np.full((1, 1), 0.5)).win_rates().tolist() == [0.5]


def test_win_rates_that_are_equal_but_for_rounding_are_equal():
    wins = np.array([[0.5, 0.2, 0.6], [1 - 0.2, 0.5, 0.0], [1 - 0.6, 1.0, 0.5]])
    first, second, _ = wins.sum(1) - wins.diagonal()
    group = JudgedGroup(("a", "b", "c"), wins)
    assert first != second and group.win_rates()[0] == group.win_rates()[1]
    assert selected(Adjacent(), group) == [(2, 0)]


def test_a_response_among_its_own_opponents_moves_win_rates_towards_even():
    """SPPO's released targets at K = 5 are 4/5 of what they should be."""
    group = random_group(0, 5)
    expected = 0.5 + (group.win_rates() - 0.5) * 4 / 5
    np.testing.assert_allclose(group.win_rates(include_self=True), expected)
    np.testing.assert_allclose(group.win_rates(include_self=True), group.wins.mean(1))


def test_scores_are_wins_by_the_sigmoid_of_their_gap():
    scores = np.array([1.0, -0.5, 1.0, 2000.0])
    group = JudgedGroup.scored("abca", scores)
    np.testing.assert_allclose(group.wins[:3, :3], 1 / (1 + np.exp(scores[None, :3] - scores[:3, None])))
    assert group.wins[3].tolist() == [1, 1, 1, 0.5] and group.wins[:, 3].tolist() == [0, 0, 0, 0.5]
    assert group.standings is scores and group.ranked.tolist() == [3, 0, 2, 1]
    assert group.different.tolist() == [[x != y for y in "abca"] for x in "abca"]


# Truth tables


@pytest.mark.parametrize(
    ("selection", "group", "expected"),
    [
        (BestWorst(), COMPARED, [(0, 2)]),  # c and d are equally bad
        (BestWorst(min_gap=0.36), COMPARED, [(0, 2)]),
        (BestWorst(min_gap=0.37), COMPARED, []),
        (BestWorst(), SCORED, [(3, 0)]),
        (BestWorst(min_gap=7.0), SCORED, []),
        (BestWorst(), CYCLE, []),
        (All(), COMPARED, [(0, 1), (0, 3), (1, 3), (3, 2), (0, 2)]),
        (All(min_gap=0.3), COMPARED, [(0, 1), (0, 3), (1, 3), (3, 2)]),
        (All(keep=3), COMPARED, [(0, 1), (0, 3), (1, 3)]),
        (All(keep=3, min_gap=0.5), COMPARED, [(0, 1), (0, 3)]),
        (All(), SCORED, [(3, 0), (3, 1), (2, 0), (2, 1), (3, 2), (1, 0)]),
        (All(min_gap=4.0), SCORED, [(3, 0), (3, 1), (2, 0)]),
        (All(), CYCLE, [(0, 2), (1, 0), (2, 1)]),
        (Adjacent(), COMPARED, [(0, 1), (1, 2)]),
        (Adjacent(), SCORED, [(2, 1), (3, 2), (1, 0)]),
        (Adjacent(keep=1), SCORED, [(2, 1)]),
        (Adjacent(min_gap=1.0), SCORED, [(2, 1), (3, 2)]),
        (Adjacent(), CYCLE, []),
        (Halves(), CYCLE, []),
        (Halves(), JudgedGroup.scored("ab", np.array([0.0, 1.0])), [(1, 0)]),
        (RankThenScore(), COMPARED._replace(scores=np.array([2.0, 9.0, 1.0, 0.0])), [(0, 2)]),
        (RankThenScore(min_gap=1.0), COMPARED._replace(scores=np.array([2.0, 9.0, 1.0, 0.0])), []),
        (RankThenScore(), COMPARED._replace(scores=np.array([1.0, 9.0, 1.0, 0.0])), []),
        (RankThenScore(), COMPARED._replace(scores=np.array([0.0, 9.0, 1.0, 0.0])), []),
        (Softmax(temperature=0.0), SCORED, [(3, None)]),
        (Softmax(temperature=0.0), CYCLE, [(0, None)]),
    ],
    ids=lambda value: str(value) if isinstance(value, Selection) else "",
)
def test_truth_table(selection, group, expected):
    assert selected(selection, group) == expected


def test_the_judge_that_scores_is_not_forgotten():
    with pytest.raises(ValueError, match="rank_then_score: the group has no scores"):
        RankThenScore()(COMPARED, np.random.default_rng(0))


@pytest.mark.parametrize("selection", PAIRED, ids=repr)
def test_pairs_differ_in_their_texts_and_by_more_than_the_least_gap(selection):
    """The texts of a few letters repeat; a judge may prefer one of two equal texts all the same."""
    count = 0
    for seed, size, gap in itertools.product(range(20), (2, 5, 8), (0.0, 0.5)):
        group = random_group(seed, size, "abc", scores=selection.kind == "rank_then_score" or seed % 2 == 0)
        pairs = selected(dataclasses.replace(selection, min_gap=gap), group)
        texts = [frozenset((group.responses[i], group.responses[j])) for i, j in pairs]
        assert all(len(pair) == 2 for pair in texts) and len(set(texts)) == len(texts)
        margins = group.margins if selection.kind in ("all", "rejection") else group.standing_gaps
        assert all(margins[pair] > gap for pair in pairs)
        count += len(pairs)
    assert count > 10


@pytest.mark.parametrize("selection", PAIRED, ids=repr)
def test_nothing_is_selected_where_there_is_no_pair(selection):
    single = JudgedGroup.scored(["a"], np.zeros(1))
    for group in (JudgedGroup.scored([], np.zeros(0)), single, JudgedGroup.scored("aaaa", np.arange(4.0))):
        assert selected(selection, group) == []


@pytest.mark.parametrize("selection", [*PAIRED, Softmax()], ids=repr)
def test_the_same_generator_selects_the_same(selection):
    group = JudgedGroup.scored("abcdefgh", np.random.default_rng(5).normal(size=8))
    outcomes = {seed: selection(group, np.random.default_rng(seed)) for seed in range(10)}
    assert all(selection(group, np.random.default_rng(seed)) == outcome for seed, outcome in outcomes.items())
    drawn = selection.kind in ("rejection", "softmax")  # `Halves` below: all its pairs, in an order that is drawn
    if selection.kind != "halves":
        assert (len({tuple(outcome) for outcome in outcomes.values()}) > 1) == drawn
    found = outcomes[0][0]
    assert type(found) is Selected and type(found.better) is int and type(found.worse) in (int, type(None))


# Halves


@pytest.mark.usefixtures("unchecked")
def test_halves_draws_all_pairs_across_the_middle_alike():
    """Responses from best to worst: c, d, a, e, b; the middle one is never drawn."""
    group, rng = JudgedGroup.scored("abcde", np.array([0.0, -2.0, 2.0, 1.0, -1.0])), np.random.default_rng(0)
    across = set(itertools.product((2, 3), (4, 1)))
    drawn = [tuple(pair) for _ in range(2000) for pair in Halves(keep=2)(group, rng)]
    shares = [drawn.count(pair) / 4000 for pair in across]
    assert set(drawn) == across and all(first != second for first, second in zip(drawn[::2], drawn[1::2], strict=True))
    np.testing.assert_allclose(shares, 0.25, atol=0.03)
    assert len(selected(Halves(), group)) == 1 and set(selected(Halves(keep=0), group)) == across


# Rejection


def inclusion(rewards, beta: float, count: int) -> np.ndarray:
    """The exact probability of each response to be accepted: every order, candidate by candidate."""
    total = np.zeros(len(rewards))

    def sweep(passed, position, rejected, chosen, probability):
        if len(chosen) == count or (position == len(passed) and not rejected):
            total[list(chosen)] += probability
        elif position == len(passed):
            sweep(rejected, 0, (), chosen, probability)
        else:
            one = passed[position]
            accept = math.exp((rewards[one] - max(rewards[i] for i in passed)) / beta)
            sweep(passed, position + 1, rejected, (*chosen, one), probability * accept)
            if accept < 1:
                sweep(passed, position + 1, (*rejected, one), chosen, probability * (1 - accept))

    for order in itertools.permutations(range(len(rewards))):
        sweep(order, 0, (), (), 1 / math.factorial(len(rewards)))
    return total


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("beta", [0.4, 2.0])
def test_rejection_accepts_each_response_as_often_as_the_enumeration_says(beta, count):
    rewards, rng = np.array([0.3, -0.6, 1.0, 0.9]), np.random.default_rng(count)
    selection = Rejection(beta=beta, accepted=count)
    drawn = np.bincount(np.concatenate([selection.accept(rewards, rng) for _ in range(DRAWS)]), minlength=4)
    np.testing.assert_allclose(drawn / DRAWS, inclusion(rewards, beta, count), atol=NEAR)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("rewards", "beta"), [([0.3, -0.6, 1.0, 0.9], 1e9), ([0.7] * 4, 0.1)])
def test_rejection_is_uniform_for_a_large_beta_or_equal_rewards(rewards, beta):
    np.testing.assert_allclose(inclusion(rewards, beta, 3), 0.75, rtol=1e-6)
    selection, rng = Rejection(beta=beta, accepted=3), np.random.default_rng(1)
    orders = [tuple(selection.accept(np.array(rewards), rng).tolist()) for _ in range(DRAWS)]
    shares = [orders.count(order) / DRAWS for order in itertools.permutations(range(4), 3)]
    np.testing.assert_allclose(shares, 1 / 24, atol=NEAR)


def test_rejection_takes_the_best_in_order_for_a_small_beta():
    rewards, selection = np.random.default_rng(0).normal(size=12), Rejection(beta=1e-9, accepted=5)
    for seed in range(20):
        accepted = selection.accept(rewards, np.random.default_rng(seed))
        assert accepted.tolist() == np.argsort(-rewards)[:5].tolist()


def test_rejection_sees_differences_of_rewards_only_and_repeats_nobody():
    rewards, selection = np.arange(10) / 8, Rejection(accepted=6)
    for seed in range(20):
        accepted = selection.accept(rewards, np.random.default_rng(seed)).tolist()
        shifted = selection.accept(rewards + 64, np.random.default_rng(seed)).tolist()
        assert accepted == shifted and len(set(accepted)) == 6
    everybody = Rejection(accepted=20).accept(rewards, np.random.default_rng(0))
    assert sorted(everybody.tolist()) == list(range(10))


@pytest.mark.parametrize("size", range(2, 10))
def test_rankings_of_the_accepted(size):
    """A round has disjoint matches; in a tournament all but the best lose once, and who was left over plays next."""
    group = JudgedGroup.scored("abcdefghi"[:size], np.random.default_rng(size).normal(size=size))
    everybody = set(range(size))
    matches = selected(Rejection(accepted=size), group)
    assert len(matches) == size // 2 and len({i for match in matches for i in match}) == 2 * len(matches)
    matches = selected(Rejection(accepted=size, ranking="tournament"), group)
    assert sorted(worse for _, worse in matches) == sorted(everybody - {int(group.scores.argmax())})
    assert all(group.scores[better] > group.scores[worse] for better, worse in matches)
    two_rounds = matches[: size // 2 + (size + 1) // 2 // 2]
    assert {i for match in two_rounds for i in match} == everybody


def test_rejection_ranks_by_the_match_itself():
    """In a cycle all win rates are equal, and so all are accepted; each match has a winner nevertheless."""
    matches = {match for seed in range(50) for match in selected(Rejection(), CYCLE, seed)}
    assert matches == {(0, 2), (1, 0), (2, 1)}


def test_in_a_tournament_the_lower_index_goes_on_from_an_even_match():
    """a and b are even, and c beats both: where a meets b first, a goes on, and c never meets b."""
    group = JudgedGroup(("a", "b", "c"), np.array([[0.5, 0.5, 0.1], [0.5, 0.5, 0.2], [0.9, 0.8, 0.5]]))
    found = {frozenset(selected(Rejection(ranking="tournament"), group, seed)) for seed in range(50)}
    assert found == {frozenset({(2, 0)}), frozenset({(2, 0), (2, 1)})}


# Demonstrations


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_softmax_is_the_curated_step(temperature):
    """`p'(y) = p(y) E[K e^r(y) / (e^r(y) + sum of e^r)]` for K = 2 and three responses, over all groups."""
    p, r = np.array([0.5, 0.3, 0.2]), np.array([0.3, -1.0, 2.0])
    selection, curated = Softmax(temperature=temperature), np.zeros(3)
    for group in itertools.product(range(3), repeat=2):
        judged = JudgedGroup.scored(["xyz"[i] for i in group], r[list(group)])
        np.add.at(curated, list(group), p[list(group)].prod() * selection.probabilities(judged))
    e = np.exp(r / temperature)
    np.testing.assert_allclose(curated, p * (2 * e[:, None] / (e[:, None] + e[None, :]) * p[None, :]).sum(1))
    assert curated.sum() == pytest.approx(1)


@pytest.mark.usefixtures("unchecked")
def test_softmax_draws_as_often_as_its_probabilities_say():
    rng, selection = np.random.default_rng(0), Softmax(temperature=2.0)
    drawn = np.bincount([selection(SCORED, rng)[0].better for _ in range(DRAWS)], minlength=4) / DRAWS
    e = np.exp(SCORED.scores / 2)
    np.testing.assert_allclose(selection.probabilities(SCORED), e / e.sum())
    np.testing.assert_allclose(drawn, e / e.sum(), atol=NEAR)


def test_softmax_of_one_response_is_the_response():
    for temperature in (0.0, 1.0):
        assert selected(Softmax(temperature=temperature), JudgedGroup.scored(["a"], np.array([3.0]))) == [(0, None)]
    assert selected(Softmax(), JudgedGroup.scored([], np.zeros(0))) == []


def test_softmax_of_a_low_temperature_takes_the_best():
    np.testing.assert_array_equal(Softmax(temperature=1e-3).probabilities(SCORED), [0, 0, 0, 1])
    rates = COMPARED.win_rates()
    np.testing.assert_allclose(Softmax().probabilities(COMPARED), np.exp(rates) / np.exp(rates).sum())


# Keys


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        *((cls, "min_gap", -0.1) for cls in (BestWorst, All, Adjacent, Halves, Rejection, RankThenScore)),
        *((cls, "keep", -1) for cls in (All, Adjacent, Halves)),
        (All, "min_gap", math.nan),
        (Rejection, "beta", 0.0),
        (Rejection, "accepted", 1),
        (Rejection, "ranking", "league"),
        (Softmax, "temperature", -1.0),
    ],
)
def test_bad_fields_are_refused_by_name(cls, key, value):
    with pytest.raises(UserError, match=f"^{key}="):
        cls(**{key: value})


@pytest.mark.parametrize("kind", SELECTIONS)
def test_each_kind_is_complete(kind):
    """The fields have defaults, which are types of keys, and each has its sentence."""
    cls = SELECTIONS[kind]
    assert cls.kind == kind and isinstance(cls(), Selection) and cls.output in ("pairs", "demonstrations")
    assert all(f"\n      {field.name}: " in cls.__doc__ for field in dataclasses.fields(cls))


def test_the_table_has_every_selection():
    kinds = {"best_worst", "all", "adjacent", "halves", "rejection", "softmax", "rank_then_score"}
    assert set(SELECTIONS) == kinds
    assert [kind for kind, cls in SELECTIONS.items() if cls.needs == ("pairs", "scores")] == ["rank_then_score"]
    assert [kind for kind, cls in SELECTIONS.items() if cls.output == "demonstrations"] == ["softmax"]
    assert {kind: cls.least_group for kind, cls in SELECTIONS.items() if cls.least_group != 2} == {
        "halves": 4, "softmax": 1,
    }  # fmt: skip


# Agreement of rankings


def tau_by_loops(first, second) -> float:
    """`(concordant - discordant) / sqrt(pairs untied in the first * pairs untied in the second)`."""
    pairs = list(itertools.combinations(range(len(first)), 2))
    products = [(first[i] - first[j]) * (second[i] - second[j]) for i, j in pairs]
    untied = [sum(x[i] != x[j] for i, j in pairs) for x in (first, second)]
    balance = sum(x > 0 for x in products) - sum(x < 0 for x in products)
    return balance / math.sqrt(untied[0] * untied[1]) if min(untied) else 0.0


def mean_ranks(values) -> list[float]:
    ordered = sorted(values)
    return [np.mean([i for i, x in enumerate(ordered) if x == value]) for value in values]


def test_agreement_is_what_loops_say_ties_included():
    rng = np.random.default_rng(0)
    for size in (2, 3, 5, 8):
        for _ in range(50):
            first, second = rng.integers(0, 4, (2, size)).astype(float)
            assert kendall_tau_b(first, second) == pytest.approx(tau_by_loops(first, second))
            ranks = mean_ranks(first), mean_ranks(second)
            constant = min(map(np.ptp, ranks)) == 0
            expected = 0.0 if constant else np.corrcoef(*ranks)[0, 1]
            assert spearman(first, second) == pytest.approx(expected)


@pytest.mark.parametrize("name", AGREEMENTS)
def test_agreement_runs_from_reversed_to_identical(name):
    agreement, values = AGREEMENTS[name], np.array([0.3, 2.0, -1.0, 0.9])
    for ranking in (values, np.array([1.0, 1.0, 0.0])):
        assert agreement(ranking, ranking) == agreement(ranking, np.exp(ranking)) == 1
        assert agreement(ranking, -ranking) == -1
    for other in (values, np.full(4, 2.0)):
        assert agreement(np.zeros(4), other) == agreement(other, np.zeros(4)) == 0
    assert agreement(np.zeros(1), np.zeros(1)) == 0
    other = np.array([0.0, 1.0, 5.0, 2.0])
    assert agreement(values, other) == agreement(other, values) and -1 <= agreement(values, other) <= 1


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ([9, 4, 5, 0], 1),  # who is in the middle does not matter
        ([9, 0, 5, 4], -1),  # another one is worst
        ([5, 4, 9, 0], -1),  # another one is best
        ([0, 1, 2, 3], -1),
        ([9, 9, 5, 0], 1),  # among ties the lowest index
        ([9, 0, 5, 0], -1),
    ],
)
def test_top_order_asks_who_is_best_and_who_is_worst(second, expected):
    assert top_order(np.array([3.0, 2.0, 1.0, 0.0]), np.array(second, float)) == expected


def test_certainty_is_a_probability():
    assert [certainty(x) for x in (-1.0, 0.0, 0.5, 1.0)] == [0, 0.5, 0.75, 1]
