"""Figures of the report as PNG files. Matplotlib without pyplot, so that no state outlives a figure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Else the first import on a machine announces on the terminal that it builds a font cache.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
import matplotlib  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from prl_jax.files import replacing  # noqa: E402
from prl_jax.reporting.inputs import JUDGE, PAIRED, REWARDED, SUPERVISED, RunFiles, StageFiles, number  # noqa: E402
from prl_jax.reporting.names import arm_name, opponent_of, start_of  # noqa: E402
from prl_jax.reporting.tables import DASH, arms_of, decimal, interval, is_trained, judges_of  # noqa: E402
from prl_jax.reporting.watching import TRUTH_PANELS  # noqa: E402

COLORS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#db2777", "#0891b2", "#854d0e", "#475569")
_INK, FAINT = "#1f2937", "#9ca3af"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "text.color": _INK,
    "axes.edgecolor": "#d1d5db",
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eef0f3",
    "grid.linewidth": 0.8,
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
_SMOOTHED_FROM = 60  # points from which on a curve is drawn as a moving average over its faint raw values

Panel = tuple[str, str, Mapping[str, str]]  # title, y label, metric -> legend label
_PANELS: Mapping[str, Sequence[Panel]] = {
    SUPERVISED: (
        ("Loss", "nats per token", {"loss": "train", "validation_loss": "validation"}),
        ("Token accuracy", "share", {"accuracy": "train", "validation_accuracy": "validation"}),
    ),
    JUDGE: (
        ("Loss", "nats per pair", {"loss": "train", "validation_loss": "validation"}),
        ("Accuracy", "share of pairs", {"accuracy": "train", "validation_accuracy": "validation"}),
        (
            "Order consistency",
            "share of pairs",
            {"order_consistency": "train", "validation_order_consistency": "validation"},
        ),
        ("Margin", "chosen over rejected", {"margin": "train", "validation_margin": "validation"}),
    ),
    PAIRED: (
        ("Loss", "mean per pair", {"loss": "train", "validation_loss": "validation"}),
        ("Accuracy", "share of pairs", {"accuracy": "train", "validation_accuracy": "validation"}),
        ("Margin", "chosen over rejected", {"margin": "train", "validation_margin": "validation"}),
        (
            "Log-ratio to the references",
            "nats, as the loss reads it",
            {"chosen_ratio": "chosen", "rejected_ratio": "rejected"},
        ),
    ),
    REWARDED: (
        ("Reward", "mean per response", {"reward": "reward"}),
        ("Win rate against anchors", "by its judge", {"win_rate_anchors": "all", "win_rate_pool": "drawn"}),
        ("Win rate against its start", "win-rate judge, 95 %", {"win_rate": "win rate"}),
        ("KL to the reference", "nats per response", {"kl": "KL"}),
        ("Entropy", "nats per token", {"entropy": "entropy"}),
        ("Response length", "tokens", {"response_length": "length"}),
        ("Clipped tokens", "share", {"clip_fraction": "clipped"}),
        ("Value loss", "", {"value_loss": "value loss"}),
    ),
}


def write_figures(runs: Sequence[RunFiles], directory: Path, *, pooled: bool = True) -> dict[str, Path]:
    """Draws every figure that the runs have data for, details from the first run.

    Args:
      runs: whose files were read.
      directory: where the files go.
      pooled: whether the runs are seeds of one experiment; else each stands for itself.

    Returns:
      Figure name -> PNG file: `arms`, `win_rate_vs_kl`, `reliability`, and for each stage `learning_<stage>` and
      `truth_<stage>`.
    """
    first = runs[0]
    makers: dict[str, Callable[[], Figure | None]] = {
        "arms": lambda: arms_figure(runs, pooled=pooled),
        "win_rate_vs_kl": lambda: win_rate_against_kl_figure(runs, pooled=pooled),
        "reliability": lambda: reliability_figure(judges_of(first.summary)),
    }
    for stage in first.stages:
        twins = [twin for run in runs[1:] if pooled for twin in run.stages if twin.name == stage.name]
        makers[f"learning_{stage.name}"] = lambda stage=stage, twins=twins: learning_figure(
            [stage, *twins], against=start_of(first, stage.name)
        )
        makers[f"truth_{stage.name}"] = lambda stage=stage, twins=twins: truth_figure([stage, *twins])
    paths = {}
    with matplotlib.rc_context(STYLE):
        for name, make in makers.items():
            figure = make()
            if figure is not None:
                paths[name] = directory / f"{name}.png"
                # No metadata: the same data gives the same bytes.
                with replacing(paths[name]) as file:
                    figure.savefig(file, dpi=130, format="png", metadata={"Software": None})
    return paths


def label(name: str) -> str:
    """A name as matplotlib can show it: the font's characters, one line, never hidden by a leading underscore."""
    visible = "".join(c if c.isprintable() and ord(c) < 0x250 else "?" for c in name)
    visible = visible if len(visible) <= 40 else visible[:39] + "…"
    return " " + visible if visible.startswith("_") else visible


def truth_figure(stages: Sequence[StageFiles]) -> Figure | None:
    """The reward of a policy beside the exact one, and how right its judge was; None where the truth was not known."""
    known = any(_has(stages[0].metrics, key) for key in ("exact_reward", "judge_accuracy"))
    return learning_figure(stages, TRUTH_PANELS) if known else None


def learning_figure(
    stages: Sequence[StageFiles], panels: Sequence[Panel] | None = None, *, against: str = ""
) -> Figure | None:
    """Curves of a stage, by default those of its role; further stages (the same one in other runs) are drawn faintly.
    `against`: what its win rate is measured against."""
    rows, panels = stages[0].metrics, _PANELS.get(stages[0].role, ()) if panels is None else panels
    panels = [panel for panel in panels if any(_has(rows, key) for key in panel[2])]
    if not panels:
        return None
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(max(2.9 * columns, 4.2), 2.3 * lines + 0.1), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, (title, unit, keys) in zip(grid.flat, panels, strict=False):
        for color, (key, name) in zip(COLORS, keys.items(), strict=False):
            for twin in (twin for twin in stages[1:] if _has(twin.metrics, key)):
                axes.plot(*_series(twin.metrics, key)[:2], color=color, alpha=0.3, linewidth=1.0)
            _curve(axes, rows, key, color, name)
        axes.set(title=title, ylabel=unit, xlabel="step")
        axes.xaxis.get_major_locator().set_params(integer=True)  # there is no half a step
        if key == "win_rate":
            axes.set_title(f"Win rate against {label(against)}" if against else title)
            axes.axhline(0.5, color=FAINT, linewidth=1.0, linestyle="--")
        if sum(_has(rows, key) for key in keys) > 1:
            axes.legend()
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    return figure


def win_rate_against_kl_figure(runs: Sequence[RunFiles], *, pooled: bool = True) -> Figure | None:
    """Win rate over KL to the reference, measured during training from step 0 on; one colour a policy."""
    found = [(run, stage) for run in runs for stage in run.of_role(REWARDED)]
    names = {(run.label, stage.name): _policy(run, arm_name(run, stage.name), pooled) for run, stage in found}
    colors = dict(zip(dict.fromkeys(names.values()), COLORS * len(names), strict=False))
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes, drawn = figure.subplots(), set()
    for run, stage in found:
        name = names[run.label, stage.name]
        _frontier(axes, stage, colors[name], None if name in drawn else label(name), faint=name in drawn)
        drawn.add(name)
    if not axes.lines:
        return None
    starts = {start_of(run, stage.name) for run, stage in found}
    against = label(starts.pop()) if len(starts) == 1 and starts != {""} else "what each policy started from"
    axes.axhline(0.5, color=FAINT, linewidth=1.0, linestyle="--")
    axes.set(xlabel="KL to the reference (nats per response)", ylabel=f"win rate against {against}")
    axes.set_title("Win rate against KL over training, 95 % intervals over prompts")
    axes.legend(loc="best", title="policy (larger marker: its result)", title_fontsize=8, alignment="left")
    return figure


def _policy(run: RunFiles, name: str, pooled: bool) -> str:
    """A policy's name, with that of its run where runs are no seeds of one experiment."""
    return name if pooled else f"{name}, {run.label}"


def reliability_figure(judges: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Predicted against observed probability of the predicted side, number of pairs below; one column a judge."""
    drawn = [judge for judge in judges if any(number(bin_, "confidence") is not None for bin_ in _bins(judge))]
    if not drawn:
        return None
    figure = Figure(figsize=(max(3.1 * len(drawn), 4.2), 4.3), layout="constrained")
    grid = figure.subplots(2, len(drawn), squeeze=False, sharex=True, height_ratios=(3.4, 1))
    for (top, bottom), judge, color in zip(grid.T, drawn, COLORS * len(drawn), strict=False):
        bins = [bin_ for bin_ in _bins(judge) if number(bin_, "confidence") is not None]
        confidence = np.array([number(bin_, "confidence") for bin_ in bins])
        frequency = np.array([number(bin_, "frequency") for bin_ in bins], np.float64)
        count = np.array([number(bin_, "count") or 0.0 for bin_ in bins])
        low = np.array([number(bin_, "low") or 0.0 for bin_ in bins])
        top.plot([0.5, 1], [0.5, 1], color=FAINT, linewidth=1.0, linestyle="--", label="calibrated")
        top.vlines(
            confidence, np.minimum(confidence, frequency), np.maximum(confidence, frequency), color=color, alpha=0.35
        )
        top.plot(confidence, frequency, color=color, marker="o", markersize=5, label="judge")
        known = [("accuracy", interval(judge, "accuracy")), ("longer wins", decimal("longer_wins")(judge))]
        known += [("ECE", decimal("ece")(judge))]
        lines = [f"{what} {value}" for what, value in known if value != DASH]
        top.set_title("\n".join([label(str(judge["stage"])), *lines]))
        top.set(xlim=(0.48, 1.02), ylim=(min(0.38, float(np.nanmin(frequency)) - 0.03), 1.03))
        bottom.bar(low + 0.025, count, width=0.043, color=color, alpha=0.55)
        bottom.set(xlabel="probability of the predicted side")
    grid[0, 0].set_ylabel("how often it is the better one")
    grid[1, 0].set_ylabel("pairs")
    grid[0, 0].legend(loc="upper left")
    return figure


def arms_figure(runs: Sequence[RunFiles], *, pooled: bool = True) -> Figure | None:
    """Win rate of every arm, one mark a run, with intervals over prompts."""
    rows = [
        (_policy(run, str(arm.get("name")), pooled), i, arm)
        for i, run in enumerate(runs)
        for arm in arms_of(run.summary)
    ]
    names = list(dict.fromkeys(name for name, _, _ in rows))
    marks = [(names.index(name), i, arm) for name, i, arm in rows if number(arm, "win_rate") is not None]
    if not marks:
        return None
    figure = Figure(figsize=(6.4, 0.9 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0.5, color=FAINT, linewidth=1.0, linestyle="--")
    for row, index, arm in marks:
        offset = 0.0 if len(runs) == 1 or not pooled else 0.5 * (index / (len(runs) - 1) - 0.5)
        value = number(arm, "win_rate") or 0.0
        color = COLORS[0] if is_trained(arm) else COLORS[7]
        axes.errorbar(value, row + offset, xerr=_spread(arm, "win_rate", value), fmt="o", color=color, capsize=3)
    axes.set_yticks(range(len(names)), [label(name) for name in names])
    opponents = {opponent_of(run) for run in runs}
    against = label(opponents.pop()) if len(opponents) == 1 and opponents != {""} else "the opponent"
    axes.set(ylim=(len(names) - 0.4, -0.6), xlabel=f"win rate against {against}, 95 % interval over prompts")
    axes.grid(axis="y", visible=False)
    return figure


def _bins(judge: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    bins = judge.get("reliability")
    return [bin_ for bin_ in bins if isinstance(bin_, Mapping)] if isinstance(bins, list) else []


def _has(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(number(row, key) is not None for row in rows)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float], list[Mapping[str, Any]]]:
    """Steps, values and rows where the metric was measured."""
    measured = [row for row in rows if number(row, key) is not None]
    return [float(row["step"]) for row in measured], [number(row, key) or 0.0 for row in measured], measured


def _curve(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, color: str, name: str) -> None:
    steps, values, measured = _series(rows, key)
    if not steps:
        return
    low, high = ([number(row, f"{key}_{end}") for row in measured] for end in ("low", "high"))
    if None not in low and None not in high:
        axes.fill_between(
            steps, np.array(low, np.float64), np.array(high, np.float64), color=color, alpha=0.15, linewidth=0
        )
    marker = "o" if len(steps) <= 25 else None
    if len(steps) < _SMOOTHED_FROM:
        axes.plot(steps, values, color=color, label=name, marker=marker, markersize=3)
        return
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    window = max(len(steps) // 30, 3)
    # Mean of the window that ends here, shorter at the start, so that the curve shows nothing before it happened.
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    axes.plot(steps, (sums[ends] - sums[starts]) / (ends - starts), color=color, label=name)


def _frontier(axes: Axes, stage: StageFiles, color: str, name: str | None, *, faint: bool) -> None:
    points = [row for row in stage.metrics if number(row, "win_rate") is not None and number(row, "kl") is not None]
    if not points:
        return
    kl, win = ([number(row, key) or 0.0 for row in points] for key in ("kl", "win_rate"))
    alpha = 0.3 if faint else 1.0
    axes.plot(kl, win, color=color, alpha=alpha, linewidth=1.0, marker="o", markersize=3.5, label=name)
    if not faint:
        spread = np.hstack([_spread(row, "win_rate", value) for row, value in zip(points, win, strict=True)])
        axes.errorbar(kl, win, yerr=spread, fmt="none", ecolor=color, elinewidth=0.9, alpha=0.45, capsize=2)
    # The parameters that the stage gives on: those of its best evaluation, if it keeps these, or of the last step.
    metrics = stage.result.get("metrics")
    best = number(metrics, "best_step") if isinstance(metrics, Mapping) else None
    at = next((i for i, row in enumerate(points) if row["step"] == best), len(points) - 1)
    axes.plot(kl[at], win[at], color=color, alpha=alpha, marker="o", markersize=8)


def _spread(row: Mapping[str, Any], key: str, value: float) -> np.ndarray:
    """`[2, 1]` distances to the interval's ends; 0 without an interval."""
    low, high = number(row, f"{key}_low"), number(row, f"{key}_high")
    low, high = value if low is None else low, value if high is None else high
    return np.array([[max(value - low, 0.0)], [max(high - value, 0.0)]])
