"""How often one policy beats another, with intervals over prompts. NumPy, float64."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Float

from prl_jax.errors import UserError

_CHUNK = 2**22  # resampled values held at once


class WinRate(TypedDict):
    """Mean win probability and its interval over prompts, all None where there is nothing to take them of.

    `prompts` counts those that the mean is over, `prompts_left_out` those with a number that is not finite.
    """

    win_rate: float | None
    win_rate_low: float | None
    win_rate_high: float | None
    prompts: int
    prompts_left_out: int


class Difference(TypedDict):
    """Mean difference of two win rates on the same prompts and its paired interval; None and counts as of `WinRate`."""

    difference: float | None
    difference_low: float | None
    difference_high: float | None
    prompts: int
    prompts_left_out: int


def bootstrap_interval(
    values: Float[np.ndarray, "N"], *, seed: int = 0, samples: int = 2000, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of `values` and its percentile bootstrap interval (Efron 1979).

    Args:
      values: `[N]`, one number a prompt; prompts are the unit that is resampled, so several samples of one prompt are
        averaged first (`win_rate_summary` does).
      seed: of the resampling; the same seed gives the same interval.
      samples: number of resamples.
      level: share of the resampled means that the interval holds.

    Returns:
      `(mean, low, high)`. It covers the choice of prompts, not that of training seeds.

    Errors: `UserError` for no values, or one that is not finite.
    """
    values = values.astype(np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise UserError(f"an interval needs finite values of at least one prompt, got {len(values)} values")
    rng = np.random.default_rng(seed)
    rows = max(_CHUNK // len(values), 1)
    means = np.concatenate(
        [
            values[rng.integers(0, len(values), (min(rows, samples - start), len(values)))].mean(axis=1)
            for start in range(0, samples, rows)
        ]
    )
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(values.mean()), float(low), float(high)


def win_rate_summary(
    win: Float[np.ndarray, "N"] | Float[np.ndarray, "N K"], *, seed: int = 0, samples: int = 2000, level: float = 0.95
) -> WinRate:
    """Win rate of a policy against an opponent.

    Args:
      win: `[N]` or `[N, K]`, the symmetric probability that the policy's response to prompt n (its k-th sample, or
        against the k-th anchor) is better than the opponent's; 0.5 for identical responses.
      seed, samples, level: see `bootstrap_interval`.

    Prompts with a value that is not finite are left out and counted. One prompt alone has no interval.
    """
    values = _per_prompt(win)
    kept = np.isfinite(values)
    mean, low, high = _interval(values[kept], seed=seed, samples=samples, level=level)
    return {"win_rate": mean, "win_rate_low": low, "win_rate_high": high, **_counts(kept)}


def paired_interval(
    first: Float[np.ndarray, "N"] | Float[np.ndarray, "N K"],
    second: Float[np.ndarray, "N"] | Float[np.ndarray, "N L"],
    *,
    seed: int = 0,
    samples: int = 2000,
    level: float = 0.95,
) -> Difference:
    """How much larger the win rate of a first policy is than that of a second one, both on the same `N` prompts.

    The bootstrap resamples prompts, each with both policies' numbers: what is hard or easy for both cancels, so that
    the interval can be much narrower than those of the two win rates.

    Args:
      first, second: `[N]` or `[N, K]` win probabilities against the same opponents, as `win_rate_summary` takes them.
      seed, samples, level: see `bootstrap_interval`.

    Prompts where either has a value that is not finite are left out and counted. One prompt alone has no interval.
    """
    differences = per_prompt_differences(first, second)
    kept = np.isfinite(differences)
    mean, low, high = _interval(differences[kept], seed=seed, samples=samples, level=level)
    return {"difference": mean, "difference_low": low, "difference_high": high, **_counts(kept)}


def per_prompt_differences(
    first: Float[np.ndarray, "N *rest"], second: Float[np.ndarray, "M *others"]
) -> Float[np.ndarray, "N"]:
    """By how much the first policy wins more often, prompt by prompt: `[N]`, not finite where either is not.

    Raises:
      ValueError: the numbers of prompts differ.
    """
    if len(first) != len(second):
        raise ValueError(f"two policies were compared on {len(first)} and {len(second)} prompts, not on the same ones")
    return _per_prompt(first) - _per_prompt(second)


def _per_prompt(values: Float[np.ndarray, "N *rest"]) -> Float[np.ndarray, "N"]:
    return values.astype(np.float64).reshape(len(values), -1).mean(axis=1)


def _interval(
    values: Float[np.ndarray, "N"], *, seed: int, samples: int, level: float
) -> tuple[float | None, float | None, float | None]:
    """Mean and interval, None where they cannot be told: no values, or no spread between them to learn from."""
    if len(values) < 2:
        return (float(values[0]) if len(values) else None), None, None
    return bootstrap_interval(values, seed=seed, samples=samples, level=level)


class _Counts(TypedDict):
    prompts: int
    prompts_left_out: int


def _counts(kept: Bool[np.ndarray, "N"]) -> _Counts:
    return {"prompts": int(kept.sum()), "prompts_left_out": int((~kept).sum())}
