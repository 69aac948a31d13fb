"""How often one policy beats another, with intervals over prompts. NumPy, float64."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from jaxtyping import Float

from prl_jax.errors import UserError

_CHUNK = 2**22  # resampled values held at once


class WinRate(TypedDict):
    """Mean win probability, the bootstrap interval over prompts, and the number of prompts."""

    win_rate: float
    win_rate_low: float
    win_rate_high: float
    prompts: int


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
    """
    mean, low, high = bootstrap_interval(
        win.reshape(len(win), -1).mean(axis=1), seed=seed, samples=samples, level=level
    )
    return {"win_rate": mean, "win_rate_low": low, "win_rate_high": high, "prompts": len(win)}
