"""The figure of `gallery.py`: what each method wins on the built-in tasks, how far it moved, and what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from overoptimisation_figure import STYLE

COLORS = {"online": "#2563eb", "direct": "#ea580c", "iterative": "#059669"}
PANELS = {
    "win_rate": "exact win rate against SFT",
    "correctness": "correctness",
    "kl": "KL from SFT, nats per response",
    "trained": "tokens trained on",
    "seconds": "seconds",
}
LOGARITHMIC = ("kl", "trained", "seconds")


def draw(methods: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Writes the figure as an SVG file."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "gallery"}):
        figure_of(methods).savefig(out, format="svg", metadata={"Date": None})


def figure_of(methods: Sequence[Mapping[str, Any]]) -> Figure:
    """A line per method, the best one on top, and a panel per measure, with intervals over seeds where there are some.
    A method whose runs all failed has its line, with nothing on it.

    Args:
      methods: rows with family, method, seeds, and each measure with its `_low` and `_high`, in their order.
    """
    figure = Figure(figsize=(13, 1.4 + 0.19 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True, width_ratios=(2, *[1] * (len(PANELS) - 1)))
    for axes, (measure, title) in zip(panels, PANELS.items(), strict=True):
        _panel(axes, methods, measure)
        axes.set(xlabel=title, xscale="log" if measure in LOGARITHMIC else "linear")
        axes.xaxis.set_minor_formatter(NullFormatter())  # whose labels would run into each other
        axes.grid(axis="y", linewidth=0.5)
    panels[0].axvline(0.5, color="#9ca3af", linewidth=0.8, linestyle=":")
    names = [f"{line['method']}, {line['family']}" + ("" if line["seeds"] else " (failed)") for line in methods]
    panels[0].set_yticks(range(len(methods)), names, fontsize=7)
    panels[0].set_ylim(len(methods) - 0.4, -0.6)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(COLORS))
    return figure


def _panel(axes: Axes, methods: Sequence[Mapping[str, Any]], measure: str) -> None:
    for family, color in COLORS.items():
        shown = [(row, line) for row, line in enumerate(methods) if line["family"] == family and line["seeds"]]
        if not shown:
            continue
        rows, values = zip(*((row, line[measure]) for row, line in shown), strict=True)
        axes.plot(values, rows, "o", color=color, markersize=4, label=family)
        for row, line in shown:
            if line[f"{measure}_low"] is not None:
                axes.plot((line[f"{measure}_low"], line[f"{measure}_high"]), (row, row), color=color, linewidth=1.2)
