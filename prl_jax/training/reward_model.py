"""Fitting preference models: Bradley-Terry and generative pairwise."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from prl_jax.losses import bt_loss, pairwise_genrm_full_loss
from prl_jax.models import Decoder, ScalarModel, verdict_log_probs
from prl_jax.training.step import Objective
from prl_jax.types import ComparedPairs, LossOutput, ScoredPairs, TokenRows


def _at_once(rows: TokenRows, others: TokenRows) -> TokenRows:
    """Returns both sets of rows as one batch, so that the model runs once."""
    return TokenRows(*(jnp.concatenate(pair) for pair in zip(rows, others, strict=True)))


def _denominators(batch: ScoredPairs | ComparedPairs) -> dict[str, Float[Array, ""]]:
    return {"preference": batch.weight.sum()}


def bradley_terry_objective(*, label_smoothing: float = 0.0, center: float = 0.0, packed: int = 0) -> Objective:
    """`-log sigmoid(r_1 - r_2)` on the scores at the last valid tokens (arXiv 2203.02155, equation 1); `packed` as in
    `last_hidden`."""

    def terms(model: ScalarModel, batch: ScoredPairs) -> dict[str, LossOutput]:
        score_1, score_2 = jnp.split(model.score(_at_once(batch.response_1, batch.response_2), packed), 2)
        loss = bt_loss(
            score_1, score_2, label=batch.label, label_smoothing=label_smoothing, center=center, weight=batch.weight
        )
        return {"preference": loss}

    return Objective(terms, _denominators, {"preference": 1.0}, reads=2)


def generative_objective(
    verdicts: tuple[int, int],
    *,
    form: str = "antisymmetric",
    w_ce: float = 0.05,
    w_cons: float = 0.0,
    packed: int = 0,
) -> Objective:
    """Cross-entropy of the verdict token over the whole vocabulary, both orders of every pair (arXiv 2504.04950).

    Args:
      verdicts: the tokens that say that slot 1, or slot 2, holds the better response.
      form: "both_orders", or "antisymmetric", which fits the symmetrised judgement itself and keeps `w_ce` of the
        cross-entropy of each order, so that the verdict tokens keep their probability.
      w_ce, w_cons: weights of the per-order cross-entropy (antisymmetric form) and of the order-consistency penalty.
      packed: as in `last_hidden`.
    """

    def terms(model: Decoder, batch: ComparedPairs) -> dict[str, LossOutput]:
        both = _at_once(batch.order_12, batch.order_21)
        log_probs_12, log_probs_21 = jnp.split(verdict_log_probs(model, both, verdicts, packed), 2)
        loss = pairwise_genrm_full_loss(
            log_probs_12, log_probs_21, batch.label, form=form, w_ce=w_ce, w_cons=w_cons, weight=batch.weight
        )
        return {"preference": loss}

    return Objective(terms, _denominators, {"preference": 1.0}, reads=2)
