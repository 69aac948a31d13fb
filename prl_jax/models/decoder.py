"""One decoder for every family."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prl_jax.masked import without_ids
from prl_jax.models.attention import attend, attention_mask, choose, softcapped
from prl_jax.models.cache import CACHE_AXES, Cache, Prefilled, build_cache
from prl_jax.models.config import DecoderConfig
from prl_jax.models.layers import Block, norm, place_at
from prl_jax.models.rope import Rotation, rotation
from prl_jax.sharding import DECODING, RULES, SPREAD, Rules, axes_of, constrain, constrain_tree, decoding, platform

MOST_UNROLLED = 12
_STREAM = ("batch", "length", "stream")


def _unroll(layers: int) -> bool | int:
    """On CPU a rolled scan over layers costs up to 1.8 times; where there are many, compile time decides."""
    return True if platform() == "cpu" and layers <= MOST_UNROLLED else 1


class Decoder(nnx.Module):
    """A causal language model.

    Layers are stacked: every parameter of `blocks` has a leading axis of size `config.layers`, and a `lax.scan` runs
    over it. The model gives hidden states; log-probabilities come from them and `output_embedding` in chunks.
    """

    def __init__(self, config: DecoderConfig, *, key: PRNGKeyArray):
        embed_key, blocks_key, head_key = jax.random.split(key, 3)
        self.config = config
        self.embedding = nnx.Param(_table(config, embed_key))
        self.blocks = jax.vmap(lambda k: Block(config, key=k))(jax.random.split(blocks_key, config.layers))
        self.norm = norm(config)
        if not config.tied_embeddings:
            self.head = nnx.Param(_table(config, head_key).T)

    def output_embedding(self) -> Float[Array, "D V"]:
        """`[D, V]`, in the compute dtype."""
        table = self.embedding[...].T if self.config.tied_embeddings else self.head[...]
        return table.astype(self.config.dtype)

    @property
    def logit_softcap(self) -> float | None:
        """The soft cap of the logits, as the losses take it."""
        return self.config.logit_softcap or None

    def _embed(self, tokens: Int[Array, "..."], rules: Rules = RULES) -> Float[Array, "... D"]:
        # The gradient of the table is cut like the table, not like the tokens.
        table = constrain(self.embedding[...], *LOGICAL_AXES["embedding"], rules=rules)
        x = table[tokens].astype(self.config.dtype)
        return x * jnp.asarray(self.config.width**0.5, x.dtype) if self.config.embed_scale else x

    def _angles(self, positions: Int[Array, "..."]) -> tuple[Rotation, Rotation]:
        """Returns the angles of layers with and without the window."""
        config = self.config
        far = rotation(positions, config.head_dim, config.rope_theta, config.rope_scaling)
        near = rotation(positions, config.head_dim, config.local_rope_theta) if config.local_rope_theta else far
        return near, far

    def _forward(self, tokens, positions, segments, *, with_cache: bool, index: Int[Array, "B M"] | None = None):
        """Final states, and keys and values for a cache. With an `index`, the states `[B, M, D]` at these places; where
        there are several, the row may hold branches."""
        near, far = self._angles(positions)
        local = self.config.local_layers
        mixed, of_all = any(local) and not all(local), near if all(local) else far
        branched = index is not None and index.shape[1] > 1
        case = self.config.attending(tokens.shape[1])._replace(branched=branched)
        sees = functools.partial(
            attend,
            segments=segments,
            backend=choose(self.config.attention, case)[0],
            softcap=self.config.attention_softcap,
            window=self.config.window if any(local) else 0,
        )

        def layer(x, block_and_local):
            # The gradient of a layer is cut like its parameters as soon as it is there.
            block, is_local = constrain_tree(block_and_local[0], LOGICAL_AXES), block_and_local[1]
            angles = jax.tree.map(lambda a, b: jnp.where(is_local, a, b), near, far) if mixed else of_all
            x, cached = block(x, angles, functools.partial(sees, local=is_local if mixed else True))
            return constrain(x, *_STREAM), (cached if with_cache else None)

        layer = jax.checkpoint(layer) if self.config.remat else layer
        xs = (self.blocks, jnp.asarray(local))
        # From where the table lies to where the rows lie, in steps, of which the compiler knows each one.
        x = constrain(self._embed(tokens), "batch", None, "embed", rules={**RULES, "batch": SPREAD["batch"]})
        x = constrain(constrain(x, "batch", None, "stream"), *_STREAM)
        unroll = _unroll(self.config.layers)
        # What the last layer gives elsewhere, nobody reads. (Cut off from a loop, a layer would be copied.)
        apart = index is not None and unroll is True
        x, cached = jax.lax.scan(layer, x, jax.tree.map(lambda a: a[:-1], xs) if apart else xs, unroll=unroll)
        if apart:
            block = constrain_tree(jax.tree.map(lambda a: a[-1], self.blocks), LOGICAL_AXES)
            reach = self.config.window if local[-1] else tokens.shape[1]
            mask = attention_mask(segments, reach, place_at(segments, index), index)
            x = block.at(x, near if local[-1] else far, index, mask)
        elif index is not None:
            x = place_at(x, index)
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

    def hidden_at(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
        index: Int[Array, "B M"],
    ) -> Float[Array, "B M D"]:
        """The final hidden states at some places of each row, as `hidden` has them."""
        return self._forward(tokens, positions, segments, with_cache=False, index=index)[0]

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """Logits of unpadded tokens, float32. For small uses: training never holds `[B, T, V]`."""
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return self.logits(self.hidden(tokens, positions, jnp.ones_like(tokens)))

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Float32 logits of hidden states."""
        logits = jnp.matmul(hidden, self.output_embedding(), preferred_element_type=jnp.float32)
        return without_ids(softcapped(logits, self.config.logit_softcap), self.config.unused)

    def prefill(self, tokens: Int[Array, "B P"], mask: Bool[Array, "B P"], room: int) -> Prefilled:
        """Reads left-padded prompts; the cache has `room` free slots."""
        positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
        hidden, (keys, values) = self._forward(tokens, positions, mask.astype(jnp.int32), with_cache=True)
        return constrain_tree(Prefilled(hidden[:, -1], build_cache(keys, values, mask, room)), CACHE_AXES)

    def for_decoding(self) -> Decoder:
        """The same model for `step`: matrices in the compute dtype, laid out for it. Once, outside a decode loop."""

        def cast(path, x):
            return x.astype(self.config.dtype) if axes_of(path, LOGICAL_AXES) else x

        model = jax.tree_util.tree_map_with_path(cast, self)
        for rules in (RULES, SPREAD, decoding()):  # in steps, of which the compiler knows each one
            model = constrain_tree(model, LOGICAL_AXES, rules=rules)
        return model

    def layers(self) -> list[Block]:
        """The blocks one by one: sliced once, outside a decode loop."""
        return [jax.tree.map(lambda x: x[i], self.blocks) for i in range(self.config.layers)]  # noqa: B023

    def step(self, tokens: Int[Array, "B"], cache: Cache, layers: list[Block]) -> tuple[Float[Array, "B D"], Cache]:
        """Reads one token a row against the cache; `layers` is what `layers()` gave."""
        near, far = self._angles(cache.next_position)
        slots = jnp.arange(cache.mask.shape[1])[None]
        mask = cache.mask | (slots == cache.slot)
        window = mask & ((cache.slot - slots) % slots.shape[1] < self.config.window)
        x, keys, values = self._embed(tokens, DECODING), [], []
        for block, local, k, v in zip(layers, self.config.local_layers, cache.keys, cache.values, strict=True):
            angles, seen = (near, window) if local else (far, mask)
            x, k, v = block.step(constrain(x, "decoded", "stream", rules=decoding()), angles, k, v, seen, cache.slot)
            keys.append(k)
            values.append(v)
        cache = Cache(tuple(keys), tuple(values), mask, cache.next_position + 1, cache.slot + 1)
        return self.norm(constrain(x, "batch", "stream", rules=DECODING)), cache


def _table(config: DecoderConfig, key: PRNGKeyArray) -> Float[Array, "V D"]:
    table = jax.random.normal(key, (config.vocab_size, config.width), jnp.float32) * 0.02
    return table.astype(config.param_dtype)


# Logical axes of the parameters, by the end of their path; stacked blocks have "layers" before these.
_INTO_HEADS, _INTO_KV, _INTO_MLP = ("embed", "heads"), ("embed", "kv"), ("embed", "mlp")
_MATRICES = {
    "q": _INTO_HEADS,
    "k": _INTO_KV,
    "v": _INTO_KV,
    "o": ("heads", "embed"),
    "gate": _INTO_MLP,
    "up": _INTO_MLP,
    "down": ("mlp", "embed"),
}
LOGICAL_AXES = {
    "embedding": ("vocab", "embed"),
    "head": ("embed", "vocab"),
    **{f"{name}.weight": axes for name, axes in _MATRICES.items()},
    **{f"{name}.bias": axes[1:] for name, axes in _MATRICES.items()},
    **{f"{name}.lora.a": (axes[0], "rank") for name, axes in _MATRICES.items()},
    **{f"{name}.lora.b": ("rank", axes[1]) for name, axes in _MATRICES.items()},
}
