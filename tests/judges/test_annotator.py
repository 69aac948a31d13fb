"""A noisy annotator of the built-in tasks: draws from what labels are drawn from, the same each time."""

import functools
import itertools

import numpy as np
import pytest
from fakes import user

from prl_jax.data.gold import answer, label_distribution, parse
from prl_jax.data.gold.preferences import annotate
from prl_jax.judges import AnnotatorJudge, Judge, ScoringJudge, judge_pairs
from prl_jax.text.chat import prompt_text

COUNT = 4_000


def judge(p_star: float = 0.7, *, noise: float = 0.1, ties: float = 0.3, seed: int = 0) -> AnnotatorJudge:
    """One to whom all pairs are alike: the response with more letters is better with this probability."""

    def labels(prompt, first, second):
        return annotate(p_star if len(first) > len(second) else 1.0 - p_star, noise=noise, ties=ties)

    return AnnotatorJudge(labels, seed=seed)


def pairs(count: int = COUNT):
    """Pairs whose longer response stands first, and in half of them sorts last."""
    prompts = [user(f"q{i}") for i in range(count)]
    return prompts, [f"{'ab'[i % 2]}{i}~" for i in range(count)], [f"{'ba'[i % 2]}{i}" for i in range(count)]


def shares(verdicts: np.ndarray) -> np.ndarray:
    return np.array([np.mean(np.abs(verdicts - p) < 1e-9) for p in (1.0, 0.5, 0.0)])


def assert_shares(verdicts: np.ndarray, expected: np.ndarray) -> None:
    """Every verdict is one of three, as often as expected, within four standard errors."""
    found = shares(verdicts)
    assert found.sum() == pytest.approx(1)
    expected = np.asarray(expected)
    assert (np.abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / len(verdicts)) + 1e-12).all(), found


@pytest.mark.parametrize(
    ("p_star", "noise", "ties"), [(0.7, 0.1, 0.3), (0.5, 0.25, 0.1), (0.95, 0.0, 0.0), (0.2, 0.5, 1.0)]
)
def test_verdicts_are_as_frequent_as_labels(p_star, noise, ties):
    found = judge(p_star, noise=noise, ties=ties)(*pairs()).p_first
    assert_shares(found, annotate(p_star, noise=noise, ties=ties))


def test_verdicts_about_built_in_pairs_follow_their_own_distributions():
    labels = functools.partial(label_distribution, noise=0.25, ties=0.4, intransitivity=1.0)
    rows = []
    for word, family in itertools.product(map("".join, itertools.permutations("abcd")), ("sort", "rev", "next")):
        right = answer(parse(f"{family} {word}!"))
        responses = (right, f"{right}~", right.lower(), word)
        rows += [(user(f"{family} {word}!"), *pair) for pair in itertools.combinations(responses, 2)]
    texts = list(map(list, zip(*rows, strict=True)))
    found = judge_pairs(AnnotatorJudge(labels, seed=3), *texts).p_first
    each = np.array([labels(prompt_text(x), a, b) for x, a, b in zip(*texts, strict=True)])
    told = np.stack([np.abs(found - p) < 1e-9 for p in (1.0, 0.5, 0.0)], axis=1)
    bound = 4 * np.sqrt((each * (1 - each)).sum(0))
    assert (np.abs(told.sum(0) - each.sum(0)) <= bound).all()


def test_swapping_the_responses_swaps_the_verdict():
    one = judge()
    prompts, first, second = pairs(300)
    given, swapped = one(prompts, first, second), one(prompts, second, first)
    np.testing.assert_array_equal(given.z_12, -given.z_21)
    np.testing.assert_array_equal(swapped.z_12, -given.z_12)
    assert (shares(given.p_first) > 0).all() and isinstance(one, Judge) and not isinstance(one, ScoringJudge)
    assert one(prompts, first, first).p_first.tolist() == [0.5] * 300


def test_the_annotator_says_the_same_whenever_it_is_asked():
    prompts, first, second = pairs(300)
    whole = judge()(prompts, first, second).p_first
    again = [judge()(prompts[i : i + 1], first[i : i + 1], second[i : i + 1]).p_first[0] for i in range(299, -1, -1)]
    np.testing.assert_array_equal(whole, again[::-1])
    # On any machine, and in any version: labels of a run stay what they are.
    assert whole[:16].tolist() == [1, 1, 1, 0, 1, 1, 0.5, 0, 1, 0.5, 0, 0, 0, 0.5, 0.5, 0]


def test_seed_prompt_and_texts_draw_anew():
    """Two annotators agree as often as two draws do."""
    prompts, first, second = pairs()
    one = judge()(prompts, first, second).p_first
    agreement = np.square(annotate(0.7, noise=0.1, ties=0.3)).sum()
    others = {
        "seed": judge(seed=1)(prompts, first, second),
        "prompt": judge()([user(f"{x[0].content}.") for x in prompts], first, second),
        "text": judge()(prompts, [f"{text}~" for text in first], second),
    }
    for name, other in others.items():
        found = np.mean(np.abs(one - other.p_first) < 1e-9)
        assert abs(found - agreement) <= 4 * np.sqrt(agreement * (1 - agreement) / COUNT), name
