"""Tables and sentences of the report, as plain strings."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prl_jax.evaluation import order_consistency, position_bias
from prl_jax.progress import format_seconds
from prl_jax.reporting.inputs import RunFiles, clean, number

DASH = "–"
# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; the normal quantile from there on.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text. `numeric[c]` asks for alignment to the right; `strong` holds numbers of rows to stress."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]
    strong: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table of arms or judges: title and how its cell is read off a row."""

    title: str
    cell: Callable[[Mapping[str, Any]], str]
    numeric: bool = True


def decimal(key: str, digits: int = 3) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: f"{value:.{digits}f}" if (value := number(row, key)) is not None else DASH


def text(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: str(row[key]) if row.get(key) not in (None, "") else DASH


def interval(row: Mapping[str, Any], key: str) -> str:
    """`0.634 [0.619, 0.650]`."""
    value, low, high = number(row, key), number(row, f"{key}_low"), number(row, f"{key}_high")
    if value is None:
        return DASH
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


_ARM_COLUMNS = (
    Column("arm", text("name"), numeric=False),
    Column("judge", text("judge"), numeric=False),
    Column("judge accuracy", decimal("judge_accuracy")),
    Column("judge ECE", decimal("judge_ece")),
    Column("order consistency", decimal("judge_order_consistency")),
    Column("win rate vs SFT [95%]", lambda row: interval(row, "win_rate")),
    Column("vs anchor", decimal("win_rate_vs_anchor")),
    Column("utility", decimal("utility")),
    Column("KL", decimal("kl")),
    Column("length", decimal("response_length", 1)),
)
_JUDGE_COLUMNS = (
    Column("judge", text("stage"), numeric=False),
    Column("pairs", decimal("n", 0)),
    Column("ties", decimal("ties", 0)),
    Column("accuracy", decimal("accuracy")),
    Column("longer wins", decimal("longer_wins")),
    Column("Bayes accuracy", decimal("bayes_accuracy")),
    Column("accuracy vs truth", decimal("accuracy_vs_truth")),
    Column("ECE", decimal("ece")),
    Column("Brier", decimal("brier")),
    Column("log loss", decimal("log_loss")),
    Column("order consistency", decimal("order_consistency")),
    Column("position bias", decimal("position_bias")),
)


def arms_of(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of a summary's final table."""
    arms = summary.get("arms")
    return [arm for arm in arms if isinstance(arm, Mapping)] if isinstance(arms, list) else []


def is_trained(arm: Mapping[str, Any]) -> bool:
    """Whether the arm is a policy that reinforcement learning has trained, not SFT or another trivial baseline."""
    return bool(arm.get("judge"))


def arms_table(summary: Mapping[str, Any]) -> Table:
    arms = arms_of(summary)
    trained = frozenset(index for index, arm in enumerate(arms) if is_trained(arm))
    return _table(_ARM_COLUMNS, arms, strong=trained)


def attributes_table(summary: Mapping[str, Any]) -> Table:
    """Attributes of the responses (of tasks that measure them), one row an arm."""
    rows = [
        {"name": arm.get("name"), **arm["attributes"]}
        for arm in arms_of(summary)
        if isinstance(arm.get("attributes"), Mapping)
    ]
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "name"))
    return _table([Column("arm", text("name"), numeric=False), *(Column(key, decimal(key)) for key in keys)], rows)


def judges_of(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    judges = summary.get("judges")
    if not isinstance(judges, Mapping):
        return []
    return [{"stage": stage, **row} for stage, row in judges.items() if isinstance(row, Mapping)]


def judges_table(summary: Mapping[str, Any]) -> Table:
    return _table(_JUDGE_COLUMNS, judges_of(summary))


def position_table(run: RunFiles) -> Table:
    """Position bias of the judges as reinforcement learning met them: over the samples of each PPO stage."""
    rows = []
    for stage in run.of_kind("ppo"):
        pairs = [(number(row, "p_12"), number(row, "p_21")) for row in stage.samples]
        both = np.array([pair for pair in pairs if None not in pair], np.float64).reshape(-1, 2)
        if len(both):
            bias, consistency = position_bias(both[:, 0], both[:, 1]), order_consistency(both[:, 0], both[:, 1])
            rows.append({"stage": stage.name, "n": len(both), "bias": bias, "consistency": consistency})
    columns = [
        Column("stage", text("stage"), numeric=False),
        Column("comparisons", decimal("n", 0)),
        Column("position bias", lambda row: f"{row['bias']:+.3f}"),
        Column("order consistency", decimal("consistency")),
    ]
    return _table(columns, rows)


def stages_table(run: RunFiles) -> Table:
    """How long each stage took."""
    total = sum(number(stage.result, "seconds") or 0.0 for stage in run.stages)
    rows: list[list[str]] = []
    for stage in run.stages:
        seconds = number(stage.result, "seconds")
        steps = max((row["step"] for row in stage.metrics), default=None)
        rows.append(
            [
                stage.name,
                stage.kind.replace("_", " ") or DASH,
                DASH if steps is None else str(steps),
                "not finished" if seconds is None else format_seconds(seconds),
                DASH if seconds is None or not total else f"{100 * seconds / total:.0f} %",
            ]
        )
    if rows:
        rows.append(["all", "", "", format_seconds(total), ""])
    return Table(["stage", "kind", "steps", "time", "share"], rows, [False, False, True, True, True])


def combined_table(runs: Sequence[RunFiles]) -> Table:
    """Every arm of every workdir, and for each arm the mean over workdirs with its 95 % interval (Student's t)."""
    columns = [column for column in _ARM_COLUMNS if column.title != "judge"]
    names = list(dict.fromkeys(str(arm.get("name")) for run in runs for arm in arms_of(run.summary)))
    rows, strong = [], set()
    for name in names:
        same = [(run, arm) for run in runs for arm in arms_of(run.summary) if str(arm.get("name")) == name]
        for run, arm in same:
            rows.append([name, run.label, text("seed")(run.summary), *(column.cell(arm) for column in columns[1:])])
        if len(same) > 1:
            strong.add(len(rows))
            mean = across_seeds([arm for _, arm in same])
            rows.append([name, f"mean of {len(same)}", "", *(column.cell(mean) for column in columns[1:])])
    header = ["arm", "workdir", "seed", *(column.title for column in columns[1:])]
    return _without_empty(
        Table(header, rows, [False, False, True, *(column.numeric for column in columns[1:])], frozenset(strong))
    )


def across_seeds(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over rows of every numeric key that all rows have; intervals of `win_rate` are over the rows."""
    keys = [key for key in rows[0] if all(number(row, key) is not None for row in rows)]
    values = {key: np.array([number(row, key) for row in rows], np.float64) for key in keys}
    means = {key: float(column.mean()) for key, column in values.items()}
    key = "win_rate"
    if key in means:
        mean, low, high = t_interval(values[key].tolist())
        means.pop(f"{key}_low", None), means.pop(f"{key}_high", None)
        if low is not None and high is not None:
            means |= {key: mean, f"{key}_low": low, f"{key}_high": high}
    return means


def t_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and 95 % interval of the mean by Student's t; no interval for a single value."""
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return mean, None, None
    quantile = _T_95[n - 2] if n - 2 < len(_T_95) else 1.96
    half = quantile * math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return mean, mean - half, mean + half


def terminal_table(summary: Mapping[str, Any]) -> str:
    """The final table for the terminal: arms, then judges, aligned plain text without a trailing newline."""
    summary = clean(summary)
    parts = [_aligned(table) for table in (arms_table(summary), judges_table(summary)) if table.rows]
    return "\n\n".join(parts).replace(DASH, "-") or "no results"


def _aligned(table: Table) -> str:
    """Columns as wide as their cells need, headers wrapped into them."""
    widths = [
        max(len(cell) for cell in (*title.split(), *(row[column] for row in table.rows)))
        for column, title in enumerate(table.header)
    ]
    titles = [textwrap.wrap(title, width) for title, width in zip(table.header, widths, strict=True)]
    height = max(map(len, titles))
    heads = [[(([""] * height) + title)[len(title) + line] for title in titles] for line in range(height)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, table.numeric, strict=True)
        ).rstrip()
        for line in [*heads, ["-" * width for width in widths], *table.rows]
    )


def _table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], strong: frozenset[int] = frozenset()) -> Table:
    cells = [[column.cell(row) for column in columns] for row in rows]
    header, numeric = [column.title for column in columns], [column.numeric for column in columns]
    return _without_empty(Table(header, cells, numeric, strong))


def _without_empty(table: Table) -> Table:
    """Leaves out columns in which no row has anything."""
    kept = [c for c in range(len(table.header)) if c == 0 or any(row[c] not in (DASH, "") for row in table.rows)]
    return Table(
        [table.header[c] for c in kept],
        [[row[c] for c in kept] for row in table.rows],
        [table.numeric[c] for c in kept],
        table.strong,
    )
