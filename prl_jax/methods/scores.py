"""Piece 3 for judges that score single responses: shapes of a score, and the scores of several judges as one reward."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from prl_jax.errors import UserError
from prl_jax.losses import centred_shape, log_tame, lsc_shape, minmax_shape, par_shape
from prl_jax.losses.shapes import FITS
from prl_jax.methods.checks import check_range, check_word
from prl_jax.methods.rewards import Judgements, Moments, OneJudge


class _Scored(OneJudge):
    """Rewards that ask for scores."""

    asks: ClassVar[str] = "scores"
    against: ClassVar[bool] = False  # whether it needs opponents
    wins: ClassVar[bool] = False  # whether it is a probability to win
    middle: ClassVar[float] = 0.0  # the reward of an even match
    negative: ClassVar[bool] = True  # whether it may be below 0
    of_batch: ClassVar[bool] = False  # whether other prompts change it

    @property
    def relative(self) -> bool:
        return self.of_batch

    @property
    def compares(self) -> bool:
        return self.against

    @property
    def probability(self) -> bool:
        return self.wins

    @property
    def even(self) -> float:
        return self.middle

    def __call__(self, *judged):
        (one,) = judged
        shaped = self.shaped(one)
        return jnp.where(one.mask.any(-1), shaped, self.even) if self.compares else shaped

    def shaped(self, judged: Judgements) -> Float[Array, "N"]:
        """The rewards of `N` responses."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Score(_Scored):
    """The score of the response, as it is."""

    kind: ClassVar[str] = "score"

    def shaped(self, judged):
        return judged.scores


@dataclasses.dataclass(frozen=True)
class Centred(_Scored):
    """The score less the mean score of the opponents."""

    kind: ClassVar[str] = "centred"
    against: ClassVar[bool] = True

    def shaped(self, judged):
        return centred_shape(judged.scores, judged.opponent_scores, judged.mask)


@dataclasses.dataclass(frozen=True)
class PAR(_Scored):
    """Preference as reward: the mean over the opponents of `sigmoid(k (score - score of the opponent))`.

    Attributes:
      k: how fast it saturates; its slope at an even match is `k / 4`.

    Source: arXiv 2502.18770. With one opponent and k = 1 it is `WinProbability` with a Bradley-Terry judge.
    """

    kind: ClassVar[str] = "par"
    against: ClassVar[bool] = True
    wins: ClassVar[bool] = True
    middle: ClassVar[float] = 0.5
    negative: ClassVar[bool] = False
    k: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, ("k",), 0.0, float("inf"), above=True)

    def shaped(self, judged):
        return par_shape(judged.scores, judged.opponent_scores, judged.mask, self.k)


@dataclasses.dataclass(frozen=True)
class LSC(_Scored):
    """`log sigmoid(score - q)`, q being a quantile of the opponents' scores (log-sigmoid-centred, arXiv 2402.00742).

    Attributes:
      quantile: of the opponents' scores; the larger, the harder the comparison.
      fit: "normal" for the quantile of a normal distribution with their mean and deviation, "sample" for their own.
    """

    kind: ClassVar[str] = "lsc"
    against: ClassVar[bool] = True
    middle: ClassVar[float] = -math.log(2.0)
    quantile: float = 0.85
    fit: str = "normal"

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise UserError(f"quantile={self.quantile!r}, expected above 0 and below 1")
        check_word(self, "fit", FITS)

    @property
    def least_opponents(self) -> int:
        return 2  # every quantile of one score is that score

    def shaped(self, judged):
        options = dict(quantile=self.quantile, fit=self.fit)
        return lsc_shape(judged.scores, judged.opponent_scores, judged.mask, **options)


@dataclasses.dataclass(frozen=True)
class Tanh(_Scored):
    """`tanh(k score)`: bounded, whatever the judge says.

    Attributes:
      k: how fast it saturates.
    """

    kind: ClassVar[str] = "tanh"
    k: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, ("k",), 0.0, float("inf"), above=True)

    def shaped(self, judged):
        return jnp.tanh(self.k * judged.scores)


@dataclasses.dataclass(frozen=True)
class Clip(_Scored):
    """The score, at most `limit` away from 0.

    Attributes:
      limit: the largest reward, and minus the smallest.
    """

    kind: ClassVar[str] = "clip"
    limit: float = 10.0

    def __post_init__(self) -> None:
        check_range(self, ("limit",), 0.0, float("inf"), above=True)

    def shaped(self, judged):
        return jnp.clip(judged.scores, -self.limit, self.limit)


@dataclasses.dataclass(frozen=True)
class MinMax(_Scored):
    """The scores of a step, moved and scaled to [0, 1]."""

    kind: ClassVar[str] = "minmax"
    of_batch: ClassVar[bool] = True
    middle: ClassVar[float] = 0.5
    negative: ClassVar[bool] = False

    def shaped(self, judged):
        return minmax_shape(judged.scores)


@dataclasses.dataclass(frozen=True)
class RunningNorm(_Scored):
    """The score less the mean of all scores that the stage has met, over their deviation.

    Those of the steps before count; in the first step its own do.

    Attributes:
      eps: what is added to the deviation.
    """

    kind: ClassVar[str] = "running_norm"
    of_batch: ClassVar[bool] = True
    normalises: ClassVar[bool] = True
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_range(self, ("eps",), 0.0, float("inf"))

    def shaped(self, judged):
        moments = judged.moments
        if moments is None or not moments.count:
            moments = with_more(Moments(*jnp.zeros(3)), judged.scores)
        spread = moments.deviation + self.eps
        return jnp.where(spread > 0, (judged.scores - moments.mean) / jnp.where(spread > 0, spread, 1.0), 0.0)


def with_more(moments: Moments, scores: Float[Array, "N"]) -> Moments:
    """The moments once `N` more scores have been met (Chan et al. 1979, population deviation)."""
    count, more = moments.count, jnp.float32(len(scores))
    total, gap = count + more, scores.mean() - moments.mean
    square = count * jnp.square(moments.deviation) + more * scores.var() + jnp.square(gap) * count * more / total
    return Moments(total, moments.mean + gap * more / total, jnp.sqrt(square / total))


# The shapes that `several` may give to a judge's scores, each with its defaults.
SHAPES: Mapping[str, _Scored] = MappingProxyType(
    {cls.kind: cls() for cls in (Score, Centred, PAR, LSC, Tanh, Clip, MinMax)}
)
AGGREGATES = ("sum", "log_tame")


@dataclasses.dataclass(frozen=True)
class Several:
    """The scores of several judges, shaped one by one and then added.

    Attributes:
      judges: their names.
      shapes: kinds of rewards on scores that shape them, with their defaults: one for each judge, or one for all.
      weights: factors of the shaped scores; () for 1 each.
      aggregate: "sum", or "log_tame" for `log(1 + score)` of the judges whose shaped scores vary the most (PaCo-RL,
        arXiv 2512.04784) before they are added.
    """

    kind: ClassVar[str] = "several"
    asks: ClassVar[str] = "scores"
    normalises: ClassVar[bool] = False
    judges: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ("score",)
    weights: tuple[float, ...] = ()
    aggregate: str = "sum"

    def __post_init__(self) -> None:
        check_word(self, "aggregate", AGGREGATES)
        if len(set(self.judges)) < len(self.judges):
            raise UserError(f"judges={self.judges}: one of them stands there twice")
        unknown = [shape for shape in self.shapes if shape not in SHAPES]
        if unknown:
            raise UserError(f"shapes={self.shapes}: expected of {', '.join(map(repr, SHAPES))}")
        count = len(self.judges)
        if len(self.shapes) not in {1, count or 1}:
            raise UserError(f"shapes={self.shapes}: expected one for all, or one for each of {count} judges")
        if self.weights and len(self.weights) != count:
            raise UserError(f"weights={self.weights}: expected one for each of {count} judges, or ()")
        if self.aggregate == "log_tame" and any(SHAPES[shape].negative for shape in self.shapes):
            tame = [kind for kind, shape in SHAPES.items() if not shape.negative]
            raise UserError(f"aggregate='log_tame' needs shapes that are never negative: {', '.join(map(repr, tame))}")

    @property
    def _shapes(self) -> tuple[_Scored, ...]:
        found = tuple(SHAPES[shape] for shape in self.shapes)
        return found * len(self.judges) if len(found) == 1 else found

    @property
    def _weights(self) -> tuple[float, ...]:
        return self.weights or (1.0,) * len(self.judges)

    def merged(self, merge):
        return merge

    @property
    def relative(self) -> bool:
        return self.aggregate == "log_tame" or any(SHAPES[shape].of_batch for shape in self.shapes)

    @property
    def probability(self) -> bool:
        return False

    @property
    def antisymmetric(self) -> bool:
        return False

    @property
    def compares(self) -> bool:
        return any(SHAPES[shape].compares for shape in self.shapes)

    @property
    def least_opponents(self) -> int:
        return max((SHAPES[shape].least_opponents for shape in self.shapes), default=1)

    @property
    def even(self) -> float:
        return float(np.dot(self._weights, [shape.even for shape in self._shapes]))

    def __call__(self, *judged):
        shaped = jnp.stack([shape(one) for shape, one in zip(self._shapes, judged, strict=True)])
        if self.aggregate == "log_tame":
            shaped = log_tame(shaped)
        return jnp.asarray(self._weights, jnp.float32) @ shaped

    def differences(self, judged):
        raise NotImplementedError
