"""How a judge sees the responses that a policy learns from, and how right it is about them. NumPy, float64."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from prl_jax.evaluation.judging import judge_metrics

SATURATED = 0.98  # a probability beyond it, or below what remains of 1, is taken for certainty


def saturation(p: Float[np.ndarray, "N"]) -> float:
    """The share of `N` comparisons, at least one, of which the judge is certain. Where it is of most, a better response
    earns no more than a good one."""
    return float(np.mean(np.maximum(p, 1.0 - p) > SATURATED))


def against_truth(
    p: Float[np.ndarray, "N"], truth: Float[np.ndarray, "N"], sorts: Mapping[str, Bool[np.ndarray, "N"]]
) -> dict[str, float]:
    """How right a judge is about `N` pairs.

    Args:
      p: the judge's P(response 1 is better), from both orders.
      truth: that of somebody who is believed; 0.5 where neither response is better.
      sorts: name -> the pairs of that sort.

    Returns:
      `judge_accuracy`, `judge_ece` and `judge_brier`, as `judge_metrics` has them with the truth as a soft label, and
      `judge_accuracy/SORT` of each sort. What has nothing to count is left out.
    """

    def measured(index: Bool[np.ndarray, "N"]) -> dict[str, float | int | None]:
        known = truth[index]
        return judge_metrics(p[index], 1.0 - p[index], 0.5 + 0.5 * np.sign(known - 0.5), soft=known)

    overall = measured(np.ones(len(p), bool))
    found = {f"judge_{name}": overall[name] for name in ("accuracy", "ece", "brier")}
    found |= {f"judge_accuracy/{sort}": measured(index)["accuracy"] for sort, index in sorts.items()}
    return {name: float(value) for name, value in found.items() if value is not None}
