"""The page of a comparison of many runs: tables and figures of its conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prl_jax.files import replacing, write_text
from prl_jax.reporting.build import environment, figures_of
from prl_jax.reporting.figures import COLORS, FAINT, STYLE, label
from prl_jax.reporting.inputs import number
from prl_jax.reporting.tables import DASH, Column, Table, count, decimal, interval, p_value, points, table_of, text

PAGE, PAGE_TEXT = "comparison.html", "comparison.md"
_SURE = 0.05

Row = Mapping[str, Any]


def build_comparison(found: Mapping[str, Any], directory: Path) -> Path:
    """Writes `comparison.html`, the same in Markdown, and a figure for each condition; returns the path of the page.

    Args:
      found: as `comparing.collect` gives it.
      directory: of the comparison.
    """
    titles = {row["arm"]: row["title"] for one in found["conditions"] for row in one["arms"]}
    reference = titles.get(found["reference"], found["reference"])
    sections = [_section(one, titles, reference) for one in found["conditions"]]
    paths = {}
    with matplotlib.rc_context(STYLE):
        for one in found["conditions"]:
            if one["arms"]:
                path = paths[one["condition"]] = directory / f"comparison_{one['condition']}.png"
                with replacing(path) as file:
                    _figure(one, titles).savefig(file, dpi=130, format="png", metadata={"Software": None})
    context = {
        "title": found["title"],
        "progress": f"{found['finished']} of {found['cells']} runs have ended.",
        "sections": sections,
        "figures": figures_of(paths),
    }
    pages = environment()
    for name in (PAGE_TEXT, PAGE):
        write_text(directory / name, pages.get_template(f"{name}.jinja").render(context))
    return directory / PAGE


def _section(one: Row, titles: Mapping[str, str], reference: str) -> dict[str, Any]:
    arms = sorted(one["arms"], key=lambda row: -row["win_rate"])
    matched = one.get("matched") or {"kl": None, "arms": []}
    return {
        "name": one["condition"],
        "words": one["words"],
        "sentences": [
            *_greedy(one),
            *(_sentence(row, reference) for row in arms if number(row, "difference") is not None),
        ],
        "arms": _arms_table(arms, reference),
        "kl": matched["kl"],
        "matched": _matched_table(matched["arms"], reference),
    }


def _greedy(one: Row) -> list[str]:
    start = one.get("greedy")
    if not start:
        return []
    return [f"SFT, decoded greedily, wins {_rate(start)} of the comparisons with its own samples."]


def _rate(row: Row) -> str:
    value, low, high = (number(row, key) for key in ("win_rate", "win_rate_low", "win_rate_high"))
    if value is None:
        return DASH
    return f"{100 * value:.1f} %" + ("" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]")


def _sentence(row: Row, reference: str) -> str:
    """How an arm differs from the reference, what the test says, and what it could have said."""
    value, p, reach = (number(row, key) for key in ("difference", "p_corrected", "detectable"))
    assert value is not None
    way = "ahead of" if value >= 0 else "behind"
    stem = f"{row['title']} is {way} {reference} by {points({**row, 'difference': value}).lstrip('+-')} points"
    if value < 0:
        low, high = number(row, "difference_low"), number(row, "difference_high")
        turned = {"difference": -value, "difference_low": high and -high, "difference_high": low and -low}
        stem = f"{row['title']} is {way} {reference} by {points(turned).lstrip('+-')} points"
    if p is None or reach is None:
        return f"{stem}; nothing was repeated, so that this may be luck."
    verdict = "which is more than luck" if p < _SURE else "which may be luck"
    return (
        f"{stem} (corrected p {p_value(row)}), {verdict}; a difference of {100 * reach:.1f} points would be found four "
        "times out of five."
    )


def _arms_table(arms: Sequence[Row], reference: str) -> Table:
    columns = (
        Column("arm", text("title"), numeric=False),
        Column("win rate vs SFT [95%]", lambda row: interval(row, "win_rate")),
        Column("sets", count("sets")),
        Column("runs", count("repetitions")),
        *_difference(reference),
        Column("KL", decimal("kl", 2)),
        Column("utility", decimal("utility")),
        Column("correctness", decimal("correctness")),
        Column("length", decimal("length", 1)),
        Column("judge accuracy", decimal("judge_accuracy")),
        Column("sampled", _thousands("sampled")),
        Column("trained on", _thousands("trained")),
        Column("judged rows", _thousands("judged")),
        Column("seconds", decimal("seconds", 0)),
    )
    return table_of(columns, arms)


def _matched_table(rows: Sequence[Row], reference: str) -> Table:
    columns = (
        Column("arm", text("title"), numeric=False),
        Column("win rate vs SFT [95%]", lambda row: interval(row, "win_rate")),
        *_difference(reference),
    )
    return table_of(columns, sorted(rows, key=lambda row: -row["win_rate"]))


def _difference(reference: str) -> tuple[Column, ...]:
    return (
        Column(f"points over {reference} [95%]", points),
        Column("p, corrected", p_value),
        Column("detectable, points", lambda row: _points(row, "detectable")),
    )


def _points(row: Row, key: str) -> str:
    value = number(row, key)
    return DASH if value is None else f"{100 * value:.1f}"


def _thousands(key: str) -> Any:
    return lambda row: f"{value:,.0f}" if (value := number(row, key)) else DASH


def _figure(one: Row, titles: Mapping[str, str]) -> Figure:
    """Win rates with their intervals and, where arms ran with several coefficients, win rate against divergence."""
    arms = sorted(one["arms"], key=lambda row: -row["win_rate"])
    frontier = [line for line in one.get("frontier", ()) if len(line["points"]) > 1]
    figure = Figure(figsize=(11 if frontier else 7, 1.2 + 0.34 * max(len(arms), 6)), layout="constrained")
    panels = figure.subplots(1, 2 if frontier else 1, squeeze=False, width_ratios=(3, 2) if frontier else (1,))[0]
    _win_rates(panels[0], arms, one.get("greedy"))
    if frontier:
        _frontier(panels[1], frontier, titles)
    return figure


def _win_rates(axes: Axes, arms: Sequence[Row], greedy: Row | None) -> None:
    axes.axvline(0.5, color=FAINT, linewidth=1.0, linestyle="--")
    if greedy:
        axes.axvline(greedy["win_rate"], color=COLORS[2], linewidth=1.0, linestyle=":", label="SFT, greedy")
        axes.legend(loc="lower right")
    for place, row in enumerate(arms):
        low, high = (number(row, f"win_rate_{end}") for end in ("low", "high"))
        value = row["win_rate"]
        spread = None if low is None or high is None else [[value - low], [high - value]]
        axes.errorbar(value, place, xerr=spread, fmt="o", color=COLORS[0], capsize=3)
    axes.set_yticks(range(len(arms)), [label(row["title"]) for row in arms])
    axes.set(ylim=(len(arms) - 0.4, -0.6), xlabel="win rate against SFT, 95 % interval over sets, runs and prompts")
    axes.grid(axis="y", visible=False)


def _frontier(axes: Axes, lines: Sequence[Row], titles: Mapping[str, str]) -> None:
    for color, line in zip(COLORS * len(lines), lines, strict=False):
        places = sorted(map(tuple, line["points"]))
        axes.plot(*zip(*places, strict=True), marker="o", color=color, label=label(titles[line["arm"]]))
    axes.set(xlabel="KL from SFT, nats per response", ylabel="win rate against SFT")
    axes.legend(loc="lower right")
