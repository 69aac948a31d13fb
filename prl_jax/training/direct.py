"""Direct preference losses of a policy: log-probabilities of both responses of a pair in, loss terms out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prl_jax.judges.likelihood import response_log_probs
from prl_jax.losses.direct import DirectTerms, better_mean, margin_scale
from prl_jax.masked import keep_rows
from prl_jax.methods.direct import DirectLoss
from prl_jax.models import Decoder
from prl_jax.training.step import Objective
from prl_jax.types import DirectPairs, LossOutput, SFTBatch

LENGTHS = ("sum", "mean")  # what the log-probability of a response is: a sum over its tokens, or their mean


def direct_objective(
    loss: DirectLoss,
    *,
    length: str = "sum",
    sft_weight: float = 0.0,
    sft_length: str = "mean",
    value_weight: float = 0.0,
    beta_scale: float = 0.0,
    beta_scale_rate: float = 0.5,
    gap_of_label: bool = False,
    packed: int = 0,
) -> Objective:
    """A direct loss, and what is added to it.

    Args:
      loss: the piece.
      length: of `LENGTHS`, what the loss sees of log-probabilities and log-ratios.
      sft_weight: factor of the negative log-likelihood of the better response (RPO, CPO, ORPO).
      sft_length: of `LENGTHS`, what that likelihood is.
      value_weight: factor of the mean implicit reward of the better response (VPO): above 0 optimism, below 0
        pessimism.
      beta_scale, beta_scale_rate: how much, and how fast, beta grows with the gap of scores (`margin_scale`).
      gap_of_label: whether a loss of gaps takes its target from the label, and not from `target`.
      packed: how many rows the model reads the responses of a microbatch in (`packing.pack`); 0 for as they are.
    """
    factors = {"direct": 1.0, "sft": sft_weight, "value": value_weight}
    weights = {name: factor for name, factor in factors.items() if factor}

    def seen(model: Decoder, batch: DirectPairs, statistic: Float[Array, ""]) -> tuple[DirectTerms, LossOutput]:
        """Returns what the loss reads, and the likelihood of the better responses."""
        counts = jnp.stack([_tokens(rows) for rows in (batch.response_1, batch.response_2)])
        both = _at_once(batch.response_1, batch.response_2)
        sums = jnp.stack(jnp.split(response_log_probs(model, both, packed), 2))
        logp, ratio = sums, sums - batch.reference.T
        if length == "mean":
            logp, ratio = logp / counts, ratio / counts
        target_1, target_2 = batch.target[:, 0], batch.target[:, 1]
        if gap_of_label:
            target_1, target_2 = loss.gap_of(batch.label), jnp.zeros_like(target_2)
        imitated = sums / counts if sft_length == "mean" else sums
        pairs = DirectTerms(
            ratio_1=ratio[0],
            ratio_2=ratio[1],
            logp_1=logp[0],
            logp_2=logp[1],
            label=batch.label,
            target_1=target_1,
            target_2=target_2,
            scale=margin_scale(batch.score_gap, amount=beta_scale, rate=beta_scale_rate),
            weight=batch.weight,
            statistic=statistic,
        )
        return pairs, better_mean(-imitated[0], -imitated[1], batch.label, batch.weight)

    def terms(model: Decoder, batch: DirectPairs, statistic: Float[Array, ""] | None = None) -> dict[str, LossOutput]:
        pairs, likelihood = seen(model, batch, jnp.float32(0.0) if statistic is None else statistic)
        value = better_mean(*loss.scaled(pairs), pairs.label, pairs.weight)
        found = {"direct": loss(pairs), "sft": likelihood, "value": value}
        return {name: found[name] for name in weights}

    def denominators(batch: DirectPairs) -> dict[str, Float[Array, ""]]:
        count = batch.weight.sum()
        return {
            "direct": loss.denominator(batch.weight, batch.target[:, 0], batch.target[:, 1]),
            "sft": count,
            "value": count,
        }

    def mean(model: Decoder, batch: DirectPairs) -> tuple[Float[Array, ""], Float[Array, ""]]:
        pairs, _ = seen(model, batch, jnp.float32(0.0))
        first, second = loss.scaled(pairs)
        return jnp.sum(pairs.weight * (first + second)), 2.0 * batch.weight.sum()

    def mismatched(model: Decoder, batch: DirectPairs) -> tuple[Float[Array, ""], Float[Array, ""]]:
        assert batch.mismatched is not None and batch.reference_mismatched is not None
        ratio = response_log_probs(model, batch.mismatched) - batch.reference_mismatched
        ratio = ratio / _tokens(batch.mismatched) if length == "mean" else ratio
        return jnp.sum(batch.weight * keep_rows(ratio, batch.weight)), batch.weight.sum()

    statistic = {"": None, "mean": mean, "mismatched": mismatched}[loss.statistic]
    return Objective(terms, denominators, weights, reads=2, statistic=statistic)


def _tokens(rows: SFTBatch) -> Float[Array, "B"]:
    return jnp.maximum(rows.mask.sum(-1), 1).astype(jnp.float32)


def _at_once(rows: SFTBatch, others: SFTBatch) -> SFTBatch:
    """Returns both sets of rows as one batch, so that the model runs once."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), rows, others)
