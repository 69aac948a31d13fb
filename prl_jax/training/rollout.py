"""The arrays that an update of the policy learns from, made of sampled responses."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prl_jax.losses import chunked_logprobs
from prl_jax.methods.surrogates import Frozen
from prl_jax.models import Decoder, ScalarModel, last_index
from prl_jax.sampling import WHOLE, Support
from prl_jax.types import TokenRows


class CriticContext(NamedTuple):
    """The critic's input before the response: `[N, C]` tokens and mask, left-padded."""

    tokens: Int[Array, "N C"]
    mask: Bool[Array, "N C"]


class Critique(NamedTuple):
    """The arrays that train the critic on `N` responses of up to `T` tokens.

    Attributes:
      rows: `[N, C + T]`, what it reads.
      values_old: `[N, T]` values before the update.
      returns: `[N, T]`, its targets.
    """

    rows: TokenRows
    values_old: Float[Array, "N T"]
    returns: Float[Array, "N T"]


class Experience(NamedTuple):
    """Rollouts of `N` rows with everything that stays fixed while the update goes over them.

    `T` is the padded length of responses; the row of the policy is `P` prompt positions, left-padded, and the response.

    Attributes:
      rows: `[N, P + T]`, what the policy reads.
      response: `[N, T]` int32.
      mask: `[N, T]` bool, response tokens, the stop token included.
      frozen: what the surrogate needs; its mask has the tokens that train the policy.
      critique: what trains the critic; None without one.
    """

    rows: TokenRows
    response: Int[Array, "N T"]
    mask: Bool[Array, "N T"]
    frozen: Frozen
    critique: Critique | None


def join_rows(
    context: Int[Array, "B P"], context_mask: Bool[Array, "B P"], response: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> TokenRows:
    """Left-padded context and right-padded response as one row; positions count from the first real token."""
    valid = jnp.concatenate([context_mask, mask], axis=1)
    positions = jnp.maximum(jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)
    return TokenRows(jnp.concatenate([context, response], axis=1), positions, valid.astype(jnp.int32))


def response_logprobs(
    model: Decoder,
    rows: TokenRows,
    response: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    temperature: float,
    support: Support = WHOLE,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probs of the response tokens and the entropy where they were chosen, `[B, T]` float32, 0 off the mask.

    `temperature` and `support` are those of sampling, so that the ratio compares the distributions that acted; what
    cannot be sampled has no probability here either.
    """
    hidden = model.hidden(*rows)[:, -response.shape[1] - 1 : -1]

    def tell(tokens: slice, early: bool) -> tuple[Float[Array, "B t"], Float[Array, "B t"]]:
        absent = model.config.unused + support.absent(model.config.unsampled, early=early)
        options = dict(temperature=temperature, softcap=model.logit_softcap, unused=absent)
        cut = (x[:, tokens] for x in (response, mask))
        return chunked_logprobs(hidden[:, tokens], model.output_embedding(), *cut, **options)

    if not support.min_new_tokens:
        return tell(slice(None), False)
    parts = tell(slice(support.min_new_tokens), True), tell(slice(support.min_new_tokens, None), False)
    (logp, entropy), (later_logp, later_entropy) = parts
    return jnp.concatenate([logp, later_logp], axis=1), jnp.concatenate([entropy, later_entropy], axis=1)


def response_values(critic: ScalarModel, rows: TokenRows, length: int) -> tuple[Float[Array, "B T"], Float[Array, "B"]]:
    """Values before each of the last `length` tokens, and after the last valid one, float32."""
    values = critic.values(rows)
    after = jnp.take_along_axis(values, last_index(rows.segments)[:, None], axis=1)[:, 0]
    return values[:, -length - 1 : -1], after
