"""Which judges of a run are none: their win rates, and those of policies that learned from them, mean nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prl_jax.evaluation import judge_faults, order_consistency, position_bias
from prl_jax.reporting.inputs import JUDGE, REWARDED, RunFiles, StageFiles, number
from prl_jax.reporting.names import section_of

_METRICS = ("accuracy", "accuracy_low", "accuracy_high", "longer_wins", "order_consistency", "position_bias")


def no_judges(run: RunFiles) -> dict[str, str]:
    """Judge -> what shows that it is none, from all that the run has measured of it."""
    evidence = _of_summary(run.summary)
    for stage in run.of_role(JUDGE):
        if stage.name not in evidence:  # not on held-out pairs, but as it trained
            metrics = stage.result.get("metrics")
            metrics = metrics if isinstance(metrics, Mapping) else {}
            values = {key: number(metrics, f"validation_{key}") for key in _METRICS}
            evidence.setdefault(stage.name, []).append(("on its validation pairs", values))
    for stage in run.of_role(REWARDED):
        judge = str(section_of(run, stage.name).get("judge") or "")
        evidence.setdefault(judge, []).append((f"as {stage.name} met it", sample_orders(stage) or {}))
    return _faulty(evidence)


def no_judges_of_summary(summary: Mapping[str, Any]) -> dict[str, str]:
    """`no_judges`, from `summary.json` alone."""
    return _faulty(_of_summary(summary))


def sample_orders(stage: StageFiles) -> dict[str, float] | None:
    """How the judge dealt with the two orders in the samples of a policy stage; None without such samples."""
    pairs = [(number(row, "p_12"), number(row, "p_21")) for row in stage.samples]
    both = np.array([pair for pair in pairs if None not in pair], np.float64).reshape(-1, 2)
    if not len(both):
        return None
    p_12, p_21 = both.T
    return {
        "n": float(len(both)),
        "order_consistency": order_consistency(p_12, p_21),
        "position_bias": position_bias(p_12, p_21),
    }


def is_measured(run: RunFiles, judge: str) -> bool:
    """Whether anything in the run shows how often a judge is right."""
    judges = run.summary.get("judges")
    return isinstance(judges, Mapping) and isinstance(judges.get(judge), Mapping)


Evidence = dict[str, list[tuple[str, Mapping[str, Any]]]]


def _of_summary(summary: Mapping[str, Any]) -> Evidence:
    judges, orders = summary.get("judges"), summary.get("win_rate_judge_orders")
    judges = judges if isinstance(judges, Mapping) else {}
    evidence: Evidence = {str(name): [("", row)] for name, row in judges.items() if isinstance(row, Mapping)}
    if isinstance(orders, Mapping):
        where = "in the comparisons that gave the win rates"
        evidence.setdefault(str(summary.get("win_rate_judge")), []).append((where, orders))
    return evidence


def _faulty(evidence: Evidence) -> dict[str, str]:
    """The exact judge needs no evidence; of each other one the first that speaks against it."""
    found: dict[str, str] = {}
    for judge, items in evidence.items():
        for where, metrics in items:
            faults = judge_faults({key: number(metrics, key) for key in _METRICS})
            if faults and judge not in ("", "gold"):
                found.setdefault(judge, "; ".join(faults) + (f" ({where})" if where else ""))
    return found


def sentences(names: Sequence[str], reasons: Mapping[str, str], summary: Mapping[str, Any]) -> list[str]:
    """A sentence for each judge that is none."""
    ending = " Win rates that it tells mean nothing." if summary.get("arms") else ""
    return [f"{name} is no judge: {reasons[name]}.{ending}" for name in names]
