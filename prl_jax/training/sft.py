"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

from prl_jax import masked
from prl_jax.losses import chunked_cross_entropy
from prl_jax.models import Decoder
from prl_jax.training.step import Objective
from prl_jax.types import LossOutput, SFTBatch


def sft_terms(model: Decoder, batch: SFTBatch) -> dict[str, LossOutput]:
    """Cross-entropy of the response tokens, the stop token included: a mean over tokens of the global batch."""
    hidden = model.hidden(*batch.rows)
    options = dict(softcap=model.logit_softcap, unused=model.config.unused)
    return {"nll": chunked_cross_entropy(hidden, model.output_embedding(), batch.targets, batch.mask, **options)}


SFT = Objective(
    terms=sft_terms,
    denominators=lambda batch: {"nll": masked.masked_count(batch.mask)},
    weights={"nll": 1.0},
)
