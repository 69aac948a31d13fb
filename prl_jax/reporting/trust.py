"""Which judges of a run are none: their win rates, and those of policies that learned from them, mean nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prl_jax.evaluation import judge_faults, order_consistency, position_bias
from prl_jax.reporting.inputs import JUDGE, REWARDED, RunFiles, StageFiles, number
from prl_jax.reporting.judges import is_exact, judges_of_config, model_behind
from prl_jax.reporting.names import section_of

_METRICS = ("accuracy", "accuracy_low", "accuracy_high", "longer_wins", "order_consistency", "position_bias")


def no_judges(run: RunFiles) -> dict[str, str]:
    """Judge -> what shows that it is none, from all that the run has measured of it and of the model behind it."""
    judges, evidence = judges_of_config(run), _of_summary(run.summary)
    held_out = {model_behind(judges, name) for name in evidence}
    for stage in run.of_role(JUDGE):
        if stage.name not in held_out:  # not on held-out pairs, but as it trained
            metrics = stage.result.get("metrics")
            metrics = metrics if isinstance(metrics, Mapping) else {}
            values = {key: number(metrics, f"validation_{key}") for key in _METRICS}
            evidence.setdefault(stage.name, []).append(("on its validation pairs", values))
    for stage in run.of_role(REWARDED):
        judge = str(section_of(run, stage.name).get("judge") or "")
        evidence.setdefault(judge, []).append((f"as {stage.name} met it", sample_orders(stage) or {}))
    return _faulty(evidence, judges)


def no_judges_of_summary(summary: Mapping[str, Any], judges: Mapping[str, Any]) -> dict[str, str]:
    """`no_judges`, from `summary.json` and the config's section `judges` alone."""
    return _faulty(_of_summary(summary), judges)


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
    """Whether anything in the run shows how often a judge is right, under this name or another one of its model."""
    judges, measured = judges_of_config(run), run.summary.get("judges")
    measured = measured if isinstance(measured, Mapping) else {}
    models = {model_behind(judges, str(name)) for name, row in measured.items() if isinstance(row, Mapping)}
    return model_behind(judges, judge) in models


Evidence = dict[str, list[tuple[str, Mapping[str, Any]]]]


def _of_summary(summary: Mapping[str, Any]) -> Evidence:
    judges, orders = summary.get("judges"), summary.get("win_rate_judge_orders")
    judges = judges if isinstance(judges, Mapping) else {}
    evidence: Evidence = {str(name): [("", row)] for name, row in judges.items() if isinstance(row, Mapping)}
    if isinstance(orders, Mapping):
        where = "in the comparisons that gave the win rates"
        evidence.setdefault(str(summary.get("win_rate_judge")), []).append((where, orders))
    return evidence


def _faulty(evidence: Evidence, judges: Mapping[str, Any]) -> dict[str, str]:
    """The first evidence against each judge, which is against all names of its model; the exact judge needs none."""
    found: dict[str, str] = {}
    for judge, items in evidence.items():
        for where, metrics in items:
            faults = judge_faults({key: number(metrics, key) for key in _METRICS})
            if faults and judge and not is_exact(judges, judge):
                reason = "; ".join(faults) + (f" ({where})" if where else "")
                found.setdefault(model_behind(judges, judge), reason)
    return {name: found[model] for name in (*evidence, *judges) if (model := model_behind(judges, name)) in found}


def sentences(names: Sequence[str], reasons: Mapping[str, str], summary: Mapping[str, Any]) -> list[str]:
    """A sentence for each judge that is none."""
    ending = " Win rates that it tells mean nothing." if summary.get("arms") else ""
    return [f"{name} is no judge: {reasons[name]}.{ending}" for name in names]
