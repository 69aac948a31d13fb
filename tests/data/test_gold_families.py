"""The built-in tasks: text and task determine each other, and the best response is what the prompt asks for."""

import doctest
import random

import pytest

import prl_jax.data.gold
from prl_jax.data.gold import FAMILIES, GoldTask, answer, parse, render, split_of, utility
from prl_jax.data.gold.candidates import edited, sample_task
from prl_jax.data.gold.families import DIFFICULTIES, content, forms
from prl_jax.errors import UserError

CELLS = [(family, difficulty) for family in FAMILIES for difficulty in DIFFICULTIES]


def test_the_documented_examples_hold():
    results = doctest.testmod(prl_jax.data.gold)
    assert results.attempted >= 5 and results.failed == 0


def test_there_are_at_least_six_families_with_slips_in_some():
    assert len(FAMILIES) >= 6
    assert 0 < sum(family.slip is not None for family in FAMILIES.values()) < len(FAMILIES)


@pytest.mark.parametrize(("family", "difficulty"), CELLS)
def test_text_and_task_determine_each_other(family, difficulty):
    rng = random.Random(f"{family} {difficulty}")
    tasks = [sample_task(rng, family, difficulty) for _ in range(300)]
    assert {task.form for task in tasks} == set(forms(family, difficulty))
    for task in tasks:
        prompt = render(task)
        assert parse(prompt) == task
        assert prompt.isascii() and answer(task).isascii()
        assert utility(prompt, answer(task)) == 1.0
    assert len({render(task) for task in tasks}) > 200


def test_the_first_difficulty_is_short_and_higher_ones_are_longer():
    for family in FAMILIES:
        longest = []
        for difficulty in DIFFICULTIES:
            rng = random.Random(difficulty)
            tasks = [sample_task(rng, family, difficulty) for _ in range(300)]
            longest.append(max(len(render(task)) for task in tasks))
            if difficulty == 0:
                assert longest[0] <= 11
                assert max(len(answer(task)) for task in tasks) <= 7
        assert longest == sorted(set(longest))


def test_thousands_of_prompts_at_every_difficulty():
    for difficulty in DIFFICULTIES:
        rng = random.Random(difficulty)
        tasks = [sample_task(rng, family, difficulty) for family in FAMILIES for _ in range(1500)]
        splits = {
            split: sum(split_of(task) == split for task in set(tasks)) for split in ("train", "validation", "test")
        }
        assert splits["train"] > 4000 and splits["validation"] > 500 and splits["test"] > 500


@pytest.mark.parametrize(("family", "difficulty"), CELLS)
def test_edited_payloads_are_tasks_of_the_same_family_with_other_content(family, difficulty):
    rng = random.Random(7)
    grown = shrunk = 0
    for _ in range(200):
        task = sample_task(rng, family, difficulty)
        other = edited(rng, task)
        assert parse(render(other)) == other
        assert (other.family, other.difficulty, other.form) == (task.family, task.difficulty, task.form)
        assert content(other) != content(task)
        grown += len(content(other)) > len(content(task))
        shrunk += len(content(other)) < len(content(task))
    assert abs(grown - shrunk) < 45


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "sort",
        "sort dbca",
        "sort d.",
        "sort dbca;",
        "sort DBCA.",
        "3+9+4!",
        "3+9.",
        "a>a bada.",
        "a>e bcd.",
        ">f abc.",
    ],
)
def test_other_texts_are_not_prompts(prompt):
    with pytest.raises(UserError, match="not a prompt of the built-in tasks"):
        parse(prompt)


def test_the_form_does_not_decide_the_split():
    rng = random.Random(3)
    for _ in range(100):
        task = sample_task(rng, "rev", 1)
        assert len({split_of(GoldTask(task.family, task.difficulty, task.payload, form)) for form in ".!?"}) == 1
