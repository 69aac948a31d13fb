"""How good a judge is on labelled pairs: accuracy, calibration, position bias. NumPy, float64.

Everywhere `p_12` is P(slot 1 wins) with response 1 in slot 1, and `p_21` is P(slot 1 wins) with the two exchanged, so
that an unbiased judge has `p_21 = 1 - p_12`. The judge's answer is a symmetric probability that response 1 is better:
`(p_12 + 1 - p_21) / 2`, unless the judge merges its orders in another way and says so (`p_first`). A label is the
probability that response 1 is better: 1, 0, 0.5 for a tie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Num

BINS = 10
_TINY = 1e-12  # the log loss takes no probability for smaller than this


class ReliabilityBin(TypedDict):
    """Predictions whose confidence lies in `[low, high)` (the last bin includes 1).

    `confidence` and `frequency` are the bin's mean predicted and mean observed probability of the predicted side, both
    None in an empty bin; `count` is the number of pairs.
    """

    low: float
    high: float
    confidence: float | None
    frequency: float | None
    count: int


def symmetric_probability(p_12: Float[np.ndarray, "N"], p_21: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """P(response 1 is better) `[N]` float64, averaged over both orders: `(p_12 + 1 - p_21) / 2`."""
    return (p_12.astype(np.float64) + 1.0 - p_21.astype(np.float64)) / 2.0


def judge_metrics(
    p_12: Float[np.ndarray, "N"],
    p_21: Float[np.ndarray, "N"],
    label: Num[np.ndarray, "N"],
    *,
    p_first: Float[np.ndarray, "N"] | None = None,
    soft: Num[np.ndarray, "N"] | None = None,
    tie: Bool[np.ndarray, "N"] | None = None,
    longer: Num[np.ndarray, "N"] | None = None,
) -> dict[str, float | int | None]:
    """All metrics of a judge on `N` pairs.

    Args:
      p_12: `[N]` P(slot 1 wins), response 1 in slot 1.
      p_21: `[N]` P(slot 1 wins), response 2 in slot 1.
      label: `[N]` 1 where response 1 is better, 0 where response 2 is, 0.5 for a tie.
      p_first: `[N]` the judge's answer, P(response 1 is better) from both orders; by default the mean of the two.
      soft: `[N]` P(response 1 is better) where annotators or the exact task give more than a verdict; NaN where they
        do not. There, and without `soft`, the label stands in.
      tie: `[N]` pairs without a better response; default: where the label is 0.5.
      longer: `[N]` 1 where response 1 is the longer one, 0 where response 2 is, 0.5 if neither (`longer_first`).

    Returns:
      n: number of pairs.
      not_finite: pairs for which the judge gave no finite number; every metric leaves them out.
      accuracy: share of pairs, ties left out, whose better response gets more than 0.5; exactly 0.5 counts 0.5.
      accuracy_low, accuracy_high: its 95 % interval over pairs (`wilson_interval`).
      longer_wins: the accuracy, ties left out, of always picking the longer response; None without `longer`.
      ece: expected calibration error over 10 equal bins of `max(p, 1 - p)` on [0.5, 1], against the (soft) label
        probability of the predicted side; all pairs.
      brier: mean of `(p - soft)^2`; all pairs.
      log_loss: mean cross-entropy in nats of `p` against the soft label; all pairs.
      order_consistency: share of pairs where both orders name the same winner (see `order_consistency`).
      position_bias: see `position_bias`.
      ties: number of ties.
      A metric with nothing to count (no pairs, or only ties) is None.
    """
    tie = label == 0.5 if tie is None else tie
    finite = np.isfinite(p_12) & np.isfinite(p_21)
    n, ties = len(label), int(tie.sum())
    p_12, p_21, label, tie = p_12[finite], p_21[finite], label[finite].astype(np.float64), tie[finite]
    soft, longer, p_first = (None if column is None else column[finite] for column in (soft, longer, p_first))
    p = symmetric_probability(p_12, p_21) if p_first is None else p_first.astype(np.float64)
    target = _soft_target(label, soft, tie)
    decided = ~tie
    cross_entropy = -(target * np.log(np.maximum(p, _TINY)) + (1.0 - target) * np.log(np.maximum(1.0 - p, _TINY)))
    accuracy = _mean(_agreement(p, label)[decided])
    low, high = wilson_interval(accuracy, int(decided.sum()))
    return {
        "n": n,
        "not_finite": n - len(p),
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "longer_wins": None if longer is None else _mean(_agreement(longer.astype(np.float64), label)[decided]),
        "ece": expected_calibration_error(p, target) if len(p) else None,
        "brier": _mean((p - target) ** 2),
        "log_loss": _mean(cross_entropy),
        "order_consistency": order_consistency(p_12, p_21) if len(p) else None,
        "position_bias": position_bias(p_12, p_21) if len(p) else None,
        "ties": ties,
    }


def wilson_interval(share: float | None, count: int) -> tuple[float | None, float | None]:
    """The 95 % score interval of a share of `count` pairs (Wilson 1927), None where there is no share.

    Unlike a bootstrap it has a width where all pairs agree. Halves count as half of a success, which makes it a little
    too wide.
    """
    if share is None:
        return None, None
    z2 = 1.959964**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share)  # rounding apart


def judge_faults(metrics: Mapping[str, Any]) -> list[str]:
    """Why a judge is none, in words; empty where nothing speaks against it.

    Args:
      metrics: of `judge_metrics`, or some of them; without an interval the accuracy itself has to be above.

    A judge is none if both orders hardly ever name the same winner, if a slot gets more than half of the probability
    for being that slot, if its accuracy may be that of a coin, or if it is worse than always picking the longer
    response.
    """
    value = {key: metrics.get(key) for key in ("accuracy", "order_consistency", "position_bias", "longer_wins")}
    accuracy, longer = value["accuracy"], value["longer_wins"]
    low, high = (metrics.get(f"accuracy_{end}") for end in ("low", "high"))
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    faults = []
    if value["order_consistency"] is not None and value["order_consistency"] < 0.1:
        faults.append(f"order consistency {value['order_consistency']:.2f}: it decides by the order of the responses")
    if value["position_bias"] is not None and abs(value["position_bias"]) >= 0.5:
        slot = "first" if value["position_bias"] > 0 else "second"
        faults.append(f"position bias {value['position_bias']:+.2f}: it favours the {slot} slot, whatever stands there")
    if accuracy is not None and (accuracy if low is None else low) <= 0.5:
        faults.append(f"accuracy {accuracy:.3f}{interval} may be that of a coin")
    elif accuracy is not None and longer is not None and (accuracy if high is None else high) <= longer:
        faults.append(f"accuracy {accuracy:.3f}{interval} is below that of picking the longer response, {longer:.3f}")
    return faults


def reliability_bins(
    p: Float[np.ndarray, "N"], target: Num[np.ndarray, "N"], *, bins: int = BINS
) -> list[ReliabilityBin]:
    """Predicted against observed probability of the predicted side, in equal bins of confidence on [0.5, 1].

    Args:
      p: `[N]` P(response 1 is better).
      target: `[N]` soft label, the probability that response 1 is better.
      bins: number of bins.

    A pair with `p` of exactly 0.5 predicts neither side: its observed probability is 0.5, as its accuracy is.
    """
    p, target = p.astype(np.float64), target.astype(np.float64)
    confidence = np.maximum(p, 1.0 - p)
    observed = np.select([p > 0.5, p < 0.5], [target, 1.0 - target], 0.5)
    edges = np.linspace(0.5, 1.0, bins + 1)
    index = np.digitize(confidence, edges[1:-1])
    rows: list[ReliabilityBin] = []
    for b in range(bins):
        inside = index == b
        rows.append(
            {
                "low": float(edges[b]),
                "high": float(edges[b + 1]),
                "confidence": _mean(confidence[inside]),
                "frequency": _mean(observed[inside]),
                "count": int(inside.sum()),
            }
        )
    return rows


def expected_calibration_error(p: Float[np.ndarray, "N"], target: Num[np.ndarray, "N"], *, bins: int = BINS) -> float:
    """Mean over pairs of `|confidence - frequency|` of the pair's bin (see `reliability_bins`)."""
    rows = reliability_bins(p, target, bins=bins)
    gaps = [
        row["count"] * abs(row["confidence"] - row["frequency"])
        for row in rows
        if row["confidence"] is not None and row["frequency"] is not None
    ]
    return sum(gaps) / len(p)


def order_consistency(p_12: Float[np.ndarray, "N"], p_21: Float[np.ndarray, "N"]) -> float:
    """Share of pairs where both orders name the same winner.

    The order (1, 2) names response 1 where `p_12 > 0.5`, response 2 where `p_12 < 0.5`; the order (2, 1) names
    response 1 where `p_21 < 0.5`, response 2 where `p_21 > 0.5`. Exactly 0.5 names neither, and is consistent only with
    an exact 0.5 in the other order. A scalar judge has 1 by construction; a judge that always prefers the same slot 0.
    """
    return float(np.mean(np.sign(p_12.astype(np.float64) - 0.5) == np.sign(0.5 - p_21.astype(np.float64))))


def position_bias(p_12: Float[np.ndarray, "N"], p_21: Float[np.ndarray, "N"]) -> float:
    """`mean(p_12 + p_21 - 1)`: 0 without bias, positive where slot 1 is favoured, negative where slot 2 is."""
    return float(np.mean(p_12.astype(np.float64) + p_21.astype(np.float64) - 1.0))


def longer_first(first: Sequence[str], second: Sequence[str]) -> Float[np.ndarray, "N"]:
    """`[N]` float64: 1 where the first response is the longer one, 0 where the second is, 0.5 where neither.

    Longer means more words (split at whitespace); between equal numbers of words, more characters.
    """
    sizes = [((len(a.split()), len(a)), (len(b.split()), len(b))) for a, b in zip(first, second, strict=True)]
    return np.array([0.5 if a == b else float(a > b) for a, b in sizes], np.float64)


def _soft_target(
    label: Float[np.ndarray, "N"], soft: Num[np.ndarray, "N"] | None, tie: Bool[np.ndarray, "N"]
) -> Float[np.ndarray, "N"]:
    target = np.where(tie, 0.5, label)
    if soft is None:
        return target
    soft = soft.astype(np.float64)
    return np.where(np.isnan(soft), target, soft)


def _agreement(p: Float[np.ndarray, "N"], label: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """1 where `p` and the label lie on the same side of 0.5, 0 where on opposite sides, 0.5 where either is 0.5."""
    return 0.5 + 0.5 * np.sign(p - 0.5) * np.sign(label - 0.5)


def _mean(values: Float[np.ndarray, "N"]) -> float | None:
    return float(np.mean(values)) if len(values) else None
