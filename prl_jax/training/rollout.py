"""From sampled responses to what the PPO update learns from."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prl_jax.losses import chunked_logprobs
from prl_jax.models import Decoder, ScalarModel
from prl_jax.types import TokenRows


class Experience(NamedTuple):
    """Rollouts of `B` rows with everything that stays fixed while the update goes over them.

    `T` is the room of a response; the row of the policy is `P` prompt positions, left-padded, and the response.

    Attributes:
      rows: `[B, P + T]`, what the policy reads.
      critic_rows: what the critic reads: the same, or a longer context where it sees the anchor.
      response: `[B, T]` int32.
      mask: `[B, T]` bool, response tokens, the stop token included.
      loss_mask: `[B, T]` bool, those of them that train the policy.
      logp_old: `[B, T]` log-probs under the policy that sampled, by the trainer's forward pass.
      logp_ref: `[B, T]` log-probs under the reference.
      values_old: `[B, T]` values before the update.
      advantages: `[B, T]`, whitened over all valid tokens of the batch if asked for.
      returns: `[B, T]`, the critic's targets, taken before whitening.
    """

    rows: TokenRows
    critic_rows: TokenRows
    response: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    loss_mask: Bool[Array, "B T"]
    logp_old: Float[Array, "B T"]
    logp_ref: Float[Array, "B T"]
    values_old: Float[Array, "B T"]
    advantages: Float[Array, "B T"]
    returns: Float[Array, "B T"]


def join_rows(
    context: Int[Array, "B P"], context_mask: Bool[Array, "B P"], response: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> TokenRows:
    """Left-padded context and right-padded response as one row; positions count from the first real token."""
    valid = jnp.concatenate([context_mask, mask], axis=1)
    positions = jnp.maximum(jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)
    return TokenRows(jnp.concatenate([context, response], axis=1), positions, valid.astype(jnp.int32))


def response_logprobs(
    model: Decoder, rows: TokenRows, response: Int[Array, "B T"], mask: Bool[Array, "B T"], temperature: float
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probs of the response tokens and the entropy where they were chosen, `[B, T]` float32, 0 off the mask.

    `temperature` is that of sampling, so that the ratio compares the distributions that acted.
    """
    hidden = model.hidden(*rows)[:, -response.shape[1] - 1 : -1]
    options = dict(temperature=temperature, softcap=model.logit_softcap, unused=model.config.unused)
    return chunked_logprobs(hidden, model.output_embedding(), response, mask, **options)


def response_values(critic: ScalarModel, rows: TokenRows, length: int) -> tuple[Float[Array, "B T"], Float[Array, "B"]]:
    """Values before each of the last `length` tokens, and after the last one, float32."""
    values = critic.values(rows)
    return values[:, -length - 1 : -1], values[:, -1]
