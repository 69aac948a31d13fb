"""How far two rankings of the same responses agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Int


def _signs(values: Float[np.ndarray, "K"]) -> Int[np.ndarray, "K K"]:
    """1 where the row's value is larger than the column's, -1 where it is smaller, 0 where they are equal."""
    return np.sign(values[:, None] - values[None, :]).astype(int)


def _cosine(first: Int[np.ndarray, "*S"], second: Int[np.ndarray, "*S"]) -> float:
    """The cosine of the angle between two arrays as vectors; 0 where one of them is 0."""
    norm = math.sqrt(int((first**2).sum()) * int((second**2).sum()))
    return int((first * second).sum()) / norm if norm else 0.0


def kendall_tau_b(first: Float[np.ndarray, "K"], second: Float[np.ndarray, "K"]) -> float:
    """Kendall's tau-b of two rankings of the same responses, in [-1, 1]; 0 where one of them has nothing but ties.

    It is the share of pairs that are in the same order less that of the others, over the pairs without ties.

    Args:
      first, second: `[K]` finite, the larger the better.
    """
    return _cosine(_signs(first), _signs(second))


def spearman(first: Float[np.ndarray, "K"], second: Float[np.ndarray, "K"]) -> float:
    """Spearman's correlation of the ranks, in [-1, 1]; 0 where one ranking has nothing but ties. Ties share the mean of
    their ranks. Arguments: as of `kendall_tau_b`."""
    # The sum of signs is twice the distance of the rank from the mean rank.
    return _cosine(_signs(first).sum(axis=1), _signs(second).sum(axis=1))


def top_order(first: Float[np.ndarray, "K"], second: Float[np.ndarray, "K"]) -> float:
    """1 where both rankings have the same best and the same worst response, so that both select one pair, else -1; 0
    where one of them has nothing but ties.

    This is what CREAM (arXiv 2410.12735) means; its released code compares the ranks of the first and the last sample.
    Among ties the lowest index is best, or worst. Arguments: as of `kendall_tau_b`.
    """
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    same = first.argmax() == second.argmax() and first.argmin() == second.argmin()
    return 1.0 if same else -1.0


AGREEMENTS: Mapping[str, Callable[[Float[np.ndarray, "K"], Float[np.ndarray, "K"]], float]] = MappingProxyType(
    {"kendall": kendall_tau_b, "spearman": spearman, "top_order": top_order}
)


def certainty(agreement: float) -> float:
    """An agreement in [-1, 1] as the probability that a label is right, in [0, 1] (CREAM, arXiv 2410.12735)."""
    return 0.5 * (1.0 + agreement)
