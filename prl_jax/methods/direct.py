"""Losses of the stage that trains a policy on fixed pairs, one class a loss: its fields are its keys in a config."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prl_jax.losses import direct_links as links
from prl_jax.losses.direct import (
    DirectTerms,
    bounded_logit,
    gap_loss,
    guarded,
    label_loss,
    rwr_loss,
    scaled_ratios,
    singles_loss,
    weighted_sigmoid_loss,
)
from prl_jax.masked import EXP_LIMIT, keep_rows
from prl_jax.methods.checks import check_range, check_word
from prl_jax.types import LossOutput


@runtime_checkable
class DirectLoss(Protocol):
    """A loss of pairs of responses.

    Attributes:
      kind: its name in configs.
      reads: the target that it needs: "label", the probability that response 1 is better; "targets", a number of each
        response, a win rate or a score; "gap", the difference of two targets, which may be any number.
      statistic: what it needs to know of the whole batch, without gradient, in `DirectTerms.statistic`: "" for nothing;
        "mismatched", the mean log-ratio of completions behind prompts of other rows, before beta; "mean", the mean of
        `scaled` over all responses.
      length: "mean" where it is defined on mean log-probs of a token alone, "" where sums do as well.
      reference_free: whether it reads log-probs alone, so that no reference means anything to it.
      scales: whether it has a beta that `DirectTerms.scale` multiplies.
    """

    kind: ClassVar[str]
    reads: ClassVar[str]
    statistic: ClassVar[str]
    length: ClassVar[str]
    reference_free: ClassVar[bool]
    scales: ClassVar[bool]

    def scaled(self, pairs: DirectTerms) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        """The numbers of both responses that the loss compares, `[B]` each: implicit rewards, where it has a beta."""
        ...

    def gap_of(self, label: Float[Array, "B"]) -> Float[Array, "B"]:
        """The gap that a label stands for, `target_1` beside a `target_2` of 0, where the loss reads gaps."""
        ...

    def __call__(self, pairs: DirectTerms) -> LossOutput:
        """The loss."""
        ...

    def denominator(
        self, weight: Float[Array, "B"], target_1: Float[Array, "B"], target_2: Float[Array, "B"]
    ) -> Float[Array, ""]:
        """The denominator that the loss will have, from what is known before it."""
        ...


class _OfPairs:
    """The attributes that most losses share: a label, references, and log-ratios as they are."""

    reads: ClassVar[str] = "label"
    statistic: ClassVar[str] = ""
    length: ClassVar[str] = ""
    reference_free: ClassVar[bool] = False
    scales: ClassVar[bool] = False

    def scaled(self, pairs):
        pairs = guarded(pairs)
        return pairs.ratio_1, pairs.ratio_2

    def gap_of(self, label):
        raise NotImplementedError

    def denominator(self, weight, target_1, target_2):
        return jnp.sum(weight.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class _WithBeta(_OfPairs):
    """Losses of implicit rewards."""

    scales: ClassVar[bool] = True
    beta: float = 0.1

    def __post_init__(self) -> None:
        check_range(self, ("beta",), 0.0, math.inf, above=True)

    def scaled(self, pairs):
        return scaled_ratios(pairs, self.beta)


# Losses of labels


@dataclasses.dataclass(frozen=True)
class Sigmoid(_WithBeta):
    """The cross-entropy of the label with the sigmoid of the gap, see `losses.sigmoid_link`.

    Attributes:
      beta: coefficient of the divergence to the references, or of log-probs without them.
      margin: how far the better response should lead (SimPO's gamma), in units of implicit rewards.
      label_smoothing: the share of flipped labels to assume (cDPO).

    Source: DPO (arXiv 2305.18290).
    """

    kind: ClassVar[str] = "sigmoid"
    margin: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, ("margin",), 0.0, math.inf)
        check_range(self, ("label_smoothing",), 0.0, 0.5)

    def __call__(self, pairs):
        link = functools.partial(links.sigmoid_link, margin=self.margin)
        return label_loss(pairs, link, *self.scaled(pairs), label_smoothing=self.label_smoothing)


@dataclasses.dataclass(frozen=True)
class IPO(_OfPairs):
    """The gap of log-ratios fitted to `1 / (2 tau)`, see `losses.ipo_link`.

    Attributes:
      tau: coefficient of the divergence; INPO and MNPO call it eta.

    Source: arXiv 2310.12036.
    """

    kind: ClassVar[str] = "ipo"
    tau: float = 0.1

    def __post_init__(self) -> None:
        check_range(self, ("tau",), 0.0, math.inf, above=True)

    def __call__(self, pairs):
        return label_loss(pairs, functools.partial(links.ipo_link, tau=self.tau), *self.scaled(pairs))


@dataclasses.dataclass(frozen=True)
class Hinge(_WithBeta):
    """A gap of implicit rewards that should be 1 or more, see `losses.hinge_link`.

    Attributes:
      beta: what log-ratios are multiplied by (RSO's gamma).

    Source: SLiC-HF (arXiv 2305.10425); RSO (arXiv 2309.06657).
    """

    kind: ClassVar[str] = "hinge"

    def __call__(self, pairs):
        return label_loss(pairs, links.hinge_link, *self.scaled(pairs))


@dataclasses.dataclass(frozen=True)
class Robust(_WithBeta):
    """The sigmoid loss of labels some of which are flipped, without their bias, see `losses.robust_link`.

    Attributes:
      beta: coefficient of the divergence.
      flip_rate: the share of flipped labels, below one half.

    Source: arXiv 2403.00409.
    """

    kind: ClassVar[str] = "robust"
    flip_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, ("flip_rate",), 0.0, 0.49)

    def __call__(self, pairs):
        link = functools.partial(links.robust_link, flip_rate=self.flip_rate)
        return label_loss(pairs, link, *self.scaled(pairs))


@dataclasses.dataclass(frozen=True)
class WeightedSigmoid(_WithBeta):
    """The sigmoid loss of a gap times the certainty of its label, see `losses.weighted_sigmoid_loss`.

    Attributes:
      beta: coefficient of the divergence.

    Source: SmPO (arXiv 2506.02698).
    """

    kind: ClassVar[str] = "weighted_sigmoid"

    def __call__(self, pairs):
        return weighted_sigmoid_loss(pairs, beta=self.beta)


@dataclasses.dataclass(frozen=True)
class Linear(_OfPairs):
    """The gap of log-ratios itself, each of them bounded, see `losses.linear_link`.

    Attributes:
      clip: the bound of a log-ratio, in nats (of the response, or of its mean token); without one nothing would stop
        the loss.

    Source: DSO (arXiv 2503.22677).
    """

    kind: ClassVar[str] = "linear"
    clip: float = 10.0

    def __post_init__(self) -> None:
        check_range(self, ("clip",), 0.0, math.inf, above=True)

    def __call__(self, pairs):
        return label_loss(pairs, functools.partial(links.linear_link, clip=self.clip), *self.scaled(pairs))


@dataclasses.dataclass(frozen=True)
class KTO(_WithBeta):
    """Better and worse responses by themselves, measured from the divergence of the batch, see `losses.kto_link`.

    Attributes:
      beta: coefficient of the divergence.
      desirable, undesirable: weights of better and of worse responses.

    Source: arXiv 2402.01306.
    """

    kind: ClassVar[str] = "kto"
    statistic: ClassVar[str] = "mismatched"
    desirable: float = 1.0
    undesirable: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, ("desirable", "undesirable"), 0.0, math.inf, above=True)

    def __call__(self, pairs):
        pairs = guarded(pairs)
        z0 = self.beta * pairs.scale * jnp.maximum(pairs.statistic, 0.0)
        options = dict(desirable=self.desirable, undesirable=self.undesirable)
        return label_loss(pairs, functools.partial(links.kto_link, z0=z0, **options), *self.scaled(pairs))


@dataclasses.dataclass(frozen=True)
class ORPO(_OfPairs):
    """The gap of log-odds of mean token probabilities, see `losses.odds_link`; its likelihood term is `sft_weight`.

    Attributes:
      coefficient: what the loss is multiplied by (the paper's lambda).

    Source: arXiv 2403.07691.
    """

    kind: ClassVar[str] = "orpo"
    length: ClassVar[str] = "mean"
    reference_free: ClassVar[bool] = True
    coefficient: float = 0.1

    def __post_init__(self) -> None:
        check_range(self, ("coefficient",), 0.0, math.inf, above=True)

    def scaled(self, pairs):
        pairs = guarded(pairs)
        return pairs.logp_1, pairs.logp_2

    def __call__(self, pairs):
        out = label_loss(pairs, links.odds_link, *self.scaled(pairs))
        return dataclasses.replace(out, sum=self.coefficient * out.sum)


@dataclasses.dataclass(frozen=True)
class APO(_WithBeta):
    """Bounded losses that say where both responses should go, see `losses.apo_zero_link`.

    Attributes:
      beta: coefficient of the divergence.
      form: "zero" makes the better response likelier and the worse one less likely, for pairs that are better than the
        policy; "down" makes both less likely, for pairs that are worse.

    Source: arXiv 2408.06266.
    """

    kind: ClassVar[str] = "apo"
    FORMS: ClassVar[Mapping[str, links.Link]] = MappingProxyType(
        {"zero": links.apo_zero_link, "down": links.apo_down_link}
    )
    form: str = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word(self, "form", tuple(self.FORMS))

    def __call__(self, pairs):
        return label_loss(pairs, self.FORMS[self.form], *self.scaled(pairs))


@dataclasses.dataclass(frozen=True)
class NCA(_WithBeta):
    """A classifier of responses against noise, see `losses.nca_link`.

    Attributes:
      beta: coefficient of the divergence.

    Source: arXiv 2402.05369.
    """

    kind: ClassVar[str] = "nca"

    def __call__(self, pairs):
        return label_loss(pairs, links.nca_link, *self.scaled(pairs))


@dataclasses.dataclass(frozen=True)
class BCO(_WithBeta):
    """A classifier of better and worse responses around the mean of their implicit rewards, see `losses.bco_link`.

    Attributes:
      beta: coefficient of the divergence.

    Source: arXiv 2404.04656.
    """

    kind: ClassVar[str] = "bco"
    statistic: ClassVar[str] = "mean"

    def __call__(self, pairs):
        link = functools.partial(links.bco_link, delta=pairs.statistic)
        return label_loss(pairs, link, *self.scaled(pairs))


@dataclasses.dataclass(frozen=True)
class EXO(_WithBeta):
    """The reverse divergence of the policy's choice to the label, see `losses.exo_link`.

    Attributes:
      beta: coefficient of the divergence.
      label_smoothing: the share of flipped labels to assume, above 0.

    Source: arXiv 2402.00856.
    """

    kind: ClassVar[str] = "exo"
    label_smoothing: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, ("label_smoothing",), 0.0, 0.5, above=True)

    def __call__(self, pairs):
        link = functools.partial(links.exo_link, smoothing=self.label_smoothing)
        return label_loss(pairs, link, *self.scaled(pairs))


# Losses with targets of their own


@dataclasses.dataclass(frozen=True)
class Squared(_WithBeta):
    """The gap of implicit rewards fitted to a number, see `losses.gap_loss`.

    Attributes:
      beta: coefficient of the divergence.
      least: probabilities become gaps by their logit, and are held to `[least, 1 - least]` for it; scores and win rates
        are not.

    Source: REBEL (arXiv 2404.16767) with the gap of two scores; iREPO (arXiv 2405.15230) with the logit of a label.
    """

    kind: ClassVar[str] = "squared"
    reads: ClassVar[str] = "gap"
    least: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, ("least",), 0.0, 0.5, above=True)

    def gap_of(self, label):
        return bounded_logit(label, self.least)

    def __call__(self, pairs):
        return gap_loss(pairs, beta=self.beta)


@dataclasses.dataclass(frozen=True)
class SPPO(_WithBeta):
    """The implicit reward of each response fitted to what it wins, see `losses.singles_loss`.

    Attributes:
      beta: coefficient of the divergence.
      even: the target of an even match, which is subtracted: 0.5 of win rates (SPPO), 0 of scores (GPO).

    Source: arXiv 2405.00675; with scores arXiv 2410.02197.
    """

    kind: ClassVar[str] = "sppo"
    reads: ClassVar[str] = "targets"
    beta: float = 0.001
    even: float = 0.5

    def __call__(self, pairs):
        return singles_loss(pairs, beta=self.beta, even=self.even)


@dataclasses.dataclass(frozen=True)
class RWR(_OfPairs):
    """Log-probs weighed by `exp(score / beta)`, see `losses.rwr_loss`.

    Attributes:
      beta: how far apart scores have to be for the better response to count e times as much. Weights are held to
        `exp(-20)` and `exp(20)`: centre scores that are far from 0.

    Source: Peters and Schaal (2007); Flow-RWR (arXiv 2501.13918).
    """

    kind: ClassVar[str] = "rwr"
    reads: ClassVar[str] = "targets"
    reference_free: ClassVar[bool] = True
    beta: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, ("beta",), 0.0, math.inf, above=True)

    def _importance(self, target: Float[Array, "B"]) -> Float[Array, "B"]:
        return jnp.exp(jnp.clip(target / self.beta, -EXP_LIMIT, EXP_LIMIT))

    def __call__(self, pairs):
        pairs = guarded(pairs)
        first, second = self._importance(pairs.target_1), self._importance(pairs.target_2)
        return rwr_loss(pairs._replace(target_1=first, target_2=second))

    def denominator(self, weight, target_1, target_2):
        each = self._importance(keep_rows(target_1, weight)) + self._importance(keep_rows(target_2, weight))
        return jax.lax.stop_gradient(jnp.sum(weight.astype(jnp.float32) * each))


_CLASSES = (
    Sigmoid, IPO, Hinge, Robust, Squared, WeightedSigmoid, SPPO, Linear, RWR, KTO, ORPO, APO, NCA, BCO, EXO,
)  # fmt: skip
# Kind -> class. A new loss is one more class above.
DIRECT_LOSSES: Mapping[str, type] = MappingProxyType({cls.kind: cls for cls in _CLASSES})
