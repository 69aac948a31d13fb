"""Whether two policies differ by more than the luck of the prompts, and what many such questions at once cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from prl_jax.evaluation.win_rate import per_prompt_differences

_CHUNK = 2**22  # signs held at once
_EQUAL = 1e-9  # sums that differ by less of the largest possible one are equal but for rounding


def paired_test(
    first: Float[np.ndarray, "N"] | Float[np.ndarray, "N K"],
    second: Float[np.ndarray, "N"] | Float[np.ndarray, "N L"],
    *,
    seed: int = 0,
    samples: int = 10_000,
) -> float | None:
    """The two-sided p-value of "both policies win equally often", on the same `N` prompts (Fisher 1935, section 21).

    If it does not matter which policy is which, each prompt's difference could as well have had the other sign. The
    p-value is the share of all choices of signs whose mean is at least as far from 0 as the one that was seen. Prompts
    are the unit: several samples of one prompt are averaged first.

    Args:
      first, second: `[N]` or `[N, K]` win probabilities against the same opponents, as `paired_interval` takes them.
      seed: of the signs that are drawn.
      samples: how many choices of signs are drawn where there are more than that; the observed one counts as one more,
        so that the p-value is never 0 (Phipson and Smyth 2010). Fewer are all gone through, and the p-value is exact.

    Returns:
      None for fewer than two prompts at which both values are finite.
    """
    differences = per_prompt_differences(first, second)
    differences = differences[np.isfinite(differences)]
    if len(differences) < 2:
        return None
    differences = differences[differences != 0]  # a sign changes nothing there
    count, bound = len(differences), abs(differences.sum()) - _EQUAL * np.abs(differences).sum()
    if not count:
        return 1.0
    if count < 63 and 2**count <= samples:
        choices = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float(np.mean(_far(choices == 1, differences, bound)))
    rng, size, far = np.random.default_rng(seed), max(_CHUNK // count, 1), 0
    for start in range(0, samples, size):
        signs = rng.integers(0, 2, (min(size, samples - start), count), np.int8) == 1
        far += int(_far(signs, differences, bound).sum())
    return (1 + far) / (1 + samples)


def _far(negative: Bool[np.ndarray, "C n"], differences: Float[np.ndarray, "n"], bound: float) -> Bool[np.ndarray, "C"]:
    """Which choices of signs give a sum at least as far from 0 as `bound`."""
    return np.abs(np.where(negative, -differences, differences).sum(axis=1)) >= bound


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values that are corrected for how many there are (Holm 1979, "A simple sequentially rejective multiple test
    procedure").

    Where all that are below 0.05 are taken for differences, the chance that any of them is none is at most 5 %, however
    the tests depend on each other. None (no test) stays None and does not count.
    """
    tested = [i for i, p in enumerate(p_values) if p is not None]
    corrected, least = list(p_values), 0.0
    for rank, i in enumerate(sorted(tested, key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(tested) - rank) * p_values[i]))
        corrected[i] = least
    return corrected
