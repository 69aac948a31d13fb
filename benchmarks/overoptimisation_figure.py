"""The figure of `overoptimisation.py`: what the optimiser sees beside what it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ARMS = {
    "single": ("one judge", "#ea580c"),
    "mean": ("mean of five", "#2563eb"),
    "worst": ("worst of five (WCO)", "#059669"),
    "uwo": ("mean less half the variance (UWO)", "#9333ea"),
    "exact": ("chosen by exact utility", "#475569"),
}
OPTIMISERS = {"best_of_n": "Best of n, n = 1 to 64, test prompts", "ppo": "PPO, training prompts"}
MEASURES = {"proxy_gain": "Proxy: score less that of SFT", "utility": "Exact utility"}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eef0f3",
    "legend.frameon": False,
    "svg.hashsalt": "overoptimisation",  # the same data gives the same bytes
}


def draw(means: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Writes the figure as an SVG file."""
    with matplotlib.rc_context(STYLE):
        figure_of(means).savefig(out, format="svg", metadata={"Date": None})


def figure_of(means: Sequence[Mapping[str, Any]]) -> Figure:
    """Proxy and exact utility against KL, for best-of-n and for PPO, with intervals over seeds.

    Args:
      means: rows with optimiser, arm, `kl`, and each measure with its `_low` and `_high`.
    """
    figure = Figure(figsize=(10, 7), layout="constrained")
    for row, (optimiser, title) in zip(figure.subplots(2, 2), OPTIMISERS.items(), strict=True):
        curves = {arm: [one for one in means if (one["optimiser"], one["arm"]) == (optimiser, arm)] for arm in ARMS}
        for axes, (measure, label) in zip(row, MEASURES.items(), strict=True):
            for arm, points in curves.items():
                # Who chooses by exact utility has no proxy.
                if points and not (arm == "exact" and measure == "proxy_gain"):
                    _curve(axes, points, arm, measure)
            axes.set(title=title, xlabel="KL from SFT, nats per response", ylabel=label)
        start = fmean(points[0]["utility"] for points in curves.values() if points)
        row[1].axhline(start, color="#9ca3af", linewidth=0.8, linestyle=":", label="SFT")
    figure.legend(*figure.axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _curve(axes: Axes, points: Sequence[Mapping[str, Any]], arm: str, measure: str) -> None:
    label, colour = ARMS[arm]
    values = [point[measure] for point in points]
    highs = [point[f"{measure}_high"] for point in points]  # as far above the mean as the low ends are below
    halves = None if None in highs else [high - value for high, value in zip(highs, values, strict=True)]
    style = dict(marker="o", markersize=3, color=colour, linestyle="--" if arm == "exact" else "-", elinewidth=0.6)
    axes.errorbar([point["kl"] for point in points], values, yerr=halves, label=label, **style)
