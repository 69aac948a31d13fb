"""When a metric has left its range, and what is said of it."""

import math
from pathlib import Path

import pytest

from prl_jax.evaluation import Watch
from prl_jax.evaluation.watching import LASTING, RANGES

# Metric -> its range, and words of its sentence.
TABLE = {
    "identical_to_opponent": (0, 0.5, "identical to their opponent"),
    "judge_saturation": (0, 0.9, "the judge is certain"),
    "order_disagreement": (0, 0.6, "change places"),
    "judge_accuracy": (0.5, 1, "a coin would be as good"),
    "judge_ece": (0, 0.3, "off by more than 0.3"),
    "exact_gain": (-0.05, math.inf, "the policy gets worse"),
    "length_drift": (0.5, 2, "twice as long"),
    "frame_imitations": (0, 0.01, "marks of the judge's template"),
    "stop_reasons/room": (0, 0.5, "run out of room"),
    "stop_reasons/repetition": (0, 0.1, "repeat themselves"),
    "truncated_prompts": (0, 0, "do not fit into max_prompt"),
    "cut_judgements": (0, 0, "do not fit into the judge's rows"),
}


def rows(metric, values):
    return [{"step": 10 * n, metric: value} for n, value in enumerate(values, 1)]


def test_every_row_of_the_table_is_tested():
    assert [one.metric for one in RANGES] == list(TABLE)


def test_the_readme_has_every_range():
    lines = (Path(__file__).parents[2] / "README.md").read_text().splitlines()
    for metric, (low, high, _) in TABLE.items():
        words = f"at least {low:g}" if high in (1, math.inf) else f"at most {high:g}" if not low else f"{low} to {high}"
        assert [line for line in lines if line.startswith(f"| {words if high else 0} | `{metric}`")], metric


@pytest.mark.parametrize("metric", TABLE)
def test_a_metric_is_told_once_it_stays_outside(metric):
    low, high, words = TABLE[metric]
    outside = [low - 1e-6] if metric in ("judge_accuracy", "exact_gain") else [high + 1e-6]
    outside += [low - 1e-6] if metric == "length_drift" else []
    for value in outside:
        watch, inside = Watch(), high if value < low else low
        said = [watch.see(row) for row in rows(metric, [inside, *[value] * (LASTING + 1)])]
        assert said[:LASTING] == [[]] * LASTING and said[-1] == []  # told once
        (sentence,) = said[LASTING]
        assert sentence.startswith("From step 20 on ") and words in sentence and sentence.endswith(".")
        assert watch.outside == 1 and watch.sentences() == [sentence]


@pytest.mark.parametrize("metric", TABLE)
def test_the_ends_of_a_range_are_inside(metric):
    low, high, _ = TABLE[metric]
    watch = Watch(rows(metric, [low, min(high, 1e9)] * 3))
    assert watch.sentences() == [] and watch.outside == 0


def test_each_time_outside_is_named_with_its_steps():
    bad, good = [0.6] * LASTING, [0.5]
    watch = Watch(rows("identical_to_opponent", [*bad, *good, 0.6, *good, *bad, 0.6]))
    assert watch.sentences()[0].startswith("In steps from 10 to 30, and from 70 on, more than half ")
    assert watch.see({"step": 110, "identical_to_opponent": 0.0}) == [] and watch.outside == 0
    assert watch.sentences()[0].startswith("In steps from 10 to 30, from 70 to 100 more than half ")
    assert len(watch.sentences()) == 1


def test_what_was_not_measured_neither_counts_nor_interrupts():
    measured = rows("judge_accuracy", [0.4, None, 0.4, math.nan, 0.4])
    del measured[1]["judge_accuracy"]
    assert len(Watch(measured).sentences()) == 1 and Watch(measured[:4]).sentences() == []


def test_a_step_is_compared_with_the_first_one():
    watch = Watch()
    steps = [{"step": n, "response_length": 4.0 * n, "exact_reward": 0.5 - 0.1 * n} for n in (1, 2, 3)]
    found = [watch.derived(row) | {"told": watch.see(row)} for row in steps]
    assert [row["length_drift"] for row in found] == [1, 2, 3]
    assert [row["exact_gain"] for row in found] == pytest.approx([0, -0.1, -0.2])
    assert Watch(steps[:2]).derived(steps[2])["length_drift"] == 3  # a run that continues
    assert watch.derived({"step": 4, "win_rate": 0.5}) == {}
