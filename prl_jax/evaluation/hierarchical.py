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
      freedom: degrees of freedom of the interval: one less than there are sets, or of one set repetitions.
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


def arm_estimate(wins: Sets, *, seed: int = 0, samples: int = 2000) -> Estimate:
    """The win rate of an arm.

    The hierarchical bootstrap draws sets with replacement, then repetitions of each, then prompts (Davison and Hinkley
    1997, section 3.8). Its spread is too small by `(n - 1) / n` where only `n` sets are drawn from, and of three sets
    its quantiles are far too near: so the standard error is corrected by that, and the interval is Student's with
    `n - 1` degrees of freedom. Of one set it is over the repetitions, and says nothing of other judges.

    Args:
      wins: see `Sets`; every number is finite.
      seed, samples: of the bootstrap.

    Raises:
      UserError: there is no set, or a number that is not finite.
    """
    sets = [_checked(one) for one in wins]
    draws = _draws([[one] for one in sets], seed, samples)[:, 0]
    return _estimate(float(np.mean([one.mean() for one in sets])), draws, [len(one) for one in sets])


def compare_arms(first: Sets, second: Sets, *, seed: int = 0, samples: int = 2000) -> Compared:
    """How two arms differ that were trained on the same sets of judges, and evaluated on the same prompts.

    Sets and prompts are drawn for both at once, what is hard for both cancels; repetitions for each by itself.

    Args:
      first, second: see `Sets`, in the same order.
      seed, samples: of the bootstrap.

    Raises:
      UserError: as `arm_estimate`.
      ValueError: the arms have different numbers of sets, or of prompts in one.
    """
    pairs = [[_checked(a), _checked(b)] for a, b in zip(first, second, strict=True)]
    for a, b in pairs:
        if a.shape[1] != b.shape[1]:
            raise ValueError(f"two arms of one set were evaluated on {a.shape[1]} and {b.shape[1]} prompts")
    draws = _draws(pairs, seed, samples)
    value = float(np.mean([a.mean() - b.mean() for a, b in pairs]))
    difference = _estimate(value, draws[:, 0] - draws[:, 1], [min(len(a), len(b)) for a, b in pairs])
    if difference.error is None:
        return Compared(difference, None, None)
    if difference.error == 0:
        return Compared(difference, 1.0 if value == 0 else 0.0, 0.0)
    p_value = 2 * stdtr(difference.freedom, -abs(value) / difference.error)
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


def _draws(sets: Sequence[Sequence[Float[np.ndarray, "_ _"]]], seed: int, samples: int) -> Float[np.ndarray, "S A"]:
    """`[S, A]` means of `A` arms over bootstrap draws: sets and their prompts together, repetitions of each arm."""
    if not sets:
        raise UserError("an interval needs wins of at least one set of judges")
    rng = np.random.default_rng(seed)
    chosen, out = rng.integers(0, len(sets), (samples, len(sets))), np.zeros((samples, len(sets[0])))
    for slot in range(len(sets)):
        for j, arms in enumerate(sets):
            drawn = np.flatnonzero(chosen[:, slot] == j)
            prompts = _shares(rng, arms[0].shape[1], len(drawn))
            for a, wins in enumerate(arms):
                out[drawn, a] += np.einsum(
                    "sr,rn,sn->s", _shares(rng, len(wins), len(drawn)), wins, prompts, optimize=True
                )
    return out / len(sets)


def _shares(rng: np.random.Generator, count: int, samples: int) -> Float[np.ndarray, "_ _"]:
    """`[samples, count]`, how large a share of a draw with replacement each of `count` things has."""
    return rng.multinomial(count, np.full(count, 1 / count), samples) / count


def _estimate(value: float, draws: Float[np.ndarray, "S"], repetitions: Sequence[int]) -> Estimate:
    units = len(repetitions) if len(repetitions) > 1 else repetitions[0]
    counts = len(repetitions), sum(repetitions)
    if units < 2:
        return Estimate(value, None, None, None, 0, *counts)
    error = float(draws.std() * math.sqrt(units / (units - 1)))
    half = float(stdtrit(units - 1, 0.975)) * error
    return Estimate(value, value - half, value + half, error, units - 1, *counts)
