"""Tables and sentences of the report, as plain strings."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prl_jax.progress import format_seconds
from prl_jax.reporting.inputs import JUDGE, REWARDED, RunFiles, StageFiles, clean, number
from prl_jax.reporting.means import across_seeds
from prl_jax.reporting.names import arm_name
from prl_jax.reporting.trust import no_judges_of_summary, sample_orders, sentences

DASH = "–"


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


def count(key: str) -> Callable[[Mapping[str, Any]], str]:
    """A number that is shown only where there is something to count."""
    return lambda row: f"{value:.0f}" if (value := number(row, key)) else DASH


def points(row: Mapping[str, Any], key: str = "difference") -> str:
    """A difference of two shares in points: `+2.4 [0.9, 3.8]`."""
    value, low, high = number(row, key), number(row, f"{key}_low"), number(row, f"{key}_high")
    if value is None:
        return DASH
    value, low, high = (None if share is None else round(100 * share, 1) + 0.0 for share in (value, low, high))
    return f"{value:+.1f}" if low is None or high is None else f"{value:+.1f} [{low:.1f}, {high:.1f}]"


def _arm_columns(opponent: str) -> tuple[Column, ...]:
    against = f"win rate vs {opponent} [95%]" if opponent else "win rate [95%]"
    return (
        Column("arm", text("name"), numeric=False),
        Column("judge", text("judge"), numeric=False),
        Column("judge accuracy", decimal("judge_accuracy")),
        Column("judge ECE", decimal("judge_ece")),
        Column("order consistency", decimal("judge_order_consistency")),
        Column(against, lambda row: interval(row, "win_rate")),
        Column("prompts left out", count("prompts_left_out")),
        Column("vs anchor", decimal("win_rate_vs_anchor")),
        Column("utility", decimal("utility")),
        Column("KL", decimal("kl")),
        Column("length", decimal("response_length", 1)),
    )


_JUDGE_COLUMNS = (
    Column("judge", text("stage"), numeric=False),
    Column("pairs", decimal("n", 0)),
    Column("ties", decimal("ties", 0)),
    Column("not finite", count("not_finite")),
    Column("accuracy [95%]", lambda row: interval(row, "accuracy")),
    Column("longer wins", decimal("longer_wins")),
    Column("Bayes accuracy", decimal("bayes_accuracy")),
    Column("accuracy vs truth", decimal("accuracy_vs_truth")),
    Column("ECE", decimal("ece")),
    Column("Brier", decimal("brier")),
    Column("log loss", decimal("log_loss")),
    Column("order consistency", decimal("order_consistency")),
    Column("position bias", decimal("position_bias")),
)


def p_value(row: Mapping[str, Any]) -> str:
    """The p-value of a difference, corrected for the number of pairs that were compared."""
    value = number(row, "p_corrected")
    if value is None:
        return DASH
    return "<0.001" if value < 0.001 else f"{value:.3f}"


_PAIR_COLUMNS = (
    Column("arm", text("arm"), numeric=False),
    Column("compared with", text("other"), numeric=False),
    Column("points [95%]", points),
    Column("p, corrected", p_value),
)


def arms_of(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of a summary's final table."""
    arms = summary.get("arms")
    return [arm for arm in arms if isinstance(arm, Mapping)] if isinstance(arms, list) else []


def is_trained(arm: Mapping[str, Any]) -> bool:
    """Whether the arm is a policy that was trained, not a row of the opponent itself."""
    return bool(arm.get("judge")) or arm.get("is_opponent") is False


def arms_table(summary: Mapping[str, Any]) -> Table:
    arms = arms_of(summary)
    trained = frozenset(index for index, arm in enumerate(arms) if is_trained(arm))
    return table_of(_arm_columns(str(summary.get("opponent") or "")), arms, strong=trained)


def pairs_of(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The paired differences of a summary in which a trained policy is compared, the trained one first."""
    pairs, arms = summary.get("paired"), arms_of(summary)
    trained = [str(arm.get("name")) for arm in arms if is_trained(arm)]
    found = [pair for pair in pairs if isinstance(pair, Mapping)] if isinstance(pairs, list) else []
    return [pair for pair in found if str(pair.get("arm")) in trained]


def paired_table(runs: Sequence[RunFiles], *, pooled: bool) -> Table:
    """Differences of win rates on the same prompts: of each run, and where these are seeds of one experiment the mean
    with its interval over runs (Student's t)."""
    names = list(dict.fromkeys(_pair(pair) for run in runs for pair in pairs_of(run.summary)))
    rows, strong = [], set()
    for name in names:
        same = [(run, pair) for run in runs for pair in pairs_of(run.summary) if _pair(pair) == name]
        rows += [[*name, run.label, points(pair), p_value(pair)] for run, pair in same]
        if pooled and len(same) > 1:
            strong.add(len(rows))
            mean = across_seeds([pair for _, pair in same], interval_of="difference")
            rows.append([*name, f"mean of {len(same)}", points(mean), DASH])  # p-values have no mean
    header = ["arm", "compared with", "workdir", "points [95%]", "p, corrected"]
    table = _without_empty(Table(header, rows, [False, False, False, True, True], frozenset(strong)))
    return table if len(runs) > 1 else _without(table, "workdir")


def _pair(pair: Mapping[str, Any]) -> tuple[str, str]:
    return str(pair.get("arm")), str(pair.get("other"))


def attributes_table(summary: Mapping[str, Any]) -> Table:
    """Attributes of the responses (of tasks that measure them), one row an arm."""
    rows = [
        {"name": arm.get("name"), **arm["attributes"]}
        for arm in arms_of(summary)
        if isinstance(arm.get("attributes"), Mapping)
    ]
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "name"))
    return table_of([Column("arm", text("name"), numeric=False), *(Column(key, decimal(key)) for key in keys)], rows)


def judges_of(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    judges = summary.get("judges")
    if not isinstance(judges, Mapping):
        return []
    return [{"stage": stage, **row} for stage, row in judges.items() if isinstance(row, Mapping)]


def judges_table(summary: Mapping[str, Any]) -> Table:
    return table_of(_JUDGE_COLUMNS, judges_of(summary))


def position_table(run: RunFiles) -> Table:
    """Position bias of the judges as reinforcement learning met them: over the samples of each policy stage."""
    found = [(stage, sample_orders(stage)) for stage in run.of_role(REWARDED)]
    rows = [{"stage": arm_name(run, stage.name), **orders} for stage, orders in found if orders]
    columns = [
        Column("arm", text("stage"), numeric=False),
        Column("comparisons", decimal("n", 0)),
        Column("position bias", lambda row: f"{row['position_bias']:+.3f}"),
        Column("order consistency", decimal("order_consistency")),
    ]
    return table_of(columns, rows)


def _what(stage: StageFiles) -> str:
    """Returns the name of a stage's kind in the table of stages."""
    return "reward model" if stage.role == JUDGE else (stage.kind or stage.role).replace("_", " ")


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
                _what(stage) or DASH,
                DASH if steps is None else str(steps),
                "not finished" if seconds is None else format_seconds(seconds),
                DASH if seconds is None or not total else f"{100 * seconds / total:.0f} %",
            ]
        )
    if rows:
        rows.append(["all", "", "", format_seconds(total), ""])
    return Table(["stage", "kind", "steps", "time", "share"], rows, [False, False, True, True, True])


def combined_table(runs: Sequence[RunFiles], *, pooled: bool) -> Table:
    """Every arm of every workdir, and for each arm the mean over workdirs with its 95 % interval (Student's t), where
    these are seeds of one experiment."""
    opponents = {str(run.summary.get("opponent") or "") for run in runs}
    columns = [c for c in _arm_columns(opponents.pop() if len(opponents) == 1 else "") if c.title != "judge"]
    names = list(dict.fromkeys(str(arm.get("name")) for run in runs for arm in arms_of(run.summary)))
    rows, strong = [], set()
    for name in names:
        same = [(run, arm) for run in runs for arm in arms_of(run.summary) if str(arm.get("name")) == name]
        for run, arm in same:
            rows.append([name, run.label, text("seed")(run.summary), *(column.cell(arm) for column in columns[1:])])
        if pooled and len(same) > 1:
            strong.add(len(rows))
            mean = across_seeds([arm for _, arm in same])
            rows.append([name, f"mean of {len(same)}", "", *(column.cell(mean) for column in columns[1:])])
    header = ["arm", "workdir", "seed", *(column.title for column in columns[1:])]
    return _without_empty(
        Table(header, rows, [False, False, True, *(column.numeric for column in columns[1:])], frozenset(strong))
    )


def terminal_table(summary: Mapping[str, Any], judges: Mapping[str, Any]) -> str:
    """The final table for the terminal: arms, their differences, judges, aligned plain text without a trailing newline.
    Judges that are none are named below; `judges` is the section of the config that says which name is whose."""
    summary = clean(summary)
    pairs = table_of(_PAIR_COLUMNS, pairs_of(summary))
    parts = [_aligned(table) for table in (arms_table(summary), pairs, judges_table(summary)) if table.rows]
    reasons = no_judges_of_summary(summary, judges)
    if reasons:
        parts.append("\n".join(sentences(list(reasons), reasons, summary)))
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


def table_of(
    columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], strong: frozenset[int] = frozenset()
) -> Table:
    """Rows as cells; columns in which no row has anything are left out."""
    cells = [[column.cell(row) for column in columns] for row in rows]
    header, numeric = [column.title for column in columns], [column.numeric for column in columns]
    return _without_empty(Table(header, cells, numeric, strong))


def _without_empty(table: Table) -> Table:
    kept = [c for c in range(len(table.header)) if c == 0 or any(row[c] not in (DASH, "") for row in table.rows)]
    return _columns(table, kept)


def _without(table: Table, title: str) -> Table:
    return _columns(table, [c for c, head in enumerate(table.header) if head != title])


def _columns(table: Table, kept: Sequence[int]) -> Table:
    return Table(
        [table.header[c] for c in kept],
        [[row[c] for c in kept] for row in table.rows],
        [table.numeric[c] for c in kept],
        table.strong,
    )
