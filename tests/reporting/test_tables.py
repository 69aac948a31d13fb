import math
from pathlib import Path

import pytest

from prl_jax.reporting import means, tables
from prl_jax.reporting.inputs import RunFiles, StageFiles

ARMS = [
    {"name": "sft, greedy", "judge": None, "win_rate": 0.56, "kl": 0.0},
    {"name": "Pairwise-RL", "judge": "pairwise", "win_rate": 0.634, "win_rate_low": 0.619}
    | {"win_rate_high": 0.65, "kl": 2.5},
]


def run(**values):
    fields = {"path": Path("x"), "label": "x", "config": {}, "summary": {}, "stages": [], "missing": []}
    return RunFiles(**(fields | values))


def test_the_terminal_table_is_aligned():
    judges = {"pairwise": {"n": 10, "accuracy": 0.75, "accuracy_low": 0.7, "accuracy_high": 0.8, "not_finite": 0}}
    pair = {"arm": "Pairwise-RL", "other": "sft, greedy", "difference": 0.074, "difference_low": 0.06}
    paired = [pair | {"difference_high": 0.088}, {"arm": "sft, greedy", "other": "x", "difference": 0.1}]
    text = tables.terminal_table({"opponent": "sft", "arms": ARMS, "paired": paired, "judges": judges}, {})
    assert text.splitlines() == [
        "                            win rate vs sft",
        "arm          judge                    [95%]     KL",
        "-----------  --------  --------------------  -----",
        "sft, greedy  -                        0.560  0.000",
        "Pairwise-RL  pairwise  0.634 [0.619, 0.650]  2.500",
        "",
        "             compared",
        "arm          with            points [95%]",
        "-----------  -----------  ---------------",
        "Pairwise-RL  sft, greedy  +7.4 [6.0, 8.8]",
        "",
        "judge     pairs        accuracy [95%]",
        "--------  -----  --------------------",
        "pairwise     10  0.750 [0.700, 0.800]",
    ]


def test_the_terminal_gets_no_control_characters():
    text = tables.terminal_table({"arms": [{"name": "\x1b[2Jx\x07", "win_rate": 0.5}]}, {})
    assert "\x1b" not in text and "\x07" not in text and "␛[2Jx␇" in text


def test_an_empty_summary_is_said():
    assert tables.terminal_table({}, {}) == "no results"


def test_columns_without_any_value_are_left_out():
    table = tables.arms_table({"arms": ARMS})
    assert table.header == ["arm", "judge", "win rate [95%]", "KL"]
    assert table.rows[0] == ["sft, greedy", "–", "0.560", "0.000"]
    assert table.strong == {1}


def test_the_t_interval():
    assert means.t_interval([0.5]) == (0.5, None, None)
    mean, low, high = means.t_interval([0.6, 0.7])  # one degree of freedom: 12.706 * s / sqrt(2)
    assert (mean, high - mean) == (pytest.approx(0.65), pytest.approx(12.706 * 0.05, rel=1e-3))
    assert mean - low == pytest.approx(high - mean)
    values = [math.sin(i) for i in range(400)]
    spread = math.sqrt(sum(value**2 for value in values) / 400 / 400)
    assert means.t_interval(values)[2] - means.t_interval(values)[0] == pytest.approx(1.96 * spread, rel=0.01)


def test_means_over_runs_keep_what_every_run_has():
    rows = [{"kl": 1.0, "utility": 0.5, "name": "a"}, {"kl": 3.0, "name": "a"}]
    assert means.across_seeds(rows) == {"kl": 2.0}


def test_one_arm_missing_in_a_run_is_no_reason_to_stop():
    runs = [run(label="a", summary={"arms": ARMS, "seed": 0}), run(label="b", summary={"arms": ARMS[:1], "seed": 1})]
    table = tables.combined_table(runs, pooled=True)
    assert [row[:3] for row in table.rows] == [
        ["sft, greedy", "a", "0"],
        ["sft, greedy", "b", "1"],
        ["sft, greedy", "mean of 2", ""],
        ["Pairwise-RL", "a", "0"],
    ]
    assert table.strong == {2}


def test_position_bias_over_the_samples_of_training():
    samples = [{"p_12": 0.9, "p_21": 0.3}, {"p_12": 0.8, "p_21": 0.6}, {"p_12": None, "p_21": 0.5}, {}]
    table = tables.position_table(run(stages=[StageFiles("ppo", "rewarded", [], samples, {})]))
    assert table.rows == [["ppo", "2", "+0.300", "0.500"]]


def test_times_of_stages_and_their_share():
    stages = [
        StageFiles("sft", "supervised", [{"step": 300}], [], {"seconds": 30.0}, "sft"),
        StageFiles("ppo", "rewarded", [], [], {"seconds": 90.0}, "ppo"),
        StageFiles("evaluation", "evaluation", [], [], {}),
    ]
    rows = tables.stages_table(run(stages=stages)).rows
    assert [row[2:] for row in rows] == [
        ["300", "0:30", "25 %"], ["–", "1:30", "75 %"], ["–", "not finished", "–"], ["", "2:00", ""]
    ]  # fmt: skip


def test_a_judge_that_is_none_is_named_on_the_terminal():
    text = tables.terminal_table({"judges": {"genrm": {"accuracy": 0.55, "order_consistency": 0.0}}}, {})
    assert text.splitlines()[-1].startswith("genrm is no judge: order consistency 0.00")
    orders = {"order_consistency": 0.02, "position_bias": 0.1}
    summary = {"arms": ARMS, "win_rate_judge": "told", "win_rate_judge_orders": orders}
    text = tables.terminal_table(summary, {})
    assert text.splitlines()[-1].startswith("told is no judge: order consistency 0.02")
    assert "no judge" not in tables.terminal_table(summary, {"told": {"kind": "gold"}})


def test_differences_of_runs_and_their_mean():
    def paired(difference):
        bounds = {"difference_low": difference - 0.01, "difference_high": difference + 0.01}
        return {"arms": ARMS, "paired": [{"arm": "Pairwise-RL", "other": "x", "difference": difference, **bounds}]}

    runs = [run(label="a", summary=paired(0.02)), run(label="b", summary=paired(0.04))]
    rows = [["Pairwise-RL", "x", "a", "+2.0 [1.0, 3.0]"], ["Pairwise-RL", "x", "b", "+4.0 [3.0, 5.0]"]]
    table = tables.paired_table(runs, pooled=True)
    assert table.rows == [*rows, ["Pairwise-RL", "x", "mean of 2", "+3.0 [-9.7, 15.7]"]] and table.strong == {2}
    assert tables.paired_table(runs, pooled=False).rows == rows
    assert tables.points({"difference": -1e-5, "difference_low": -2e-4, "difference_high": 0}) == "+0.0 [0.0, 0.0]"
    assert tables.paired_table(runs[:1], pooled=True).rows == [["Pairwise-RL", "x", "+2.0 [1.0, 3.0]"]]


def test_p_values_stand_beside_the_differences_and_have_no_mean():
    def paired(value):
        pair = {"arm": "Pairwise-RL", "other": "x", "difference": 0.02, "p_value": value / 6, "p_corrected": value}
        return {"arms": ARMS, "paired": [pair]}

    runs = [run(label="a", summary=paired(0.0123)), run(label="b", summary=paired(0.0006))]
    table = tables.paired_table(runs, pooled=True)
    assert table.header[-1] == "p, corrected" and [row[-1] for row in table.rows] == ["0.012", "<0.001", "–"]
    assert tables.terminal_table(paired(0.2), {}).splitlines()[-1].endswith("+2.0      0.200")
