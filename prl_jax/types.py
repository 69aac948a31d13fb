"""Pytrees that cross module borders."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossOutput:
    """A loss as a sum and a denominator, so that microbatches and devices add before anyone divides.

    Attributes:
      sum: float32 scalar, the masked sum of the loss.
      denominator: float32 scalar, how many units (tokens, pairs, sequences) the sum runs over.
      aux: name -> `(sum, count)`, float32 scalars, averaged in the same way.
    """

    sum: Float[Array, ""]
    denominator: Float[Array, ""]
    aux: dict[str, tuple[Float[Array, ""], Float[Array, ""]]] = dataclasses.field(default_factory=dict)

    @property
    def value(self) -> Float[Array, ""]:
        """`sum / denominator`; 0 where nothing was counted."""
        return self.sum / jnp.maximum(self.denominator, jnp.finfo(jnp.float32).tiny)


class TokenRows(NamedTuple):
    """Token sequences of one static length, padded on either side.

    Attributes:
      tokens: `[N, T]` int32.
      positions: `[N, T]` int32, counted from the first real token (or as a template asks).
      segments: `[N, T]` int32, 0 on padding, else the number of the segment that attention may not leave.
    """

    tokens: Int[Array, "N T"]
    positions: Int[Array, "N T"]
    segments: Int[Array, "N T"]


class ScoredPairs(NamedTuple):
    """Pairs for a scalar model, which reads one response in each row.

    Attributes:
      response_1, response_2: rows of `B` pairs.
      label: `[B]` float32, the probability that response 1 is the better one (0.5 for a tie).
      weight: `[B]` float32, 0 for rows that only fill the batch.
    """

    response_1: TokenRows
    response_2: TokenRows
    label: Float[Array, "B"]
    weight: Float[Array, "B"]


class ComparedPairs(NamedTuple):
    """Pairs for a generative judge, which reads both responses in each row.

    Attributes:
      order_12, order_21: rows of `B` pairs, with response 1 in the first slot and in the second one.
      label: `[B]` float32, the probability that response 1 is the better one (0.5 for a tie).
      weight: `[B]` float32, 0 for rows that only fill the batch.
    """

    order_12: TokenRows
    order_21: TokenRows
    label: Float[Array, "B"]
    weight: Float[Array, "B"]


class SFTBatch(NamedTuple):
    """Demonstrations. `targets[b, t]` is the token after `rows.tokens[b, t]`; `mask` marks targets that count."""

    rows: TokenRows
    targets: Int[Array, "B T"]
    mask: Bool[Array, "B T"]


class DirectPairs(NamedTuple):
    """Pairs for a policy that learns from them directly, with what frozen models say of them.

    Attributes:
      response_1, response_2: the responses of `B` pairs behind their prompts.
      reference: `[B, 2]` float32, log-probabilities of both responses under the references, each summed over its
        tokens, mixed by their weights; 0 without a reference.
      label: `[B]` float32, the probability that response 1 is the better one (0.5 for a tie).
      target: `[B, 2]` float32, a number a response (win rates or scores), for losses that read any.
      score_gap: `[B]` float32, by how much a score prefers response 1, for betas that depend on it.
      weight: `[B]` float32, 0 for rows that only fill the batch.
      mismatched: prompts with the response to another one, for losses that read any; else None.
      reference_mismatched: `[B]` float32, as `reference`; None with it.
    """

    response_1: SFTBatch
    response_2: SFTBatch
    reference: Float[Array, "B 2"]
    label: Float[Array, "B"]
    target: Float[Array, "B 2"]
    score_gap: Float[Array, "B"]
    weight: Float[Array, "B"]
    mismatched: SFTBatch | None = None
    reference_mismatched: Float[Array, "B"] | None = None


class Rollout(NamedTuple):
    """Sampled responses to `B` prompts.

    Attributes:
      prompt: `[B, P]` int32, left-padded.
      prompt_mask: `[B, P]` bool.
      response: `[B, T]` int32, right-padded.
      mask: `[B, T]` bool, true on response tokens, what ended the response included: a stop token, or the tokens of a
        stop string.
      logp: `[B, T]` float32, the sampler's log-probabilities of the distribution that was sampled.
      truncated: `[B]` bool, true where the response ran out of room before it ended, or began to repeat itself.
    """

    prompt: Int[Array, "B P"]
    prompt_mask: Bool[Array, "B P"]
    response: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    logp: Float[Array, "B T"]
    truncated: Bool[Array, "B"]
