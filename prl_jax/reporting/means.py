"""Means over runs, with Student's intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prl_jax.reporting.inputs import number

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; the normal quantile from there on.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def across_seeds(rows: Sequence[Mapping[str, Any]], *, interval_of: str = "win_rate") -> dict[str, float]:
    """Means over rows of every numeric key that all rows have; the interval of the key named is over the rows."""
    keys = [key for key in rows[0] if all(number(row, key) is not None for row in rows)]
    values = {key: np.array([number(row, key) for row in rows], np.float64) for key in keys}
    means = {key: float(column.mean()) for key, column in values.items()}
    if interval_of in means:
        mean, low, high = t_interval(values[interval_of].tolist())
        means.pop(f"{interval_of}_low", None), means.pop(f"{interval_of}_high", None)
        if low is not None and high is not None:
            means |= {interval_of: mean, f"{interval_of}_low": low, f"{interval_of}_high": high}
    return means


def t_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and 95 % interval of the mean by Student's t; no interval for a single value."""
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return mean, None, None
    quantile = _T_95[n - 2] if n - 2 < len(_T_95) else 1.96
    half = quantile * math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return mean, mean - half, mean + half
