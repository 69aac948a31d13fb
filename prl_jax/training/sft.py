"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

import functools

from prl_jax import masked
from prl_jax.losses import chunked_cross_entropy
from prl_jax.models import Decoder
from prl_jax.models.packing import pack
from prl_jax.training.step import Objective
from prl_jax.types import LossOutput, SFTBatch


def sft_terms(model: Decoder, batch: SFTBatch, *, packed: int = 0) -> dict[str, LossOutput]:
    """Cross-entropy of the response tokens, the stop token included: a mean over tokens of the global batch."""
    if packed:
        together = pack(batch.rows, packed)
        batch = SFTBatch(together.rows, together.spread(batch.targets), together.spread(batch.mask))
    hidden = model.hidden(*batch.rows)
    options = dict(softcap=model.logit_softcap, unused=model.config.unused)
    return {"nll": chunked_cross_entropy(hidden, model.output_embedding(), batch.targets, batch.mask, **options)}


def sft_objective(packed: int = 0) -> Objective:
    """Imitation of demonstrations.

    Args:
      packed: how many rows the model reads those of a microbatch in (`packing.pack`); 0 for as they are.
    """
    denominators = lambda batch: {"nll": masked.masked_count(batch.mask)}  # noqa: E731
    return Objective(functools.partial(sft_terms, packed=packed), denominators, {"nll": 1.0})


SFT = sft_objective()
