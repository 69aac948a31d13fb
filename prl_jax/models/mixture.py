"""Two decoders that are sampled as one: the geometric mixture of their distributions, token by token."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prl_jax.models.cache import Cache, Prefilled
from prl_jax.models.config import DecoderConfig
from prl_jax.models.decoder import Decoder
from prl_jax.models.layers import Block


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MixedDecoder:
    """Gives the next token a probability proportional to `policy^(1 - share) * reference^share`.

    It is decoded like a `Decoder`: hidden states stand side by side, `[B, 2 D]`, and the layers of its cache are those
    of the policy and then those of the reference.

    Attributes:
      policy, reference: decoders of one vocabulary and one width.
      share: the weight of the reference, in [0, 1]; at 0 and at 1 the tokens are those of one of them alone.

    Source: Nash-MD (arXiv 2312.00886), section 7.
    """

    policy: Decoder
    reference: Decoder
    share: float = dataclasses.field(metadata=dict(static=True))

    @property
    def config(self) -> DecoderConfig:
        return self.policy.config

    def prefill(self, tokens: Int[Array, "B P"], mask: Bool[Array, "B P"], room: int) -> Prefilled:
        """As of `Decoder`."""
        (one, mine), (other, its) = (model.prefill(tokens, mask, room) for model in (self.policy, self.reference))
        cache = mine._replace(keys=mine.keys + its.keys, values=mine.values + its.values)
        return Prefilled(jnp.concatenate([one, other], -1), cache)

    def for_decoding(self) -> MixedDecoder:
        """As of `Decoder`."""
        return MixedDecoder(self.policy.for_decoding(), self.reference.for_decoding(), self.share)

    def layers(self) -> list[Block]:
        """The blocks of both, one by one."""
        return self.policy.layers() + self.reference.layers()

    def step(self, tokens: Int[Array, "B"], cache: Cache, layers: list[Block]) -> tuple[Float[Array, "B D"], Cache]:
        """As of `Decoder`."""
        count, parts = self.policy.config.layers, []
        for model, of in ((self.policy, slice(count)), (self.reference, slice(count, None))):
            part = cache._replace(keys=cache.keys[of], values=cache.values[of])
            parts.append(model.step(tokens, part, layers[of]))
        (one, mine), (other, its) = parts
        cache = mine._replace(keys=mine.keys + its.keys, values=mine.values + its.values)
        return jnp.concatenate([one, other], -1), cache

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Float32 logits of hidden states: the weighted mean of both."""
        one, other = jnp.split(hidden, 2, -1)
        return (1.0 - self.share) * self.policy.logits(one) + self.share * self.reference.logits(other)
