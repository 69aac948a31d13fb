"""Piece 3: how what a judge says becomes one reward a response."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prl_jax.errors import UserError
from prl_jax.losses import even_reward, mapped_wins, pairwise_rl_reward
from prl_jax.losses.pairwise_ppo import HARD_MAPS, OVERS, REWARD_MAPS
from prl_jax.losses.preference import SPACES
from prl_jax.methods.checks import check_range, check_word


class Moments(NamedTuple):
    """The mean and the deviation of all scores that a stage has met, and how many these were; float32 scalars."""

    count: Float[Array, ""]
    mean: Float[Array, ""]
    deviation: Float[Array, ""]


class Judgements(NamedTuple):
    """A judge's answers on `N` responses and up to `M` opponents of each; what was not asked is None.

    Attributes:
      mask: `[N, M]` bool, the opponents that were met.
      z_ya, z_ay: `[N, M]` float32 logits of "slot 1 wins", the response in slot 1 and in slot 2; of a comparison that
        was judged in one order, what a judge without a preference for a slot would say in the other.
      scores: `[N]` float32, of a judge that scores single responses.
      opponent_scores: `[N, M]` float32, the same of the opponents.
      merge: how the judge merges the two orders, see `Judged`.
      moments: of the scores of the steps before, for rewards that normalise by them.
    """

    mask: Bool[Array, "N M"]
    z_ya: Float[Array, "N M"] | None = None
    z_ay: Float[Array, "N M"] | None = None
    scores: Float[Array, "N"] | None = None
    opponent_scores: Float[Array, "N M"] | None = None
    merge: str = "probability"
    moments: Moments | None = None


@runtime_checkable
class Reward(Protocol):
    """Judgements in, one reward a response out.

    Attributes:
      kind: its name in configs.
      asks: "pairs" (of a judge, in the orders of the opponents), or "scores" (of a judge that scores single responses).
      compares: whether it needs opponents.
      judges: names of the judges that it asks, one `Judgements` each; () for the stage's judge.
      probability: whether it is the probability of a win, possibly shifted.
      normalises: whether it reads the moments of the scores that the stage has met.
      relative: whether the reward of a response depends on those of other prompts too.
      antisymmetric: whether what one response of a comparison earns, less that of an even match, the other one loses.
      least_opponents: how many opponents it needs at least to mean what it says, where it compares.
    """

    kind: ClassVar[str]
    asks: ClassVar[str]
    normalises: ClassVar[bool]

    @property
    def least_opponents(self) -> int: ...

    @property
    def relative(self) -> bool: ...

    @property
    def compares(self) -> bool: ...

    @property
    def judges(self) -> tuple[str, ...]: ...

    @property
    def probability(self) -> bool: ...

    @property
    def antisymmetric(self) -> bool: ...

    @property
    def even(self) -> float:
        """The reward of an even match, where a critic starts."""
        ...

    def merged(self, merge: str) -> str:
        """How two orders become one answer, of `SPACES`; `merge` is how the judge does it."""
        ...

    def __call__(self, *judged: Judgements) -> Float[Array, "N"]: ...

    def differences(self, judged: Judgements) -> Float[Array, "N M"]:
        """By how much a response is better than each opponent; for rewards that are antisymmetric."""
        ...


class OneJudge:
    """Rewards that ask the stage's judge."""

    normalises: ClassVar[bool] = False

    @property
    def least_opponents(self) -> int:
        return 1

    def merged(self, merge: str) -> str:
        return merge

    @property
    def relative(self) -> bool:
        return False

    @property
    def judges(self) -> tuple[str, ...]:
        return ()

    @property
    def antisymmetric(self) -> bool:
        return False

    def differences(self, judged: Judgements) -> Float[Array, "N M"]:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class WinProbability(OneJudge):
    """The wins of the response over its opponents; a response that meets nobody has the reward of an even match.

    Attributes:
      map: what becomes of each probability p: "id", "centred" (p - 1/2), "logit", "log", "hard" (1 for a win, else 0),
        "signed" (1 or -1), or "verdicts" (the mean of what is "hard" in each order).
      over: what becomes of several opponents: the "mean", the "min" (the hardest of them), or the "sign" (1, 0 or -1 as
        the mean is above, at or below that of an even match).
      tie: what an exact tie is worth where wins are hard, in wins.
      merge: how two orders become one answer, as a mean of "probability" or of "logit"; "" as the judge does it.
    """

    kind: ClassVar[str] = "win_probability"
    asks: ClassVar[str] = "pairs"
    map: str = "id"
    over: str = "mean"
    tie: float = 0.5
    merge: str = ""

    def __post_init__(self) -> None:
        check_word(self, "map", REWARD_MAPS)
        check_word(self, "over", OVERS)
        check_range(self, ("tie",), 0.0, 1.0)
        check_word(self, "merge", ("", *SPACES))
        if self.tie != 0.5 and self.map not in HARD_MAPS:
            raise UserError(f"tie={self.tie}: the map {self.map!r} has no hard wins; set it to 0.5")
        if self.merge and self.map == "verdicts":
            raise UserError(f"merge={self.merge!r}: the map 'verdicts' sees each order by itself; set it to ''")

    def merged(self, merge):
        return self.merge or merge

    @property
    def compares(self) -> bool:
        return True

    @property
    def probability(self) -> bool:
        return self.map in ("id", "centred", "hard", "verdicts") and self.over != "sign"

    @property
    def antisymmetric(self) -> bool:
        return self.map != "log" and self.tie == 0.5 and self.over == "mean"

    @property
    def even(self) -> float:
        return even_reward(self.map, self.over)

    def __call__(self, *judged):
        (one,) = judged
        wins = pairwise_rl_reward(one.z_ya, one.z_ay, one.mask, over=self.over, **self._options(one))
        return jnp.where(one.mask.any(-1), wins, self.even)

    def differences(self, judged):
        wins = mapped_wins(judged.z_ya, judged.z_ay, judged.mask, **self._options(judged))
        return jnp.where(judged.mask, wins - even_reward(self.map), 0.0)

    def _options(self, judged: Judgements):
        return dict(space=self.merged(judged.merge), f=self.map, tie=self.tie)
