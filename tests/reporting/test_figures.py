from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prl_jax.reporting import figures, names
from prl_jax.reporting.inputs import RunFiles, StageFiles


def stage(name, role, rows):
    return StageFiles(name, role, [{"step": step, **row} for step, row in enumerate(rows, start=1)], [], {})


def run(stages=(), arms=(), judges=None):
    return RunFiles(Path("x"), "x", {}, {"arms": list(arms), "judges": judges or {}}, list(stages), [])


def test_names_are_shown_as_they_are():
    assert figures.label("a$b$c") == "a$b$c"
    assert figures.label("_hidden") == " _hidden"
    assert figures.label("日本\n\x1b") == "????"
    assert len(figures.label("x" * 100)) == 40


def test_nothing_to_draw_draws_nothing(tmp_path):
    assert (
        figures.write_figures(
            [run([stage("sft", "supervised", [{"loss": None}]), stage("x", "", [{"y": 1.0}])])], tmp_path
        )
        == {}
    )
    assert not list(tmp_path.iterdir())


def test_what_a_policy_got_is_drawn_where_the_truth_was_known():
    rows = [{"reward": 0.5, "exact_reward": 0.4, "judge_accuracy": 0.7, "judge_accuracy/form": 0.6}]
    panels = figures.truth_figure([stage("ppo", "rewarded", rows)]).axes
    assert [axes.get_title() for axes in panels if axes.lines] == [
        "What it optimised",
        "What it got",
        "How often its judge was right",
    ]
    assert [line.get_label() for line in panels[2].lines] == ["all", "form alone"]
    assert figures.truth_figure([stage("ppo", "rewarded", [{"reward": 0.5}])]) is None


def test_panels_are_those_with_data():
    figure = figures.learning_figure([stage("ppo", "rewarded", [{"kl": 0.1, "reward": None, "entropy": 1.0}])])
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["KL to the reference", "Entropy"]


def test_a_policy_that_learns_from_pairs_is_measured_on_pairs():
    row = {"loss": 0.6, "validation_loss": 0.7, "accuracy": 0.8, "margin": 0.3, "chosen_ratio": -0.1}
    panels = figures.learning_figure([stage("dpo", "paired", [row | {"rejected_ratio": -2.0}])]).axes
    assert [axes.get_title() for axes in panels] == ["Loss", "Accuracy", "Margin", "Log-ratio to the references"]
    assert [axes.get_ylabel() for axes in panels[:2]] == ["mean per pair", "share of pairs"]
    assert [line.get_label() for line in panels[3].lines] == ["chosen", "rejected"]


def test_steps_are_whole_numbers():
    axes = figures.learning_figure([stage("sft", "supervised", [{"loss": 2.0}, {"loss": 1.0}])]).axes[0]
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_curves_hold_the_measured_values_and_gaps_are_left_out():
    rows = [{"loss": 3.0}, {"loss": None}, {"loss": 1.0, "validation_loss": 2.0}]
    axes = figures.learning_figure([stage("sft", "supervised", rows)]).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {"train": [[1, 3], [3, 1]], "validation": [[3, 2]]}
    assert axes.get_legend() is not None


def test_other_runs_are_drawn_beside_the_first():
    first, second = stage("sft", "supervised", [{"loss": 3.0}]), stage("sft", "supervised", [{"loss": 2.0}])
    lines = figures.learning_figure([first, second]).axes[0].lines
    assert sorted((line.get_ydata()[0], line.get_alpha()) for line in lines) == [(2.0, 0.3), (3.0, None)]
    arms = [{"name": "P", "judge": "j", "win_rate": value} for value in (0.6, 0.7)]
    axes = figures.arms_figure([run(arms=arms[:1]), run(arms=arms[1:])]).axes[0]
    heights = {line.get_xdata()[0]: line.get_ydata()[0] for line in axes.lines if line.get_marker() == "o"}
    assert heights[0.6] != heights[0.7]


def test_the_moving_average_looks_back_only():
    values = np.random.default_rng(0).normal(size=120)
    axes = figures.learning_figure([stage("sft", "supervised", [{"loss": float(v)} for v in values])]).axes[0]
    raw, smooth = (line.get_ydata() for line in axes.lines)
    np.testing.assert_allclose(raw, values)
    np.testing.assert_allclose(smooth, [values[max(0, i - 3) : i + 1].mean() for i in range(120)])


def test_win_rate_against_kl_joins_points_that_have_both():
    rows = [
        {"kl": 0.1},
        {"kl": 0.2, "win_rate": 0.5, "win_rate_low": 0.4, "win_rate_high": 0.6},
        {"kl": 0.3, "win_rate": 0.6},
    ]
    figure = figures.win_rate_against_kl_figure([run([stage("ppo_bt", "rewarded", rows)])])
    line = next(line for line in figure.axes[0].lines if line.get_label() == "ppo_bt")
    assert line.get_xydata().tolist() == [[0.2, 0.5], [0.3, 0.6]]
    assert figures.win_rate_against_kl_figure([run([stage("ppo_bt", "rewarded", rows[:1])])]) is None


def titled(label, result=None):
    """A run whose policy has a title, with a curve that begins at step 0."""
    rows = [{"kl": 0.0, "win_rate": 0.5}, {"kl": 0.2, "win_rate": 0.7}, {"kl": 0.4, "win_rate": 0.6}]
    stages = [StageFiles("ppo", "rewarded", [{"step": n, **row} for n, row in enumerate(rows)], [], result or {})]
    evaluation = {"kind": "evaluation", "arms": {"ppo": {"title": "Mine"}}}
    config = {"stages": ["ppo", "e"], "ppo": {"kind": "ppo", "policy": "./models/small"}, "e": evaluation}
    arms = [{"name": "Mine", "judge": "j", "win_rate": 0.6}]
    return RunFiles(Path("x"), label, {"config": config}, {"arms": arms, "opponent": "small"}, stages, [])


def test_a_policy_has_its_title_and_what_it_is_compared_with_its_name():
    (axes,) = figures.win_rate_against_kl_figure([titled("a")]).axes
    assert axes.get_ylabel() == "win rate against small"
    line = next(line for line in axes.lines if line.get_label() == "Mine")
    assert line.get_xydata().tolist()[0] == [0.0, 0.5]  # from step 0 on
    assert "small" in figures.arms_figure([titled("a")]).axes[0].get_xlabel()
    panels = figures.learning_figure(titled("a").stages, against="small").axes
    assert "Win rate against small" in [axes.get_title() for axes in panels]


def test_the_larger_marker_is_the_result_of_the_stage():
    for result, point in (({}, [0.4, 0.6]), ({"metrics": {"best_step": 1.0}}, [0.2, 0.7])):
        lines = figures.win_rate_against_kl_figure([titled("a", result)]).axes[0].lines
        assert [line.get_xydata().tolist() for line in lines if line.get_markersize() == 8] == [[point]]


def test_runs_that_are_no_seeds_of_one_experiment_stand_apart():
    runs = [titled("a"), titled("b")]
    pooled, apart = (figures.win_rate_against_kl_figure(runs, pooled=pooled).axes[0] for pooled in (True, False))
    assert [text.get_text() for text in pooled.get_legend().get_texts()] == ["Mine"]
    assert [text.get_text() for text in apart.get_legend().get_texts()] == ["Mine, a", "Mine, b"]
    ticks = figures.arms_figure(runs, pooled=False).axes[0].get_yticklabels()
    assert [tick.get_text() for tick in ticks] == ["Mine, a", "Mine, b"]


def test_the_reliability_diagram_skips_empty_bins():
    bins = [
        {"low": 0.5, "high": 0.55, "confidence": 0.52, "frequency": 0.6, "count": 7},
        {"low": 0.55, "high": 0.6, "confidence": None, "frequency": None, "count": 0},
    ]
    figure = figures.reliability_figure([{"stage": "bt", "ece": 0.08, "reliability": bins}])
    points = next(line for line in figure.axes[0].lines if line.get_label() == "judge")
    assert points.get_xydata().tolist() == [[0.52, 0.6]]
    assert [bar.get_height() for bar in figure.axes[1].patches] == [7]
    assert figures.reliability_figure([{"stage": "bt", "reliability": bins[1:]}]) is None


@pytest.mark.parametrize("name", ["BT + PPO $x", "_日本", "<b>&"])
def test_files_are_pictures_whatever_the_names(tmp_path, name):
    arms = [{"name": name, "judge": "j", "win_rate": 0.6, "win_rate_low": 0.5, "win_rate_high": 0.7}]
    paths = figures.write_figures([run(arms=arms)], tmp_path)
    assert list(paths) == ["arms"]
    with Image.open(paths["arms"]) as picture:
        assert picture.format == "PNG" and picture.width > 400 and len(picture.convert("L").getcolors()) > 10


def test_the_caption_names_the_parts_of_a_mixture():
    parts = {"own": {"kind": "jsonl", "path": "a.jsonl", "weight": 1.0}, "built_in": {"kind": "gold", "split": "test"}}
    section = {"prompts": {"kind": "mix", "path": "", "split": "train", "limit": 0, "mix": parts}, "judge": "bt"}
    measured = RunFiles(Path("x"), "x", {"ppo": {"evaluation": section}}, {}, [stage("ppo", "rewarded", [])], [])
    assert "on all prompts of a.jsonl and gold (test), judged by" in names.kl_caption(measured)
