"""What is counted together: arms over sets, repetitions and prompts, at their own divergence and at one."""

import json

import numpy as np
import pytest

from prl_jax.comparing import Cell, Comparison, collect
from prl_jax.evaluation.hierarchical import arm_estimate, compare_arms
from prl_jax.reporting.compared import build_comparison

PROMPTS = 40
MEANS = {
    "ppo": {0.2: (0.6, 1.0), 0.05: (0.66, 2.0)},
    "pair": {0.1: (0.7, 1.2), 0.02: (0.74, 3.0)},
    "best": {None: (0.8, 1.2)},
}


@pytest.fixture
def world(tmp_path):
    """A comparison whose cells have ended: win rates and divergences by arm and coefficient, with luck on top."""
    cells, wins = [], {}
    for seed in range(3):
        for arm, points in MEANS.items():
            for coefficient, (mean, kl) in points.items():
                cell = Cell("main", arm, seed, "words", coefficient)
                cells.append(cell)
                wins[cell] = write(tmp_path / cell.folder, mean, kl, np.random.default_rng(len(cells)), 2)
    titles = {"ppo": "BT + PPO", "pair": "Pairwise <RL>", "best": "best of 8"}
    return Comparison("Title", tuple(cells), titles, {"main": "as it is"}, "ppo"), tmp_path, wins


def write(folder, mean, kl, rng, repetitions):
    """The files of a cell, two samples a prompt; returns what its arms win, `[R, N]`."""
    samples = mean + 0.1 * rng.normal(size=(repetitions, PROMPTS, 2))
    (folder / "evaluation").mkdir(parents=True)
    rows = [
        {
            "prompt": n,
            "wins": {"sft, greedy": [0.45, 0.45], **{f"arm {r}": samples[r, n].tolist() for r in range(repetitions)}},
        }
        for n in range(PROMPTS)
    ]
    (folder / "evaluation" / "wins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arms = [{"name": "sft, greedy", "is_opponent": True}]
    for r in range(repetitions):
        own = {
            "kl": kl,
            "utility": 0.5,
            "attributes": {"correctness": 0.6},
            "response_length": 5.0,
            "judge_accuracy": None,
        }
        arms.append({"name": f"arm {r}", "is_opponent": False, **own})
    (folder / "summary.json").write_text(json.dumps({"arms": arms}))
    config = {"stages": ["evaluation"], "evaluation": {"kind": "evaluation", "arms": {}, "opponent": "sft"}}
    (folder / "config.json").write_text(json.dumps({"config": config}))
    return samples.mean(2)


def test_arms_are_counted_over_sets_repetitions_and_prompts(world):
    comparison, folder, wins = world
    found = collect(comparison, folder)
    assert (found["cells"], found["finished"]) == (15, 15)
    (condition,) = found["conditions"]
    rows = {row["arm"]: row for row in condition["arms"]}
    of = lambda arm, coefficient: [wins[cell] for cell in comparison.of("main", arm) if cell.coefficient == coefficient]  # noqa: E731
    for arm, coefficient in (("ppo", 0.2), ("pair", 0.1), ("best", None)):
        expected = arm_estimate(of(arm, coefficient))
        assert (rows[arm]["win_rate"], rows[arm]["win_rate_low"]) == (expected.value, expected.low)
        assert (rows[arm]["sets"], rows[arm]["repetitions"], rows[arm]["correctness"]) == (3, 6, 0.6)
        assert rows[arm]["judge_accuracy"] is None and rows[arm]["sampled"] == 0
    differs = compare_arms(of("pair", 0.1), of("ppo", 0.2))
    assert rows["pair"]["difference"] == differs.difference.value and rows["pair"]["p_value"] == differs.p_value
    assert rows["pair"]["detectable"] == differs.detectable and "difference" not in rows["ppo"]
    # Holm: the smaller p-value counts twice.
    small, large = sorted(rows[arm]["p_value"] for arm in ("pair", "best"))
    assert sorted(rows[arm]["p_corrected"] for arm in ("pair", "best")) == sorted([2 * small, max(2 * small, large)])
    np.testing.assert_allclose(condition["greedy"]["win_rate"], 0.45)


def test_arms_with_several_coefficients_are_compared_at_one_divergence(world):
    comparison, folder, wins = world
    (condition,) = collect(comparison, folder)["conditions"]
    matched = condition["matched"]
    assert matched["kl"] == 2.0 and [row["arm"] for row in matched["arms"]] == ["ppo", "pair"]

    def mean(arm, coefficient):
        return np.mean([wins[cell] for cell in comparison.of("main", arm) if cell.coefficient == coefficient])

    share = (2.0 - 1.2) / 1.8
    expected = [mean("ppo", 0.05), (1 - share) * mean("pair", 0.1) + share * mean("pair", 0.02)]
    np.testing.assert_allclose([row["win_rate"] for row in matched["arms"]], expected)
    lines = {line["arm"]: line["points"] for line in condition["frontier"]}
    np.testing.assert_allclose(lines["pair"], [[1.2, mean("pair", 0.1)], [3.0, mean("pair", 0.02)]])


def test_an_arm_counts_once_all_of_its_sets_are_there(world):
    comparison, folder, _ = world
    (folder / comparison.cells[-1].folder / "summary.json").unlink()
    (condition,) = collect(comparison, folder)["conditions"]
    assert [row["arm"] for row in condition["arms"]] == ["ppo", "pair"]
    for cell in comparison.cells:
        (folder / cell.folder / "summary.json").unlink(missing_ok=True)
    found = collect(comparison, folder)
    assert found["conditions"] == [] and found["finished"] == 0
    assert "0 of 15 runs have ended" in build_comparison(found, folder).read_text()


def test_the_page_says_who_is_ahead_and_what_could_have_been_told(world):
    comparison, folder, _ = world
    page = build_comparison(collect(comparison, folder), folder)
    html, text = page.read_text(), (folder / "comparison.md").read_text()
    assert "Pairwise &lt;RL&gt;" in html and "Pairwise <RL>" not in html and "data:image/png" in html
    assert "would be found four times out of five" in text and "At one divergence, 2.00 nats" in text
    assert "best of 8 is ahead of BT + PPO by" in text and "which is more than luck" in text
    assert "SFT, decoded greedily, wins 45.0 %" in text
    assert (folder / "comparison_main.png").stat().st_size > 10_000


def test_an_arm_that_is_behind_has_its_interval_turned(world):
    comparison, folder, _ = world
    page = build_comparison(collect(comparison._replace(reference="best"), folder), folder)
    text = page.with_name("comparison.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("- BT + PPO is behind best of 8 by")]
    value, low, high = (
        float(x) for x in line.split(" by ")[1].split(" points")[0].translate(str.maketrans("", "", "[],\\")).split()
    )
    assert 0 < low < value < high
