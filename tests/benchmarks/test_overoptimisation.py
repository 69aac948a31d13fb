"""The pure parts of the over-optimisation benchmark: the best of n, its divergence, means over seeds, the figure."""

import importlib
import itertools
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("overoptimisation")


def test_the_best_of_n_is_the_mean_over_all_choices(script):
    rng = np.random.default_rng(0)
    proxy, value = rng.normal(size=(2, 3, 6))
    proxy[2, 1] = proxy[2, 4]  # the later one is chosen
    for n in range(1, 7):
        choices = [list(choice) for choice in itertools.combinations(range(6), n)]
        for p in range(3):
            chosen = [value[p, max(choice, key=lambda k: (proxy[p, k], k))] for choice in choices]
            assert script.best_of(n, proxy, value)[p] == pytest.approx(np.mean(chosen), abs=1e-12), (n, p)
    assert script.best_of(6, proxy, proxy) == pytest.approx(proxy.max(1))


def test_the_divergence_of_best_of_n_is_that_of_its_ranks(script):
    """Among many samples that are all different, the one of rank r in (0, 1) has density n r^(n - 1)."""
    r = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 2, 5, 64):
        log_density = math.log(n) + (n - 1) * np.log(r)
        assert script.best_of_n_kl(n) == pytest.approx(np.mean(np.exp(log_density) * log_density), abs=1e-4)


def test_means_are_over_seeds_and_differences_are_paired_by_seed(script):
    utilities = {"single": (0.5, 0.7, 0.6), "worst": (0.6, 0.8, 0.7)}
    rows = [
        {"seed": seed, "optimiser": "best_of_n", "arm": arm, "n": n, "utility": value + n}
        for arm, values in utilities.items()
        for seed, value in enumerate(values)
        for n in (1, 2)
    ]
    found = script.means(rows)
    assert [(row["arm"], row["n"], row["seeds"]) for row in found] == [
        ("single", 1, 3), ("single", 2, 3), ("worst", 1, 3), ("worst", 2, 3)
    ]  # fmt: skip
    # Student's t of 2 degrees of freedom; the deviation of three values that are 0.1 apart is 0.1.
    assert found[0]["utility"] == pytest.approx(1.6)
    assert found[0]["utility_high"] - 1.6 == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    paired = script.against_single(rows)
    assert [(row["arm"], row["n"]) for row in paired] == [("worst", 1), ("worst", 2)]
    for row in paired:
        assert [row[key] for key in ("utility", "utility_low", "utility_high")] == pytest.approx([0.1] * 3)


def test_steps_of_ppo_become_blocks_behind_those_that_sample_from_sft(script):
    lines = [{"step": n} for n in range(1, 10)]
    found = script.blocks(lines, 3, 2)
    assert [(step, [line["step"] for line in part]) for step, part in found] == [
        (0, [1, 2, 3]), (5, [4, 5]), (7, [6, 7]), (9, [8, 9])
    ]  # fmt: skip
    assert [step for step, _ in script.blocks(lines, 3, 4)] == [0, 7]


def test_gains_are_over_the_first_row_of_an_arm(script):
    rows = [{"arm": arm, "proxy": proxy} for arm, proxy in (("a", 1.0), ("b", 5.0), ("a", 3.0), ("b", 4.0))]
    assert [row["proxy_gain"] for row in script.with_gains(rows)] == [0.0, 0.0, 2.0, -1.0]


def test_of_the_final_table_sft_and_every_arm_are_kept(script, tmp_path):
    numbers = {"kl": 0.5, "utility": 0.7, "win_rate": 0.6, "response_length": 4.0}
    names = {"sft, sampled": "sft", "sft, greedy": "sft", "PPO, bt0": "single"}
    accuracies = {"accuracy": 0.6, "accuracy_vs_truth": 0.7, "bayes_accuracy": 0.73}
    judges = {"bt0": {**accuracies, "ece": 0.1}}
    arms = [{"name": name, "stage": stage, **numbers} for name, stage in names.items()]
    (tmp_path / "summary.json").write_text(json.dumps({"arms": arms, "judges": judges}))
    kept = {key: numbers[key] for key in ("kl", "utility", "win_rate")}
    assert script.final_rows(tmp_path) == [
        {"optimiser": "final", "arm": "sft", **kept},
        {"optimiser": "final", "arm": "single", **kept},
        {"optimiser": "judges", "arm": "bt0", **accuracies},
    ]


def test_the_figure_has_a_curve_for_each_arm_in_each_panel(script, tmp_path):
    names = [(optimiser, arm) for optimiser in ("best_of_n", "ppo") for arm in ("single", "mean", "worst", "uwo")]
    rows = [
        {"seed": seed, "optimiser": optimiser, "arm": arm, "n": n, "kl": 0.1 * n, "proxy_gain": n - 1.0, "utility": 0.5}
        for (optimiser, arm), n, seed in itertools.product((*names, ("best_of_n", "exact")), (1, 2), (0, 1))
    ]
    figures = importlib.import_module("overoptimisation_figure")
    axes = [axis for axis in figures.figure_of(script.means(rows)).axes]
    assert [len(axis.lines) for axis in axes] == [4, 6, 4, 5]  # utility has SFT, and what exact choice would reach
    figures.draw(script.means(rows), tmp_path / "figure.svg")
    assert ElementTree.parse(tmp_path / "figure.svg").getroot().tag.endswith("svg")
