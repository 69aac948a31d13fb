"""Piece 5: the loss that moves the policy. It sees a minibatch of what was frozen, and the log-probs of the policy that
is trained."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prl_jax.errors import UserError
from prl_jax.losses import (
    cispo_loss,
    pair_regression_loss,
    pair_token_loss,
    pairwise_policy_loss,
    ppo_policy_loss,
    reduce_tokens,
    reinforce_loss,
    single_regression_loss,
    truncated_importance,
)
from prl_jax.losses.pairwise_ppo import LINKS
from prl_jax.losses.ppo import RATIO_LEVELS, REDUCTIONS
from prl_jax.masked import check_shapes, masked_count, masked_mean, masked_sum
from prl_jax.methods.checks import check_range, check_word
from prl_jax.types import LossOutput


class Frozen(NamedTuple):
    """The arrays that stay fixed while a surrogate is minimised, for `N` responses of up to `T` tokens.

    Attributes:
      logp_old, logp_ref: `[N, T]` log-probs under the policy that sampled and under the reference.
      advantages: `[N, T]`.
      mask: `[N, T]` bool, the tokens that train the policy.
    """

    logp_old: Float[Array, "N T"]
    logp_ref: Float[Array, "N T"]
    advantages: Float[Array, "N T"]
    mask: Bool[Array, "N T"]


@runtime_checkable
class Surrogate(Protocol):
    """A loss of the policy.

    Attributes:
      kind: its name in configs.
      unit: neighbouring rows that it has to see together: 1, or 2 for pairs of responses to one prompt.
      inside: whether it holds the divergence to the reference itself, with the regulariser's coefficient.
      whole: whether it sees responses as a whole, and takes one advantage of each.
      reduce: how token losses beside it become one number, see `losses.reduce_tokens`.
    """

    kind: ClassVar[str]
    unit: ClassVar[int]
    inside: ClassVar[bool]
    whole: ClassVar[bool]

    @property
    def reduce(self) -> str: ...

    def __call__(self, logp: Float[Array, "N T"], frozen: Frozen, coefficient: Float[Array, ""]) -> LossOutput:
        """The loss; `coefficient` is that of the divergence, for surrogates that hold it."""
        ...

    def denominator(self, mask: Bool[Array, "N T"]) -> Float[Array, ""]:
        """The denominator that the loss will have, from the mask alone."""
        ...

    def corrected(
        self, frozen: Frozen, logp_sampled: Float[Array, "N T"], cap: float
    ) -> tuple[Frozen, Float[Array, "N T"] | None]:
        """The same for responses of a policy older than `logp_old` has it, whose log-probs are `logp_sampled`; and the
        weights of their tokens, None of a loss that asks by itself who sampled.

        `cap` is that of `losses.truncated_importance`.
        """
        ...


class _OfTokens:
    """Losses of tokens, which the regulariser stands beside."""

    unit: ClassVar[int] = 1
    inside: ClassVar[bool] = False
    whole: ClassVar[bool] = False

    @property
    def reduce(self) -> str:
        raise NotImplementedError

    @property
    def _level(self) -> str:
        return "token"

    def corrected(
        self, frozen: Frozen, logp_sampled: Float[Array, "N T"], cap: float
    ) -> tuple[Frozen, Float[Array, "N T"] | None]:
        # The loss of a token is as many times as large as its advantage: a weight of one is a weight of the other.
        weights = truncated_importance(frozen.logp_old, logp_sampled, frozen.mask, cap=cap, level=self._level)
        return frozen._replace(advantages=weights * frozen.advantages), weights

    def denominator(self, mask):
        return reduce_tokens(jnp.zeros(mask.shape, jnp.float32), mask, self.reduce)[1]


@dataclasses.dataclass(frozen=True)
class TokenClip(_OfTokens):
    """The clipped ratio of PPO, see `losses.ppo_policy_loss`.

    Attributes:
      low, high: the ratio is clipped to `[1 - low, 1 + high]`.
      dual: losses of negative advantages are at most so many advantages (dual clip, arXiv 1912.09729); 0 for none.
      reduce: how token losses become one number: "token_mean", "seq_mean_token_sum", "seq_mean_token_mean" or
        "seq_mean_room_mean", see `losses.reduce_tokens`.
      ratio: whether each "token" has a ratio, or the whole "sequence" has one (GSPO, arXiv 2507.18071).
    """

    kind: ClassVar[str] = "token_clip"
    low: float = 0.2
    high: float = 0.2
    dual: float = 0.0
    reduce: str = "token_mean"
    ratio: str = "token"

    @property
    def _level(self) -> str:
        return self.ratio

    def __post_init__(self) -> None:
        check_range(self, ("low",), 0.0, 1.0, above=True)
        check_range(self, ("high",), 0.0, math.inf, above=True)
        check_word(self, "reduce", REDUCTIONS)
        check_word(self, "ratio", RATIO_LEVELS)
        if not (self.dual == 0 or self.dual > 1):
            raise UserError(f"dual={self.dual!r}, expected 0 (none) or a number above 1")

    def __call__(self, logp, frozen, coefficient):
        return ppo_policy_loss(
            logp,
            frozen.logp_old,
            frozen.advantages,
            frozen.mask,
            clip_low=self.low,
            clip_high=self.high,
            dual=self.dual or None,
            reduce=self.reduce,
            ratio_level=self.ratio,
        )


@dataclasses.dataclass(frozen=True)
class Reinforce(_OfTokens):
    """Log-probabilities weighed by advantages, see `losses.reinforce_loss`.

    Nothing brings a second update of the same responses back: use one epoch and one minibatch, or little more.

    Attributes:
      reduce: how token losses become one number, see `losses.reduce_tokens`.
    """

    kind: ClassVar[str] = "reinforce"
    reduce: str = "token_mean"

    def __post_init__(self) -> None:
        check_word(self, "reduce", REDUCTIONS)

    def __call__(self, logp, frozen, coefficient):
        return reinforce_loss(logp, frozen.logp_old, frozen.advantages, frozen.mask, reduce=self.reduce)


@dataclasses.dataclass(frozen=True)
class CISPO(_OfTokens):
    """The ratio clipped as a weight, so that a clipped token still moves the policy, see `losses.cispo_loss`.

    Attributes:
      low, high: the weight is the ratio clipped to `[1 - low, 1 + high]`.
      reduce: how token losses become one number, see `losses.reduce_tokens`.

    Source: arXiv 2506.13585.
    """

    kind: ClassVar[str] = "cispo"
    low: float = 1.0
    high: float = 0.28
    reduce: str = "token_mean"

    def __post_init__(self) -> None:
        check_range(self, ("low",), 0.0, 1.0, above=True)
        check_range(self, ("high",), 0.0, math.inf, above=True)
        check_word(self, "reduce", REDUCTIONS)

    def __call__(self, logp, frozen, coefficient):
        options = dict(low=self.low, high=self.high, reduce=self.reduce)
        return cispo_loss(logp, frozen.logp_old, frozen.advantages, frozen.mask, **options)


class _OfResponses:
    """Losses of whole responses, which hold the divergence themselves. What they ask of `logp_old` is who sampled."""

    def corrected(
        self, frozen: Frozen, logp_sampled: Float[Array, "N T"], cap: float
    ) -> tuple[Frozen, Float[Array, "N T"] | None]:
        return frozen._replace(logp_old=logp_sampled), None


class _OfPairs(_OfResponses):
    """Losses of pairs: rows 0 and 1, 2 and 3, ... are two responses to one prompt.

    A pair trains the policy where both of its responses do.
    """

    unit: ClassVar[int] = 2
    inside: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    @property
    def reduce(self) -> str:
        return "seq_mean_token_sum"

    def denominator(self, mask):
        return masked_count(_whole(mask))


def _whole(mask: Bool[Array, "N T"]) -> Bool[Array, "P"]:
    """The pairs both of whose responses train the policy."""
    return mask.any(-1).reshape(-1, 2).all(-1)


def _log_ratios(logp: Float[Array, "N T"], frozen: Frozen) -> tuple[Float[Array, "P"], Float[Array, "P"]]:
    """Log-ratios to the reference of the first and the second response of each pair."""
    check_shapes(2, logp=logp, logp_old=frozen.logp_old, logp_ref=frozen.logp_ref, mask=frozen.mask)
    first, second = masked_sum(logp - frozen.logp_ref, frozen.mask, -1).reshape(-1, 2).T
    return first, second


def _gap(frozen: Frozen) -> Float[Array, "P"]:
    """The advantage of the first response of each pair less that of the second."""
    first, second = masked_mean(frozen.advantages, frozen.mask, -1).reshape(-1, 2).T
    return first - second


def _win(frozen: Frozen) -> Float[Array, "P"]:
    """`(1 + gap) / 2`: with win probabilities, that of the first response."""
    return 0.5 * (1.0 + _gap(frozen))


@dataclasses.dataclass(frozen=True)
class _Clipped(_OfPairs):
    """The bounds of both forms of P3O."""

    clip: float = 0.2
    importance: float = 10.0

    def __post_init__(self) -> None:
        check_range(self, ("clip",), 0.0, math.inf, above=True)
        check_range(self, ("importance",), 1.0, math.inf)


@dataclasses.dataclass(frozen=True)
class PairClip(_Clipped):
    """The clipped gap of two log-ratios, see `losses.pairwise_policy_loss` (P3O, arXiv 2310.00212, joint form).

    Attributes:
      clip: how far the gap may move from that of the policy that sampled.
      importance: the bound of the importance weight.
    """

    kind: ClassVar[str] = "pair_clip"

    def __call__(self, logp, frozen, coefficient):
        return pairwise_policy_loss(
            *_log_ratios(logp, frozen),
            *_log_ratios(frozen.logp_old, frozen),
            _win(frozen),
            beta=coefficient,
            eps=self.clip,
            c=self.importance,
            weight=_whole(frozen.mask),
        )


@dataclasses.dataclass(frozen=True)
class PairTokenClip(_Clipped):
    """The gap of two rewards with each token clipped by itself, see `losses.pair_token_loss` (P3O, separate form).

    Attributes:
      clip: how far the log-probability of a token may move from that of the policy that sampled.
      importance: the bound of the importance weight.

    Source: arXiv 2310.00212.
    """

    kind: ClassVar[str] = "pair_token_clip"

    def __call__(self, logp, frozen, coefficient):
        paired = lambda x: x.reshape(-1, 2, x.shape[-1])  # noqa: E731
        return pair_token_loss(
            paired(logp),
            paired(frozen.logp_old),
            paired(frozen.logp_ref),
            paired(frozen.mask),
            _gap(frozen),
            beta=coefficient,
            eps=self.clip,
            c=self.importance,
            weight=_whole(frozen.mask),
        )


@dataclasses.dataclass(frozen=True)
class PairRegression(_OfPairs):
    """The gap of two log-ratios as a prediction of who wins, see `losses.pair_regression_loss`.

    Attributes:
      link: how the gap becomes a prediction, "logistic" (DPO, arXiv 2305.18290) or "squared" (IPO, arXiv 2310.12036).
    """

    kind: ClassVar[str] = "pair_regression"
    link: str = "logistic"

    def __post_init__(self) -> None:
        check_word(self, "link", LINKS)

    def __call__(self, logp, frozen, coefficient):
        return pair_regression_loss(
            *_log_ratios(logp, frozen),
            jnp.clip(_win(frozen), 0.0, 1.0),
            beta=coefficient,
            link=self.link,
            weight=_whole(frozen.mask),
        )


@dataclasses.dataclass(frozen=True)
class SingleRegression(_OfResponses):
    """The log-ratio of each response fitted to its advantage, see `losses.single_regression_loss` (SPPO).

    Source: arXiv 2405.00675.
    """

    kind: ClassVar[str] = "single_regression"
    unit: ClassVar[int] = 1
    inside: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    @property
    def reduce(self) -> str:
        return "seq_mean_token_sum"

    def __call__(self, logp, frozen, coefficient):
        check_shapes(2, logp=logp, logp_old=frozen.logp_old, logp_ref=frozen.logp_ref, mask=frozen.mask)
        ratio = masked_sum(logp - frozen.logp_ref, frozen.mask, -1)
        target, counts = masked_mean(frozen.advantages, frozen.mask, -1), frozen.mask.any(-1)
        return single_regression_loss(ratio, target, beta=coefficient, weight=counts)

    def denominator(self, mask):
        return masked_count(mask.any(-1))
