"""Pairs tell nothing without the prompt; demonstrations are flawed in a way that can be unlearned."""

import collections
import random

import numpy as np
import pytest

from prl_jax.data.gold import (
    FAMILIES,
    GoldArguments,
    answer,
    bayes_accuracy,
    demonstration,
    label_distribution,
    render,
    split_of,
    typical_demonstration,
    utility,
)
from prl_jax.data.gold.candidates import sample_pair, sample_split_task, sample_task
from prl_jax.data.gold.families import DIFFICULTIES, PLAIN

ARGS = GoldArguments()
NOISE = {"noise": ARGS.noise, "ties": ARGS.ties, "intransitivity": 0.0}


def draw_pairs(difficulty, split, count, families=tuple(FAMILIES)):
    """[(prompt, first, second, label of first in {0, 1/2, 1})]"""
    rng = random.Random(f"{difficulty} {split}")
    rows = []
    for i in range(count):
        task = sample_split_task(rng, families[i % len(families)], difficulty, split, set())
        pair = sample_pair(rng, task, ARGS)
        assert split_of(pair.task) == split and pair.first != pair.second
        prompt = render(pair.task)
        first, tie, _ = label_distribution(prompt, pair.first, pair.second, **NOISE)
        value = rng.random()
        rows.append((prompt, pair.first, pair.second, 1.0 if value < first else 0.5 if value < first + tie else 0.0))
    return rows


def response_features(index, response):
    """Character 1- to 3-grams with both ends marked, the length, filler and case: all that a response shows."""
    text = f"^{response}$"
    names = [text[i : i + n] for n in (1, 2, 3) for i in range(len(text) - n + 1)]
    names += [f"length {len(response)}", f"ends {text[1]}{text[-2]}", f"case {response.isupper()}"]
    return [index.setdefault(name, len(index) + 1) for name in names]


def response_only_accuracy(train, test):
    """Test accuracy of logistic regression on the difference of response features, ties left out."""
    index = {}

    def encode(rows):
        rows = [row for row in rows if row[3] != 0.5]
        features = np.zeros((len(rows), 160), np.int64)  # feature 0 stands for nothing
        signs = np.zeros((len(rows), 160), np.float32)
        for i, (_, first, second, _) in enumerate(rows):
            mine, other = response_features(index, first), response_features(index, second)
            features[i, : len(mine) + len(other)] = mine + other
            signs[i, : len(mine) + len(other)] = [1] * len(mine) + [-1] * len(other)
        return features, signs, np.array([row[3] for row in rows], np.float32)

    (x, signs, y), (x_test, signs_test, y_test) = encode(train), encode(test)
    w, momentum = np.zeros(len(index) + 1, np.float32), np.zeros(len(index) + 1, np.float32)
    order = np.random.default_rng(0)
    for step in range(300):
        rows = order.integers(len(y), size=512)
        error = 1 / (1 + np.exp(-(w[x[rows]] * signs[rows]).sum(1))) - y[rows]
        gradient = np.bincount(x[rows].ravel(), (signs[rows] * error[:, None]).ravel(), len(w)) / 512 + 3e-3 * w
        momentum = 0.9 * momentum + gradient
        w = w - 0.05 * (1 - step / 300) * momentum

    def accuracy(features, signs, labels):
        return float(np.mean(((w[features] * signs).sum(1) > 0) == (labels == 1)))

    assert accuracy(x, signs, y) > 0.5  # it did fit something
    return accuracy(x_test, signs_test, y_test)


def test_the_response_only_judge_finds_a_leak_where_there_is_one():
    rng = random.Random(0)
    rows = [("", f"{rng.randrange(1000)}", f"{rng.randrange(1000)}~", 1.0) for _ in range(1000)]
    rows = [row if i % 2 else (row[0], row[2], row[1], 0.0) for i, row in enumerate(rows)]
    assert response_only_accuracy(rows[:500], rows[500:]) > 0.99


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_responses_alone_do_not_tell_the_winner(difficulty, unchecked):
    train, test = draw_pairs(difficulty, "train", 6000), draw_pairs(difficulty, "test", 3000)
    decided = [row for row in test if row[3] != 0.5]
    longer = [0.5 if len(a) == len(b) else float((len(a) > len(b)) == (label == 1)) for _, a, b, label in decided]
    assert 0.4 <= np.mean(longer) <= 0.6
    assert response_only_accuracy(train, test) <= 0.6
    bayes = bayes_accuracy((row[:3] for row in test), noise=ARGS.noise, ties=ARGS.ties)
    assert bayes >= 0.8
    oracle = [(utility(prompt, a) > utility(prompt, b)) == (label == 1) for prompt, a, b, label in decided]
    assert np.mean(oracle) == pytest.approx(bayes, abs=0.03)  # sampled labels behave as their distribution says


@pytest.mark.parametrize("family", FAMILIES)
def test_single_families_do_not_leak_either(family, unchecked):
    train, test = draw_pairs(0, "train", 2500, (family,)), draw_pairs(0, "test", 1500, (family,))
    assert response_only_accuracy(train, test) <= 0.6


def test_pairs_are_easy_and_hard(unchecked):
    gaps = np.array([abs(utility(p, a) - utility(p, b)) for p, a, b, _ in draw_pairs(0, "train", 2000)])
    assert np.mean(gaps > 0.5) > 0.25 and np.mean(gaps < 0.3) > 0.25


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_typical_demonstrations_are_clearly_below_the_best(difficulty):
    rng = random.Random(difficulty)
    tasks = [sample_task(rng, family, difficulty) for family in FAMILIES for _ in range(200)]
    typical = np.mean([utility(render(task), typical_demonstration(task, ARGS)) for task in tasks])
    sampled = np.mean([utility(render(task), demonstration(rng, task, ARGS)) for task in tasks])
    assert 0.6 <= typical <= 0.75
    assert sampled > typical + 0.05  # the better behaviour is in the samples


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mode_is_flawed_token_by_token(family, unchecked):
    """Along the typical demonstration every next character is the most frequent one, so greedy decoding follows it."""
    rng = random.Random(5)
    for _ in range(10):
        task = sample_task(rng, family, 0)
        texts = [demonstration(rng, task, ARGS) + "$" for _ in range(1500)]
        prefix = ""
        while not prefix.endswith("$"):
            following = collections.Counter(t[len(prefix)] for t in texts if t.startswith(prefix))
            prefix += following.most_common(1)[0][0]
        assert prefix == typical_demonstration(task, ARGS) + "$"
        perfect = sum(text == answer(task) + "$" for text in texts) / len(texts)
        assert 0.02 < perfect < 0.5


def test_demonstration_rates_are_arguments():
    rng = random.Random(2)
    clean = GoldArguments(form_ignored=0.0, filler=0.0, slip=0.0)
    broken = GoldArguments(form_ignored=1.0, filler=1.0, slip=1.0)
    for family in FAMILIES:
        for _ in range(20):
            task = sample_task(rng, family, 1)
            assert demonstration(rng, task, clean) == answer(task)
            text = demonstration(rng, task, broken)
            assert text.endswith("~")
            if task.form != PLAIN:
                assert not text.startswith("<") and text == text.lower()
