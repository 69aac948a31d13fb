"""One decoder for every family."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prl_jax.models.cache import Cache, build_cache
from prl_jax.models.config import DecoderConfig
from prl_jax.models.layers import Block, RMSNorm, attention_mask, rotation


def _unroll() -> bool | int:
    """On CPU a rolled scan over layers costs up to 1.8 times; on accelerators compile time decides."""
    return True if jax.default_backend() == "cpu" else 1


class Decoder(nnx.Module):
    """A causal language model.

    Layers are stacked: every parameter of `blocks` has a leading axis of size `config.layers`, and a `lax.scan` runs
    over it. The model gives hidden states; log-probabilities come from them and `output_embedding` in chunks.
    """

    def __init__(self, config: DecoderConfig, *, key: PRNGKeyArray):
        embed_key, blocks_key, head_key = jax.random.split(key, 3)
        self.config = config
        shape = (config.vocab_size, config.width)
        self.embedding = nnx.Param(jax.random.normal(embed_key, shape, jnp.float32) * 0.02)
        self.blocks = jax.vmap(lambda k: Block(config, key=k))(jax.random.split(blocks_key, config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        if not config.tied_embeddings:
            self.head = nnx.Param(jax.random.normal(head_key, shape[::-1], jnp.float32) * 0.02)

    def output_embedding(self) -> Float[Array, "D V"]:
        """`[D, V]`, in the compute dtype."""
        table = self.embedding[...].T if self.config.tied_embeddings else self.head[...]
        return table.astype(self.config.dtype)

    def _embed(self, tokens: Int[Array, "..."]) -> Float[Array, "... D"]:
        return self.embedding[...][tokens].astype(self.config.dtype)

    def _forward(self, tokens, positions, segments, *, with_cache: bool):
        angles = rotation(positions, self.config.head_dim, self.config.rope_theta)
        mask = attention_mask(segments)

        def layer(x, block):
            x, cached = block(x, angles, mask)
            return x, (cached if with_cache else None)

        layer = jax.checkpoint(layer) if self.config.remat else layer
        x, cached = jax.lax.scan(layer, self._embed(tokens), self.blocks, unroll=_unroll())
        return self.norm(x), cached

    def hidden(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], segments: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Final hidden states, in the compute dtype.

        Args:
          tokens, positions, segments: as in `prl_jax.types.TokenRows`. Attention is causal in the order of the row,
            stays inside a segment, and never looks at padding (segment 0), whose own states are finite and unused.
        """
        return self._forward(tokens, positions, segments, with_cache=False)[0]

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """Logits of unpadded tokens, float32. For small uses: training never holds `[B, T, V]`."""
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return self.logits(self.hidden(tokens, positions, jnp.ones_like(tokens)))

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Float32 logits of hidden states."""
        return jnp.matmul(hidden, self.output_embedding(), preferred_element_type=jnp.float32)

    def prefill(
        self, tokens: Int[Array, "B P"], mask: Bool[Array, "B P"], room: int
    ) -> tuple[Float[Array, "B D"], Cache]:
        """Reads left-padded prompts; returns the last hidden state and a cache with `room` free slots."""
        positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
        hidden, (keys, values) = self._forward(tokens, positions, mask.astype(jnp.int32), with_cache=True)
        return hidden[:, -1], build_cache(keys, values, mask, room)

    def layers(self) -> list[Block]:
        """The blocks one by one: sliced once, outside a decode loop."""
        return [jax.tree.map(lambda x: x[i], self.blocks) for i in range(self.config.layers)]  # noqa: B023

    def step(self, tokens: Int[Array, "B"], cache: Cache, layers: list[Block]) -> tuple[Float[Array, "B D"], Cache]:
        """Reads one token a row against the cache; `layers` is what `layers()` gave."""
        angles = rotation(cache.next_position, self.config.head_dim, self.config.rope_theta)
        mask = cache.mask | (jnp.arange(cache.mask.shape[1]) == cache.slot)
        x, keys, values = self._embed(tokens), [], []
        for block, k, v in zip(layers, cache.keys, cache.values, strict=True):
            x, k, v = block.step(x, angles, k, v, mask, cache.slot)
            keys.append(k)
            values.append(v)
        cache = Cache(tuple(keys), tuple(values), mask, cache.next_position + 1, cache.slot + 1)
        return self.norm(x), cache


# Logical axes of the parameters by name; stacked blocks have "layers" before these.
LOGICAL_AXES = {
    "embedding": ("vocab", "embed"),
    "head": ("embed", "vocab"),
    "q": ("embed", "heads"),
    "k": ("embed", "heads"),
    "v": ("embed", "heads"),
    "o": ("heads", "embed"),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}
