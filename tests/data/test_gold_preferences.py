"""Utility and preference of the built-in tasks have the properties that are claimed for them."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prl_jax.data.gold import (
    FAMILIES,
    Attributes,
    answer,
    attributes,
    bayes_accuracy,
    cyclic,
    label_distribution,
    preference,
    render,
    scale,
    utility,
)
from prl_jax.data.gold.candidates import sample_task
from prl_jax.data.gold.families import DIFFICULTIES, forms
from prl_jax.data.gold.preferences import edit_distance, utility_of

PROMPTS = ("sort dbca.", "sort dbca!", "rev dbca!", "next dbca.", "count abaa!", "a>e bada.", ">c dbfe?", "3+9+4?")
TEXT = st.text(alphabet="abcdABCD<>~ 1,é", max_size=12)
SHARE = st.floats(0, 1)
SETTINGS = settings(max_examples=200, deadline=None, derandomize=True)


def all_tasks():
    rng = random.Random(0)
    for family, difficulty in itertools.product(FAMILIES, DIFFICULTIES):
        for _ in range(20):
            yield sample_task(rng, family, difficulty)


@SETTINGS
@given(st.sampled_from(PROMPTS), TEXT)
def test_any_text_has_attributes_and_utility_in_range(prompt, response):
    values = attributes(prompt, response)
    assert all(0 <= value <= 1 for value in values)
    assert 0 <= utility(prompt, response) <= 1


@SETTINGS
@given(st.sampled_from(PROMPTS), TEXT, TEXT, st.sampled_from([0.0, 0.3, 1.7]))
def test_preference_is_exactly_skew_symmetric(prompt, first, second, intransitivity):
    forth = preference(prompt, first, second, intransitivity=intransitivity)
    back = preference(prompt, second, first, intransitivity=intransitivity)
    assert 0 <= forth <= 1
    assert forth + back == 1.0
    assert preference(prompt, first, first, intransitivity=intransitivity) == 0.5


@SETTINGS
@given(st.tuples(SHARE, SHARE, SHARE), st.tuples(SHARE, SHARE, SHARE))
def test_utility_rises_in_every_attribute_and_the_cyclic_form_is_skew(first, second):
    a, b = Attributes(*first), Attributes(*second)
    low, high = Attributes(*map(min, a, b)), Attributes(*map(max, a, b))
    assert utility_of(low) <= utility_of(high)
    for name in Attributes._fields:
        assert utility_of(low) <= utility_of(low._replace(**{name: getattr(high, name)})) <= 1
    assert cyclic(a, b) == -cyclic(b, a) and abs(cyclic(a, b)) <= 1


def test_each_attribute_matters_by_itself():
    assert attributes("sort dbca!", "ABCD") == (1, 1, 1)
    assert attributes("sort dbca!", "abcd") == (1, 0, 1)
    assert attributes("sort dbca!", "ABCD~~") == (1, 1, 0.25)
    assert attributes("sort dbca!", "ABCD ok") == (1, 1, 0.125)
    assert attributes("sort dbca?", "<abcd>") == (1, 1, 1)
    assert attributes("sort dbca?", "<abcd") == (1, 0.5, 1)
    assert attributes("sort dbca.", "abCD") == (1, 0.5, 1)
    assert attributes("3+9+4?", "12,16") == (1, 0, 1)
    near, far = attributes("sort dbca.", "abce"), attributes("sort dbca.", "bbce")
    assert 1 > near.correctness > far.correctness and near.form == near.brevity == 1


def test_form_is_judged_against_the_prompt():
    """The same two responses, the opposite winner: no judge that sees only responses can know."""
    for plain, formed, low, high in (
        ("sort dbca.", "sort dbca!", "abcd", "ABCD"),
        ("3+9+4.", "3+9+4?", "12,16", "<12,16>"),
    ):
        assert preference(plain, low, high) > 0.7
        assert preference(formed, low, high) < 0.2


def test_only_the_best_response_has_utility_one_and_garbage_is_near_zero():
    rng = random.Random(1)
    for task in all_tasks():
        prompt, best = render(task), answer(task)
        assert utility(prompt, best) == 1.0
        for flawed in (
            best + "~",
            best + " ",
            best[:-1],
            best.swapcase() if best.upper() != best.lower() else f"<{best}",
        ):
            assert utility(prompt, flawed) < 1.0
        for garbage in ("", "~", "!!", "<>", "zzzzzzzz", best * 4, "x" * 300):
            assert utility(prompt, garbage) < 0.03
    others = []
    for task in all_tasks():
        other = sample_task(rng, task.family, task.difficulty)
        others.append(utility(render(task), answer(other)) if other.payload != task.payload else 0.0)
    assert sum(others) / len(others) < 0.15


def test_edit_distance():
    cases = {
        ("abcd", "abcd"): 0,
        ("", "abc"): 3,
        ("abcd", "abdc"): 1,
        ("abcd", "bcd"): 1,
        ("ab", "ba"): 1,
        ("abc", "xyz"): 3,
    }
    for (a, b), distance in cases.items():
        assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_scale_depends_on_the_prompt_over_a_wide_range_and_sharpens_the_preference():
    scales = {scale(render(task)) for task in all_tasks()}
    assert min(scales) == 4.0 and max(scales) == 20.0 and len(scales) >= 10
    for family in FAMILIES:
        tasks = [sample_task(random.Random(i), family, 1) for i in range(30)]
        assert len({scale(render(task)) for task in tasks}) == 2 <= len(forms(family, 1))
    # The same attributes, so the same utility gap, under two prompts.
    blunt, sharp = ("a>e bada.", "bede"), ("next dbca!", "ECDB")
    gaps = [utility(prompt, best) - utility(prompt, best + "~") for prompt, best in (blunt, sharp)]
    assert gaps[0] == pytest.approx(gaps[1])
    assert preference(sharp[0], sharp[1], sharp[1] + "~") > preference(blunt[0], blunt[1], blunt[1] + "~") + 0.2


def _cycles(intransitivity):
    """How many triples of responses go round in a circle, over a few prompts."""
    count = 0
    for prompt, responses in (
        ("sort dbca!", ("ABCD~~~", "abcd", "ABDC", "ABCD~", "abdc", "abcd~", "ABC")),
        (">c dbfe.", ("dfe~~~", "DFE", "df", "dfe~", "dee", "DEE~", "fe")),
        ("rev dbcafe.", ("efacbd~~~~", "EFACBD", "efacdb", "fecbd", "efacbd~")),
    ):
        beats = {
            (a, b): preference(prompt, a, b, intransitivity=intransitivity) > 0.5
            for a, b in itertools.permutations(responses, 2)
        }
        count += sum(beats[a, b] and beats[b, c] and beats[c, a] for a, b, c in itertools.permutations(responses, 3))
    return count


def test_cycles_exist_exactly_with_intransitivity():
    assert _cycles(0.0) == 0
    assert 0 < _cycles(1.0) < _cycles(2.0)


def test_label_distribution():
    options = {"noise": 0.05, "ties": 0.2, "intransitivity": 0.0}
    for first, second in (("abcd", "abcd~"), ("abcd", "dcba"), ("abce", "ABCD"), ("abcd", "abcd")):
        p = preference("sort dbca.", first, second)
        win, tie, loss = label_distribution("sort dbca.", first, second, **options)
        assert win + tie + loss == pytest.approx(1)
        assert (loss, tie, win) == pytest.approx(label_distribution("sort dbca.", second, first, **options))
        assert tie == pytest.approx(0.2 * 4 * p * (1 - p))
        assert win / (win + loss) == pytest.approx(0.95 * p + 0.05 * (1 - p))
    assert label_distribution("sort dbca.", "abcd", "abcd", **options)[1] == pytest.approx(0.2)  # most ties at 1/2
    clean = label_distribution("sort dbca.", "abcd", "abcd~", noise=0.0, ties=0.0, intransitivity=0.0)
    assert clean[0] == preference("sort dbca.", "abcd", "abcd~") and clean[1] == 0


def test_bayes_accuracy_is_one_minus_noise_where_everything_is_clear():
    clear = [("next dbca!", "ECDB", "x"), ("next dbca!", "x", "ECDB")]
    assert bayes_accuracy(clear, noise=0.05, ties=0.0) == pytest.approx(0.95, abs=1e-6)
    assert bayes_accuracy([("next dbca!", "x", "x")], noise=0.05, ties=0.5) == pytest.approx(0.5)
