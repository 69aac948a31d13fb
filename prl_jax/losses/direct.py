"""Direct preference losses: a policy trained on pairs of responses, with no reward model and no sampling.

A policy enters as log-ratios to its references, `log pi - sum_j weight_j log pi_j`, and those of frozen models are
arrays: no loss runs a second model. Losses of labels are `label_loss` with a link of `direct_links`; the others have
targets of their own. All of them are unchanged where the responses of a pair are exchanged with their targets, and the
label by `1 - label`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prl_jax.losses.direct_links import Link
from prl_jax.losses.preference import judgement
from prl_jax.masked import check_floats, keep_rows, per_row
from prl_jax.types import LossOutput

_ROUNDING = 1e-6  # of a sum of log-probs that is computed twice, in batches of other shapes
_LEAST_SCALE = 0.01  # of `margin_scale`: a gap that contradicts the label leaves beta above 0


class DirectTerms(NamedTuple):
    """The terms of direct losses, of `B` pairs; gradient through `ratio_1`, `ratio_2`, `logp_1` and `logp_2` alone.

    Attributes:
      ratio_1, ratio_2: `[B]` log-ratios of the responses to the references, sums over tokens or their means; the
        log-probs themselves where there is no reference.
      logp_1, logp_2: `[B]` log-probs of the responses, sums or means as the log-ratios are.
      label: `[B]` in [0, 1], the probability that response 1 is the better one.
      target_1, target_2: `[B]` a number a response: win rates or scores. Their difference is the target of a gap.
      scale: `[B]` what beta is multiplied by; ones, unless it depends on the pair.
      weight: `[B]`, 0 for rows that only fill the batch, which may hold anything.
      statistic: scalar, what a loss needs to know of the whole batch; 0 where it needs nothing.
    """

    ratio_1: Float[Array, "B"]
    ratio_2: Float[Array, "B"]
    logp_1: Float[Array, "B"]
    logp_2: Float[Array, "B"]
    label: Float[Array, "B"]
    target_1: Float[Array, "B"]
    target_2: Float[Array, "B"]
    scale: Float[Array, "B"]
    weight: Float[Array, "B"]
    statistic: Float[Array, ""]


def guarded(pairs: DirectTerms) -> DirectTerms:
    """The same in float32, without what fills rows of weight 0, and without gradient where it is data.

    Raises:
      ValueError, TypeError: an array is not `[B]` (`statistic`: a scalar), or not of floating point.
    """
    fields = pairs._asdict()
    statistic, weight = fields.pop("statistic"), pairs.weight.astype(jnp.float32)
    check_floats(1, **fields)
    check_floats(0, statistic=statistic)
    kept = {name: keep_rows(x, weight) for name, x in fields.items()}
    trained = {name: kept.pop(name) for name in ("ratio_1", "ratio_2", "logp_1", "logp_2")}
    data = jax.lax.stop_gradient({**kept, "statistic": statistic.astype(jnp.float32)})
    return DirectTerms(**trained, **data)


def scaled_ratios(pairs: DirectTerms, beta: float) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Implicit rewards of both responses, `beta scale ratio`, each `[B]` and 0 in rows of weight 0."""
    pairs = guarded(pairs)
    factor = beta * pairs.scale
    return factor * pairs.ratio_1, factor * pairs.ratio_2


# Losses of labels


def label_loss(
    pairs: DirectTerms,
    link: Link,
    u_1: Float[Array, "B"],
    u_2: Float[Array, "B"],
    *,
    label_smoothing: float = 0.0,
) -> LossOutput:
    """`label link(u_1, u_2) + (1 - label) link(u_2, u_1)`, averaged over pairs.

    A label between 0 and 1 is soft DPO, cDPO, the consistency of CREAM or the certainty of UPO, whatever it came from.

    Args:
      pairs: the terms; of them this reads the label, the weight and, for aux, the log-ratios.
      link: what a pair costs whose first response is better, such as those of `direct_links` with options bound.
      u_1, u_2: `[B]` what the link takes: `scaled_ratios(pairs, beta)`, plain log-ratios or log-probs.
      label_smoothing: the share of flipped labels to assume.

    Returns:
      LossOutput whose denominator is the sum of weights. aux: 'accuracy' (does `u_1 - u_2` name the better response?
      0.5 where it is 0 but for rounding) and 'margin' (lead of the better response), both over rows whose label is no
      tie, and 'chosen_ratio', 'rejected_ratio' (mean log-ratios of responses 1 and 2).

    Source: cDPO (ericmitchell.ai/cdpo.pdf); CREAM (arXiv 2410.12735).
    """
    check_floats(1, u_1=u_1, u_2=u_2, label=pairs.label)
    pairs = guarded(pairs)
    u_1, u_2 = keep_rows(u_1, pairs.weight), keep_rows(u_2, pairs.weight)
    label = smooth_label(pairs.label, label_smoothing)
    loss = label * link(u_1, u_2) + (1.0 - label) * link(u_2, u_1)
    return _output(pairs, loss, u_1 - u_2, pairs.label)


def weighted_sigmoid_loss(pairs: DirectTerms, *, beta: float = 0.1) -> LossOutput:
    """`-log sigmoid((2 label - 1) z)` with `z = beta scale (ratio_1 - ratio_2)`.

    Unlike the cross-entropy of a soft label it has no finite minimum: the label says how fast, not how far. A tie costs
    log 2 and teaches nothing.

    Args:
      pairs: the terms.
      beta: coefficient of the divergence.

    Returns:
      LossOutput as of `label_loss`.

    Source: SmPO (arXiv 2506.02698), without the constants of diffusion.
    """
    pairs = guarded(pairs)
    u_1, u_2 = scaled_ratios(pairs, beta)
    z = u_1 - u_2
    return _output(pairs, -jax.nn.log_sigmoid((2.0 * pairs.label - 1.0) * z), z, pairs.label)


# Losses with targets of their own


def gap_loss(pairs: DirectTerms, *, beta: float = 0.1) -> LossOutput:
    """`(z - (target_1 - target_2))^2` with `z = beta scale (ratio_1 - ratio_2)`: a gap fitted to a number.

    Args:
      pairs: the terms. Scores as targets are REBEL's; `bounded_logit` of a probability, beside 0, is iREPO's.
      beta: coefficient of the divergence.

    Returns:
      LossOutput as of `label_loss`, the better response being that of the higher target.

    Source: REBEL (arXiv 2404.16767), whose eta is `1 / beta`; iREPO (arXiv 2405.15230).
    """
    pairs = guarded(pairs)
    u_1, u_2 = scaled_ratios(pairs, beta)
    z, target = u_1 - u_2, pairs.target_1 - pairs.target_2
    return _output(pairs, jnp.square(z - target), z, _winner(pairs))


def singles_loss(pairs: DirectTerms, *, beta: float = 0.1, even: float = 0.0) -> LossOutput:
    """The mean over both responses of `(beta scale ratio - (target - even))^2`.

    Args:
      pairs: the terms.
      beta: coefficient of the divergence.
      even: the target of an even match: 0.5 of win rates, 0 of scores.

    Returns:
      LossOutput as of `gap_loss`.

    Source: SPPO (arXiv 2405.00675), equation 4.4 times `beta^2`; with scores GPO (arXiv 2410.02197). Both take the
    normaliser for 1, which centred targets are there for.
    """
    pairs = guarded(pairs)
    u_1, u_2 = scaled_ratios(pairs, beta)
    first, second = u_1 - (pairs.target_1 - even), u_2 - (pairs.target_2 - even)
    return _output(pairs, 0.5 * (jnp.square(first) + jnp.square(second)), u_1 - u_2, _winner(pairs))


def rwr_loss(pairs: DirectTerms) -> LossOutput:
    """Minus the log-probs of all responses, averaged by `target_1` and `target_2` as weights.

    Args:
      pairs: the terms, whose targets are weights >= 0, such as `exp(score / beta)`.

    Returns:
      LossOutput whose denominator is the sum of the weights of responses, times those of rows; aux as of `gap_loss`.

    Source: reward-weighted regression (Peters and Schaal, 2007); for preferences Flow-RWR
    (arXiv 2501.13918).
    """
    pairs = guarded(pairs)
    likelihood = pairs.target_1 * pairs.logp_1 + pairs.target_2 * pairs.logp_2
    out = _output(pairs, -likelihood, pairs.ratio_1 - pairs.ratio_2, _winner(pairs))
    return LossOutput(out.sum, jnp.sum(pairs.weight * (pairs.target_1 + pairs.target_2)), out.aux)


def better_mean(
    x_1: Float[Array, "B"],
    x_2: Float[Array, "B"],
    label: Float[Array, "B"],
    weight: Float[Array, "B"],
) -> LossOutput:
    """The mean over pairs of the better response's number, `label x_1 + (1 - label) x_2`.

    Of negative log-probs it is the likelihood term of RPO, CPO and ORPO. Of implicit rewards it is minus VPO's value,
    calibrated on the better responses: with a positive coefficient optimism, for policies that explore, with a negative
    one pessimism, for fixed data.

    Args:
      x_1, x_2: `[B]` numbers of the responses, with gradient.
      label: `[B]` probability that response 1 is better; no gradient.
      weight: `[B]`; rows of weight 0 may hold anything.

    Returns:
      LossOutput whose denominator is the sum of weights.

    Source: RPO (arXiv 2405.16436); VPO (arXiv 2405.19320).
    """
    check_floats(1, x_1=x_1, x_2=x_2, label=label, weight=weight)
    x_1, x_2, label, weight = (keep_rows(x, weight) for x in (x_1, x_2, label, weight))
    label, weight = jax.lax.stop_gradient((label, weight))
    return LossOutput(jnp.sum(weight * (label * x_1 + (1.0 - label) * x_2)), jnp.sum(weight))


# What losses are given


def mixed_reference(ref: Float[Array, "J B"], weights: Float[Array, "J"]) -> Float[Array, "B"]:
    """Log-probs of the geometric mixture of `J` references, not normalised: `sum_j weights_j ref_j`. No gradient.

    Without references it is 0, and log-ratios to it are log-probs.

    Source: MNPO (arXiv 2509.23102); INPO (arXiv 2407.00617) with weights `tau / eta` and `1 - tau / eta`.
    """
    return jax.lax.stop_gradient(jnp.sum(weights.astype(jnp.float32)[:, None] * ref.astype(jnp.float32), axis=0))


def smooth_label(label: Float[Array, "B"], flips: Float[Array, "B"] | float) -> Float[Array, "B"]:
    """The label where a share of `flips` of all labels is wrong; of each pair its own, `1 - certainty`, in CREAM."""
    flips = per_row("flips", flips, label)
    return label * (1.0 - flips) + (1.0 - label) * flips


def bounded_logit(probability: Float[Array, "..."], least: float) -> Float[Array, "..."]:
    """The logit of a probability that is held to `[least, 1 - least]`."""
    bounded = jnp.clip(probability.astype(jnp.float32), least, 1.0 - least)
    return jnp.log(bounded) - jnp.log1p(-bounded)


def margin_scale(gap: Float[Array, "B"], *, amount: float, rate: float) -> Float[Array, "B"]:
    """The factor of beta in a pair that a reward model tells apart: `1 + amount (1 - exp(-rate gap))`.

    Args:
      gap: `[B]` score of the better response less that of the worse one. Where it is negative the factor falls, to no
        less than 0.01.
      amount: how much a gap can add; 0 leaves beta alone.
      rate: how fast it does.

    Source: MM-RLHF (arXiv 2502.10391); the exponential is the paper's, in no code within reach.
    """
    gap = jax.lax.stop_gradient(gap.astype(jnp.float32))
    # `expm1` of a large negative gap would overflow, far beyond the bound.
    grown = -amount * jnp.expm1(jnp.minimum(-rate * gap, 20.0))
    return jnp.maximum(1.0 + grown, _LEAST_SCALE)


def _winner(pairs: DirectTerms) -> Float[Array, "B"]:
    """The label that the targets are worth: 1 where response 1 has the higher one, 0.5 where they are equal."""
    return 0.5 * (1.0 + jnp.sign(pairs.target_1 - pairs.target_2))


def _output(
    pairs: DirectTerms, loss: Float[Array, "B"], gap: Float[Array, "B"], label: Float[Array, "B"]
) -> LossOutput:
    """The sum of a loss of guarded pairs, and the aux that all of them have."""
    weight, total = pairs.weight, jnp.sum(pairs.weight)
    # A policy that is its reference tells no two responses apart, whatever the rounding of its log-probs says.
    rounding = _ROUNDING * (jnp.abs(pairs.logp_1) + jnp.abs(pairs.logp_2))
    even = jnp.abs(pairs.ratio_1 - pairs.ratio_2) <= rounding
    correct, lead, decided = judgement(jnp.where(even, 0.0, gap), label, weight)
    aux = {
        "accuracy": (correct, decided),
        "margin": (lead, decided),
        "chosen_ratio": (jnp.sum(weight * pairs.ratio_1), total),
        "rejected_ratio": (jnp.sum(weight * pairs.ratio_2), total),
    }
    return LossOutput(jnp.sum(weight * loss), total, jax.lax.stop_gradient(aux))
