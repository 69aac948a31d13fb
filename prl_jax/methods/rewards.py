"""Piece 3: how what a judge says becomes one reward a response."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prl_jax.losses import even_reward, pairwise_rl_reward
from prl_jax.losses.pairwise_ppo import REWARD_MAPS
from prl_jax.masked import masked_mean
from prl_jax.methods.checks import check_range, check_word


class Judgements(NamedTuple):
    """A judge's answers on `N` responses and up to `M` opponents of each; what was not asked is None.

    Attributes:
      mask: `[N, M]` bool, the opponents that were met.
      z_ya, z_ay: `[N, M]` float32 logits of "slot 1 wins", the response in slot 1 and in slot 2.
      scores: `[N]` float32, of a judge that scores single responses.
      opponent_scores: `[N, M]` float32, the same of the opponents.
      merge: how the judge merges the two orders, see `Judged`.
    """

    mask: Bool[Array, "N M"]
    z_ya: Float[Array, "N M"] | None = None
    z_ay: Float[Array, "N M"] | None = None
    scores: Float[Array, "N"] | None = None
    opponent_scores: Float[Array, "N M"] | None = None
    merge: str = "probability"


@runtime_checkable
class Reward(Protocol):
    """Judgements in, one reward a response out.

    Attributes:
      kind: its name in configs.
      asks: "pairs" (of a judge, both orders), or "scores" (of a judge that scores single responses).
      compares: whether it needs opponents.
      probability: whether it is the probability of a win, possibly shifted.
    """

    kind: ClassVar[str]
    asks: ClassVar[str]
    compares: ClassVar[bool]

    @property
    def probability(self) -> bool: ...

    @property
    def even(self) -> float:
        """The reward of an even match, where a critic starts."""
        ...

    def __call__(self, judged: Judgements) -> Float[Array, "N"]: ...


@dataclasses.dataclass(frozen=True)
class WinProbability:
    """The mean over the opponents of the probability to win.

    Attributes:
      map: what becomes of each probability p: "id", "centred" (p - 1/2), "logit", "log", or "hard" (1, 1/2 or 0).
    """

    kind: ClassVar[str] = "win_probability"
    asks: ClassVar[str] = "pairs"
    compares: ClassVar[bool] = True
    map: str = "id"

    def __post_init__(self) -> None:
        check_word(self, "map", REWARD_MAPS)

    @property
    def probability(self) -> bool:
        return self.map in ("id", "centred", "hard")

    @property
    def even(self) -> float:
        return even_reward(self.map)

    def __call__(self, judged):
        return pairwise_rl_reward(judged.z_ya, judged.z_ay, judged.mask, space=judged.merge, f=self.map)


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of the response, as it is."""

    kind: ClassVar[str] = "score"
    asks: ClassVar[str] = "scores"
    compares: ClassVar[bool] = False

    @property
    def probability(self) -> bool:
        return False

    @property
    def even(self) -> float:
        return 0.0

    def __call__(self, judged):
        return judged.scores


@dataclasses.dataclass(frozen=True)
class PAR:
    """Preference as reward: the mean over the opponents of `sigmoid(k (score - score of the opponent))`.

    Attributes:
      k: how fast it saturates; its slope at an even match is `k / 4`.

    Source: arXiv 2502.18770. With one opponent and k = 1 it is `WinProbability` with a Bradley-Terry judge.
    """

    kind: ClassVar[str] = "par"
    asks: ClassVar[str] = "scores"
    compares: ClassVar[bool] = True
    k: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, ("k",), 0.0, float("inf"), above=True)

    @property
    def probability(self) -> bool:
        return True

    @property
    def even(self) -> float:
        return 0.5

    def __call__(self, judged):
        gap = jnp.where(judged.mask, judged.scores[:, None] - judged.opponent_scores, 0.0)
        return masked_mean(jax.nn.sigmoid(self.k * gap), judged.mask, -1)
