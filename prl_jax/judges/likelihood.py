"""How likely a policy finds a response."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from prl_jax.losses import chunked_logprobs
from prl_jax.models import Decoder
from prl_jax.models.packing import pack
from prl_jax.types import SFTBatch


def response_log_probs(model: Decoder, rows: SFTBatch, packed: int = 0) -> Float[Array, "B"]:
    """Log-probability of each response, its end included, behind its prompt: a sum over tokens, float32.

    Args:
      model: a policy.
      rows: prompts with responses.
      packed: how many rows the model reads these in (`packing.pack`); 0 for as they are.
    """
    options = dict(softcap=model.logit_softcap, unused=model.config.unused)
    if packed:
        together = pack(rows.rows, packed)
        targets, mask = together.spread(rows.targets), together.spread(rows.mask)
        logp, _ = chunked_logprobs(model.hidden(*together.rows), model.output_embedding(), targets, mask, **options)
        return together.of_rows(logp)
    hidden = model.hidden(*rows.rows)
    logp, _ = chunked_logprobs(hidden, model.output_embedding(), rows.targets, rows.mask, **options)
    return logp.sum(-1)


@jax.jit
def frozen_log_probs(model: Decoder, rows: SFTBatch) -> Float[Array, "B"]:
    """`response_log_probs` of a model that is not trained."""
    return response_log_probs(model, rows)
