"""Intervals over sets of judges, repetitions and prompts, for an arm that was trained several times, and for two.

A set is everything that repetitions share: data, SFT, judges. A repetition trains the policy anew on it. So a win has
three sources of luck, one within the other, and an interval over prompts alone, or over repetitions on one set, says
too much. NumPy and SciPy, float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

from prl_jax.errors import UserError

Sets = Sequence[Float[np.ndarray, "_ _"]]
"""The wins of `R` repetitions at the `N` prompts of each set of judges, `[R, N]`: win probabilities, samples
of a prompt averaged. Both numbers may differ from set to set."""


class Estimate(NamedTuple):
    """A mean with what it is known by.

    Attributes:
      value: the mean over sets of the mean over repetitions and prompts.
      low, high: its 95 % interval; None where nothing was repeated.
      error: its standard error.
      freedom: degrees of freedom of the interval: one less than there are sets or, of one set, repetitions.
      sets, repetitions: how many there are, of all sets together.
    """

    value: float
    low: float | None
    high: float | None
    error: float | None
    freedom: int
    sets: int
    repetitions: int


class Compared(NamedTuple):
    """A difference of two arms on the same sets.

    Attributes:
      difference: by how much the first one wins more often.
      p_value: two-sided, of "they win equally often", by Student's t; None where nothing was repeated.
      detectable: the smallest difference that a comparison like this one would call one (p below 0.05) four times out
        of five.
    """

    difference: Estimate
    p_value: float | None
    detectable: float | None


def arm_estimate(wins: Sets) -> Estimate:
    """The win rate of an arm.

    The mean of a set carries the luck of the set, of its repetitions and of its prompts, which no other set shares. So
    the spread of these means is all that the standard error needs, as in a hierarchical bootstrap that draws with
    replacement at the top alone, corrected by `n / (n - 1)` (Davison and Hinkley 1997, section 3.8); the interval is
    Student's with `n - 1` degrees of freedom. Of one set, repetitions share their prompts: the error is that of
    repetitions and that of prompts, and says nothing of other judges.

    Args:
      wins: see `Sets`; every number is finite.

    Raises:
      UserError: there is no set, or a number that is not finite.
    """
    return _estimate([_checked(one) for one in wins])


def compare_arms(first: Sets, second: Sets) -> Compared:
    """How two arms differ that were trained on the same sets of judges, and evaluated on the same prompts.

    Sets and prompts are the same for both, so that what is hard for both cancels; repetitions are each arm's own.

    Args:
      first, second: see `Sets`, in the same order.

    Raises:
      UserError: as `arm_estimate`.
      ValueError: the arms have different numbers of sets, or of prompts in one.
    """
    pairs = [(_checked(a), _checked(b)) for a, b in zip(first, second, strict=True)]
    for a, b in pairs:
        if a.shape[1] != b.shape[1]:
            raise ValueError(f"two arms of one set were evaluated on {a.shape[1]} and {b.shape[1]} prompts")
    difference = _estimate([a for a, _ in pairs], [b for _, b in pairs])
    if difference.error is None:
        return Compared(difference, None, None)
    if difference.error == 0:
        return Compared(difference, 1.0 if difference.value == 0 else 0.0, 0.0)
    p_value = 2 * stdtr(difference.freedom, -abs(difference.value) / difference.error)
    reach = stdtrit(difference.freedom, 0.975) + stdtrit(difference.freedom, 0.8)
    return Compared(difference, float(p_value), float(reach * difference.error))


def at_divergence(
    divergences: Sequence[float], wins: Float[np.ndarray, "C N"], kl: float
) -> Float[np.ndarray, "N"] | None:
    """The wins that an arm would have at a divergence from the reference, between those of its coefficients.

    Args:
      divergences: of `C` coefficients, nats.
      wins: `[C, N]`, at each of them.
      kl: where.

    Returns:
      `[N]` on the straight line between the two nearest divergences around `kl`; None where it is outside of them.
    """
    order = np.argsort(divergences, kind="stable")
    known = np.asarray(divergences, np.float64)[order]
    if not len(known) or not known[0] <= kl <= known[-1]:
        return None
    above = min(int(np.searchsorted(known, kl)), len(known) - 1)
    below = max(above - 1, 0) if known[above] > kl else above
    width = known[above] - known[below]
    share = (kl - known[below]) / width if width else 0.0
    return (1 - share) * wins[order[below]] + share * wins[order[above]]


def _checked(wins: Float[np.ndarray, "_ _"]) -> Float[np.ndarray, "_ _"]:
    wins = np.asarray(wins, np.float64)
    if not wins.size or not np.isfinite(wins).all():
        raise UserError(f"an interval needs finite wins, at least one; given {wins.shape[0]} repetitions")
    return wins


def _estimate(wins: Sets, less: Sets = ()) -> Estimate:
    """The mean of an arm, or by how much it is ahead of another one of the same sets."""
    if not wins:
        raise UserError("an interval needs wins of at least one set of judges")
    arms = [wins, less] if less else [wins]
    signs = (1.0, -1.0)
    per_prompt = [
        sum(sign * one.mean(0) for sign, one in zip(signs, of_set, strict=False)) for of_set in zip(*arms, strict=True)
    ]
    means = np.array([one.mean() for one in per_prompt])
    repetitions = sum(min(map(len, of_set)) for of_set in zip(*arms, strict=True))
    units = len(means) if len(means) > 1 else repetitions
    value, counts = float(means.mean()), (len(means), repetitions)
    if units < 2:
        return Estimate(value, None, None, None, 0, *counts)
    if len(means) > 1:
        error = float(means.std(ddof=1)) / math.sqrt(units)
    else:
        of_runs = sum(one[0].mean(1).var(ddof=1) / len(one[0]) for one in arms)
        of_prompts = per_prompt[0].var() / len(per_prompt[0])
        error = math.sqrt(of_runs + of_prompts)
    half = float(stdtrit(units - 1, 0.975)) * error
    return Estimate(value, value - half, value + half, error, units - 1, *counts)
