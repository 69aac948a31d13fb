"""The parts of a decoder block. Modules are plain pytrees: no call changes them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, Shaped

from prl_jax.models.attention import attention_weights, mix
from prl_jax.models.config import DecoderConfig, LoraConfig
from prl_jax.models.rope import Rotation, rotate
from prl_jax.sharding import DECODING, constrain, decoding, parts

# Modules go through jax.jit, jax.grad and jax.lax.scan as ordinary pytrees.
nnx.set_graph_mode(False)

# Queries, keys and values of whole rows -> what they mix (`attention.attend`, with all but these given).
Attend = Callable[
    [Float[Array, "B T K G H"], Float[Array, "B T K H"], Float[Array, "B T K H"]], Float[Array, "B T K G H"]
]


class Lora(nnx.Module):
    """A low-rank update of a linear map (arXiv 2106.09685), nothing at the start."""

    def __init__(self, fan_in: int, fan_out: int, config: LoraConfig, *, key: PRNGKeyArray):
        self.a = nnx.Param(jax.random.normal(key, (fan_in, config.rank), jnp.float32) * fan_in**-0.5)
        self.b = nnx.Param(jnp.zeros((config.rank, fan_out), jnp.float32))
        self.scale, self.dropout = config.scale, config.dropout
        self.keys: Key[Array, "R"] | None = None  # of the rows, from `with_dropout`

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... F"]:
        if self.keys is not None:
            # `[R T, D]` or `[R, T, D]`: a row has the same mask in whatever batch it is.
            shape = (x.size // (self.keys.size * x.shape[-1]), x.shape[-1])
            kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.dropout, shape))(self.keys)
            x = jnp.where(kept.reshape(x.shape), x / (1.0 - self.dropout), 0.0).astype(x.dtype)
        return (x @ self.a[...].astype(x.dtype)) @ self.b[...].astype(x.dtype) * self.scale


class Linear(nnx.Module):
    """`x weight + bias`, in the dtype of `x`, and the adapter if there is one."""

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        config: DecoderConfig,
        *,
        key: PRNGKeyArray,
        bias: bool = False,
        gain: float = 1.0,
        adapted: bool = False,
    ):
        weight = jax.random.normal(key, (fan_in, fan_out), jnp.float32) * (gain * fan_in**-0.5)
        self.weight = nnx.Param(weight.astype(config.param_dtype))
        self.bias = nnx.Param(jnp.zeros((fan_out,), config.param_dtype)) if bias else None
        lora_key = jax.random.fold_in(key, 1)
        self.lora = Lora(fan_in, fan_out, config.lora, key=lora_key) if adapted and config.lora is not None else None

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... F"]:
        rows = _flat(x)
        out = rows @ self.weight[...].astype(x.dtype)
        if self.bias is not None:
            out = out + jax.lax.broadcast_to_rank(self.bias[...].astype(x.dtype), out.ndim)
        if self.lora is not None:
            out = out + self.lora(rows)
        return out.reshape(*x.shape[:-1], out.shape[-1])


def _heads(x: Float[Array, "... F"], axis: str, head_dim: int) -> Float[Array, "... N H"]:
    """Lays out what a matrix gave, of rows or of the tokens of a decoding step, and cuts it into heads."""
    x = _decoded(x, axis) if x.ndim == 2 else constrain(x, "batch", "length", axis)
    return x.reshape(*x.shape[:-1], -1, head_dim)


def _decoded(x: Float[Array, "B F"], axis: str) -> Float[Array, "B F"]:
    """Lays out what a matrix gave for the tokens of a decoding step where the cache has their rows."""
    return constrain(constrain(x, "decoded", axis, rules=decoding()), "cached", "kept")


def _flat(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """`[N, D]` of any `[..., D]`, so that a weight's gradient is a plain matmul.

    XLA's CPU backend runs it a quarter faster than a contraction over batch and time. Where both are cut, they
    stay apart.
    """
    return x if parts("length") > 1 else x.reshape(-1, x.shape[-1])


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation (arXiv 1910.07467), computed in float32; `offset` is added to the scale."""

    def __init__(self, width: int, eps: float, *, offset: float = 0.0, dtype: str = "float32"):
        self.scale = nnx.Param(jnp.full((width,), 1.0 - offset, dtype))
        self.eps, self.offset = eps, offset

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32)
        scale = jax.lax.broadcast_to_rank(scale + self.offset if self.offset else scale, x.ndim)
        return (wide * inverse * scale).astype(x.dtype)


def place_at(x: Shaped[Array, "B T *rest"], index: Int[Array, "B M"]) -> Shaped[Array, "B M *rest"]:
    """Some places of each row."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)


def norm(config: DecoderConfig, width: int | None = None) -> RMSNorm:
    """A norm as the config asks for, over `width` numbers, by default those of the residual stream."""
    return RMSNorm(width or config.width, config.norm_eps, offset=config.norm_offset, dtype=config.param_dtype)


class Attention(nnx.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary positions."""

    def __init__(self, config: DecoderConfig, *, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        width, queries, shared = config.width, config.heads * config.head_dim, config.kv_heads * config.head_dim
        linear = functools.partial(_linear, config)
        self.q = linear("q", width, queries, keys[0], bias=config.qkv_bias)
        self.k = linear("k", width, shared, keys[1], bias=config.qkv_bias)
        self.v = linear("v", width, shared, keys[2], bias=config.qkv_bias)
        self.o = linear("o", queries, width, keys[3], bias=config.o_bias, gain=(2 * config.layers) ** -0.5)
        self.q_norm = norm(config, config.head_dim) if config.qk_norm else None
        self.k_norm = norm(config, config.head_dim) if config.qk_norm else None
        self.kv_heads, self.head_dim, self.cap = config.kv_heads, config.head_dim, config.attention_softcap
        self.scale = config.query_scale or config.head_dim**-0.5

    def queries(self, x: Float[Array, "... D"], angles: Rotation) -> Float[Array, "... K G H"]:
        """Scaled queries."""
        q = _heads(self.q(x), "heads", self.head_dim)
        q = rotate(q if self.q_norm is None else self.q_norm(q), angles) * self.scale
        return q.reshape(*q.shape[:-2], self.kv_heads, -1, self.head_dim)

    def keys_and_values(self, x: Float[Array, "... D"], angles: Rotation):
        """Keys and values `[..., K, H]`."""
        k, v = (_heads(part(x), "kv", self.head_dim) for part in (self.k, self.v))
        return rotate(k if self.k_norm is None else self.k_norm(k), angles), v

    def project(self, x: Float[Array, "... D"], angles: Rotation):
        """Queries `[..., K, G, H]`, scaled, keys and values `[..., K, H]`."""
        return (self.queries(x, angles), *self.keys_and_values(x, angles))

    def __call__(self, x: Float[Array, "B T D"], angles: Rotation, attend: Attend):
        """Returns the output `[B, T, D]` and the keys and values `[B, T, K, H]` for a cache."""
        q, k, v = self.project(x, angles)
        # A query sees keys of the whole row.
        k, v = (constrain(part, "batch", None, "kv", None) for part in (k, v))
        mixed = attend(q, k, v)
        return self.o(mixed.reshape(*x.shape[:-1], -1)), (k, v)

    def at(
        self, x: Float[Array, "B T D"], angles: Rotation, index: Int[Array, "B M"], mask: Bool[Array, "B M T"]
    ) -> Float[Array, "B M D"]:
        """The output at some places of each row, which see the tokens of `mask`."""
        q = self.queries(place_at(x, index), Rotation(*(place_at(part, index) for part in angles)))
        k, v = (constrain(part, "batch", None, "kv", None) for part in self.keys_and_values(x, angles))
        return self.o(mix(q, k, v, mask, self.cap).reshape(*index.shape, -1))

    def step(
        self,
        x: Float[Array, "B D"],
        angles: Rotation,
        keys: Float[Array, "B K H S"],
        values: Float[Array, "B K S H"],
        mask: Bool[Array, "B S"],
        slot: Int[Array, ""],
    ):
        """One token against the cache: writes its key and value at `slot`, returns output, keys, values."""
        q, k, v = self.project(x, angles)
        keys = jax.lax.dynamic_update_slice(keys, k[..., None].astype(keys.dtype), (0, 0, 0, slot))
        values = jax.lax.dynamic_update_slice(values, v[:, :, None].astype(values.dtype), (0, 0, slot, 0))
        scores = jnp.einsum("bkgh,bkhs->bkgs", q, keys, preferred_element_type=jnp.float32)
        weights = attention_weights(scores, mask[:, None, None], self.cap).astype(x.dtype)
        mixed = jnp.einsum("bkgs,bksh->bkgh", weights, values)
        mixed = constrain(mixed.reshape(x.shape[0], -1), "cached", "kept")
        mixed = self.o(constrain(mixed, "decoded", "heads", rules=decoding()))
        return constrain(mixed, "decoded", "stream", rules=decoding()), keys, values


class MLP(nnx.Module):
    """Gated feed-forward layers (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, *, key: PRNGKeyArray):
        keys = jax.random.split(key, 3)
        linear = functools.partial(_linear, config, bias=config.mlp_bias)
        self.gate = linear("gate", config.width, config.mlp_width, keys[0])
        self.up = linear("up", config.width, config.mlp_width, keys[1])
        self.down = linear("down", config.mlp_width, config.width, keys[2], gain=(2 * config.layers) ** -0.5)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        decoded = x.ndim == 2  # the tokens of a decoding step
        rows = constrain(x, "batch", "stream", rules=DECODING) if decoded else _flat(x)
        gate = self.gate(rows)
        gate = jax.nn.silu(gate) if self.activation == "silu" else jax.nn.gelu(gate, approximate=True)
        out = self.down(gate * self.up(rows)).reshape(x.shape)
        return constrain(out, "decoded", "stream", rules=decoding()) if decoded else out


def _linear(config: DecoderConfig, name: str, fan_in: int, fan_out: int, key: PRNGKeyArray, **options: Any) -> Linear:
    adapted = config.lora is not None and name in config.lora.targets
    return Linear(fan_in, fan_out, config, key=key, adapted=adapted, **options)


class Block(nnx.Module):
    """Pre-norm residual block; with `post_norms` what is added to the stream is normalised too."""

    def __init__(self, config: DecoderConfig, *, key: PRNGKeyArray):
        attention_key, mlp_key = jax.random.split(key)
        self.attention_norm = norm(config)
        self.attention = Attention(config, key=attention_key)
        self.attention_post_norm = norm(config) if config.post_norms else None
        self.mlp_norm = norm(config)
        self.mlp = MLP(config, key=mlp_key)
        self.mlp_post_norm = norm(config) if config.post_norms else None

    def __call__(self, x: Float[Array, "B T D"], angles: Rotation, attend: Attend):
        mixed, cached = self.attention(self.attention_norm(x), angles, attend)
        return self._rest(x, mixed), cached

    def at(
        self, x: Float[Array, "B T D"], angles: Rotation, index: Int[Array, "B M"], mask: Bool[Array, "B M T"]
    ) -> Float[Array, "B M D"]:
        """The stream behind the block at some places of each row."""
        return self._rest(place_at(x, index), self.attention.at(self.attention_norm(x), angles, index, mask))

    def step(self, x, angles, keys, values, mask, slot):
        mixed, keys, values = self.attention.step(self.attention_norm(x), angles, keys, values, mask, slot)
        return self._rest(x, mixed), keys, values

    def _rest(self, x: Float[Array, "... D"], mixed: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """The stream after attention, whose output is `mixed`, and the feed-forward part."""
        x = x + (mixed if self.attention_post_norm is None else self.attention_post_norm(mixed))
        mixed = self.mlp(self.mlp_norm(x))
        return x + (mixed if self.mlp_post_norm is None else self.mlp_post_norm(mixed))
