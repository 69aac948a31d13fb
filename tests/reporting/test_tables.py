import math
from pathlib import Path

import pytest

from prl_jax.reporting import tables
from prl_jax.reporting.inputs import RunFiles, StageFiles

ARMS = [
    {"name": "SFT, greedy", "judge": None, "win_rate": 0.56, "kl": 0.0},
    {"name": "Pairwise-RL", "judge": "pairwise", "win_rate": 0.634, "win_rate_low": 0.619}
    | {"win_rate_high": 0.65, "kl": 2.5},
]


def run(**values):
    fields = {"path": Path("x"), "label": "x", "config": {}, "summary": {}, "stages": [], "missing": []}
    return RunFiles(**(fields | values))


def test_the_terminal_table_is_aligned():
    text = tables.terminal_table({"arms": ARMS, "judges": {"pairwise": {"n": 10, "accuracy": 0.75}}})
    assert text.splitlines() == [
        "                            win rate vs SFT",
        "arm          judge                    [95%]     KL",
        "-----------  --------  --------------------  -----",
        "SFT, greedy  -                        0.560  0.000",
        "Pairwise-RL  pairwise  0.634 [0.619, 0.650]  2.500",
        "",
        "judge     pairs  accuracy",
        "--------  -----  --------",
        "pairwise     10     0.750",
    ]


def test_the_terminal_gets_no_control_characters():
    text = tables.terminal_table({"arms": [{"name": "\x1b[2Jx\x07", "win_rate": 0.5}]})
    assert "\x1b" not in text and "\x07" not in text and "␛[2Jx␇" in text


def test_an_empty_summary_is_said():
    assert tables.terminal_table({}) == "no results"


def test_columns_without_any_value_are_left_out():
    table = tables.arms_table({"arms": ARMS})
    assert table.header == ["arm", "judge", "win rate vs SFT [95%]", "KL"]
    assert table.rows[0] == ["SFT, greedy", "–", "0.560", "0.000"]
    assert table.strong == {1}


def test_the_t_interval():
    assert tables.t_interval([0.5]) == (0.5, None, None)
    mean, low, high = tables.t_interval([0.6, 0.7])  # one degree of freedom: 12.706 * s / sqrt(2)
    assert (mean, high - mean) == (pytest.approx(0.65), pytest.approx(12.706 * 0.05, rel=1e-3))
    assert mean - low == pytest.approx(high - mean)
    values = [math.sin(i) for i in range(400)]
    spread = math.sqrt(sum(value**2 for value in values) / 400 / 400)
    assert tables.t_interval(values)[2] - tables.t_interval(values)[0] == pytest.approx(1.96 * spread, rel=0.01)


def test_means_over_runs_keep_what_every_run_has():
    rows = [{"kl": 1.0, "utility": 0.5, "name": "a"}, {"kl": 3.0, "name": "a"}]
    assert tables.across_seeds(rows) == {"kl": 2.0}


def test_one_arm_missing_in_a_run_is_no_reason_to_stop():
    runs = [run(label="a", summary={"arms": ARMS, "seed": 0}), run(label="b", summary={"arms": ARMS[:1], "seed": 1})]
    table = tables.combined_table(runs)
    assert [row[:3] for row in table.rows] == [
        ["SFT, greedy", "a", "0"],
        ["SFT, greedy", "b", "1"],
        ["SFT, greedy", "mean of 2", ""],
        ["Pairwise-RL", "a", "0"],
    ]
    assert table.strong == {2}


def test_position_bias_over_the_samples_of_training():
    samples = [{"p_12": 0.9, "p_21": 0.3}, {"p_12": 0.8, "p_21": 0.6}, {"p_12": None, "p_21": 0.5}, {}]
    table = tables.position_table(run(stages=[StageFiles("ppo", "ppo", [], samples, {})]))
    assert table.rows == [["ppo", "2", "+0.300", "0.500"]]


def test_times_of_stages_and_their_share():
    stages = [
        StageFiles("sft", "sft", [{"step": 300}], [], {"seconds": 30.0}),
        StageFiles("ppo", "ppo", [], [], {"seconds": 90.0}),
        StageFiles("evaluation", "evaluation", [], [], {}),
    ]
    rows = tables.stages_table(run(stages=stages)).rows
    assert [row[2:] for row in rows] == [
        ["300", "0:30", "25 %"], ["–", "1:30", "75 %"], ["–", "not finished", "–"], ["", "2:00", ""]
    ]  # fmt: skip
