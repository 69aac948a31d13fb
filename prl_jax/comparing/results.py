"""The finished cells of a comparison, counted together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from prl_jax.comparing.budget import taken
from prl_jax.comparing.cells import Cell, Comparison
from prl_jax.comparing.running import finished
from prl_jax.evaluation import holm
from prl_jax.evaluation.hierarchical import Estimate, arm_estimate, at_divergence, compare_arms
from prl_jax.file_names import CONFIG_FILE, SUMMARY_FILE, WINS_FILE
from prl_jax.files import parse_json

MEASURED = ("kl", "utility", "correctness", "length", "judge_accuracy")


class Trained(NamedTuple):
    """The repetitions of one cell.

    Attributes:
      wins: `[R, N]` win probabilities at the prompts, samples averaged.
      numbers: of each repetition, those of `MEASURED` that there are.
      greedy: `[N]`, the wins of the policy that all start from, decoded greedily.
      took: what a repetition took: tokens that were sampled and trained on, rows that judges read, seconds.
    """

    wins: Float[np.ndarray, "R N"]
    numbers: Sequence[Mapping[str, float]]
    greedy: Float[np.ndarray, "N"]
    took: Mapping[str, float]


def collect(comparison: Comparison, folder: Path) -> dict[str, Any]:
    """The tables of a comparison, as JSON holds them, from the cells that have ended.

    Returns:
      title; conditions: for each, its `arms` (win rate with its interval over sets, repetitions and prompts, means,
      what a run took, and how it differs from the reference: p-values corrected for all arms of the condition by Holm's
      method, the smallest difference that could have been told), and `matched`, the same at one divergence for arms
      that ran with several coefficients. An arm counts once all of its sets are there.
    """
    found = {cell: read_cell(folder / cell.folder) for cell in comparison.cells if finished(folder, cell)}
    conditions = []
    for key, words in comparison.conditions.items():
        known = {cell: trained for cell, trained in found.items() if cell.condition == key}
        if known:
            conditions.append({"condition": key, "words": words, **_condition(comparison, key, known)})
    cells = {"cells": len(comparison.cells), "finished": len(found)}
    return {"title": comparison.title, **cells, "reference": comparison.reference, "conditions": conditions}


def read_cell(workdir: Path) -> Trained:
    """Reads what a cell has come to."""
    summary = parse_json((workdir / SUMMARY_FILE).read_text())
    config = parse_json((workdir / CONFIG_FILE).read_text())["config"]
    rows = [json.loads(line) for line in (workdir / config["stages"][-1] / WINS_FILE).read_text().splitlines()]
    wins = lambda name: np.array([np.mean(row["wins"][name]) for row in rows], np.float64)  # noqa: E731
    arms = [arm for arm in summary["arms"] if not arm["is_opponent"]]
    greedy = next(arm["name"] for arm in summary["arms"] if arm["is_opponent"] and arm["name"].endswith("greedy"))
    return Trained(
        np.array([wins(arm["name"]) for arm in arms]), [_numbers(arm) for arm in arms], wins(greedy), taken(workdir)
    )


def _numbers(arm: Mapping[str, Any]) -> dict[str, float]:
    correctness = arm.get("attributes", {}).get("correctness")
    values = {**arm, "length": arm["response_length"], "correctness": correctness}
    return {name: float(values[name]) for name in MEASURED if values.get(name) is not None}


def _condition(comparison: Comparison, key: str, known: Mapping[Cell, Trained]) -> dict[str, Any]:
    """The tables of one condition."""
    arms: dict[str, list[Trained]] = {}
    swept: dict[str, dict[int, list[Trained]]] = {}
    for arm in comparison.arms:
        cells = list(comparison.of(key, arm))
        if not cells or any(cell not in known for cell in cells):
            continue
        main = cells[0].coefficient  # of several the first is the arm's own
        arms[arm] = [known[cell] for cell in cells if cell.coefficient == main]
        for cell in cells if main is not None else ():
            swept.setdefault(arm, {}).setdefault(cell.seed, []).append(known[cell])
    rows = [_row(comparison, arm, arms) for arm in arms]
    _correct(rows)
    table: dict[str, Any] = {"arms": rows, "frontier": [_frontier(arm, sets) for arm, sets in swept.items()]}
    if start := next(iter(arms.values()), None):
        table["greedy"] = _told(arm_estimate([one.greedy[None] for one in start]))
    if comparison.reference in swept and len(swept) > 1:
        table["matched"] = _matched(comparison, swept)
    return table


def _row(comparison: Comparison, arm: str, arms: Mapping[str, Sequence[Trained]]) -> dict[str, Any]:
    sets = arms[arm]
    row: dict[str, Any] = {"arm": arm, "title": comparison.arms[arm]}
    row |= _told(arm_estimate([one.wins for one in sets]))
    for name in MEASURED:
        values = [numbers[name] for one in sets for numbers in one.numbers if name in numbers]
        row[name] = float(np.mean(values)) if values else None
    row |= {name: float(np.mean([one.took[name] for one in sets])) for name in sets[0].took}
    if arm != comparison.reference and comparison.reference in arms:
        row |= _against([one.wins for one in sets], [one.wins for one in arms[comparison.reference]])
    return row


def _told(estimate: Estimate) -> dict[str, Any]:
    """An estimate of a win rate as the tables have it."""
    numbers = dict(zip(("win_rate", "win_rate_low", "win_rate_high"), estimate[:3], strict=True))
    return {**numbers, "sets": estimate.sets, "repetitions": estimate.repetitions}


def _against(wins: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> dict[str, Any]:
    """How an arm differs from another one, if both have the same sets."""
    if len(wins) != len(others):
        return {}
    found = compare_arms(wins, others)
    names = ("difference", "difference_low", "difference_high")
    numbers = dict(zip(names, found.difference[:3], strict=True))
    return {**numbers, "p_value": found.p_value, "detectable": found.detectable}


def _correct(rows: Sequence[dict[str, Any]]) -> None:
    """Adds p-values that are corrected for how many there are."""
    tested = [row for row in rows if row.get("p_value") is not None]
    for row, p_value in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
        row["p_corrected"] = p_value


def _frontier(arm: str, sets: Mapping[int, Sequence[Trained]]) -> dict[str, Any]:
    """Divergence and win rate of each coefficient, means over sets and repetitions."""
    columns = zip(*sets.values(), strict=True)
    points = [[(_divergence(one), one.wins.mean()) for one in column] for column in columns]
    return {"arm": arm, "points": [[float(x) for x in np.mean(point, axis=0)] for point in points]}


def _divergence(one: Trained) -> float:
    return float(np.mean([numbers["kl"] for numbers in one.numbers]))


def _matched(comparison: Comparison, swept: Mapping[str, Mapping[int, Sequence[Trained]]]) -> dict[str, Any]:
    """The arms at one divergence: the largest that all of them have reached on every set. In each set an arm's wins are
    interpolated between those of its coefficients, repetitions averaged."""
    reached = [max(map(_divergence, ones)) for sets in swept.values() for ones in sets.values()]
    least = max(min(map(_divergence, ones)) for sets in swept.values() for ones in sets.values())
    kl = min(reached)
    if kl < least:
        return {"kl": None, "arms": []}
    wins: dict[str, list[np.ndarray]] = {}
    for arm, sets in swept.items():
        for ones in sets.values():
            at = at_divergence([_divergence(one) for one in ones], np.array([one.wins.mean(0) for one in ones]), kl)
            assert at is not None
            wins.setdefault(arm, []).append(at[None])
    rows = []
    for arm, of_sets in wins.items():
        row = {"arm": arm, "title": comparison.arms[arm], **_told(arm_estimate(of_sets))}
        rows.append(row | (_against(of_sets, wins[comparison.reference]) if arm != comparison.reference else {}))
    _correct(rows)
    return {"kl": kl, "arms": rows}
