"""The parts of a decoder block. Modules are plain pytrees: no call changes them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prl_jax.models.config import DecoderConfig

# Modules go through jax.jit, jax.grad and jax.lax.scan as ordinary pytrees.
nnx.set_graph_mode(False)

# Not -inf: a row whose keys are all masked (padding) must give finite numbers and finite gradients.
_MASKED = -1e30


def _matrix(key: PRNGKeyArray, fan_in: int, fan_out: int, gain: float = 1.0) -> nnx.Param:
    return nnx.Param(jax.random.normal(key, (fan_in, fan_out), jnp.float32) * (gain * fan_in**-0.5))


def _linear(x: Float[Array, "... D"], weight: nnx.Param) -> Float[Array, "... F"]:
    """`x @ weight` in the dtype of `x`, over rows: one flat contraction makes the weight's gradient a plain matmul,
    which XLA's CPU backend runs a quarter faster than a contraction over batch and time."""
    rows = x.reshape(-1, x.shape[-1]) @ weight[...].astype(x.dtype)
    return rows.reshape(*x.shape[:-1], rows.shape[-1])


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation (arXiv 1910.07467), computed in float32."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * inverse * self.scale[...]).astype(x.dtype)


class Rotation(NamedTuple):
    """Cosines and sines of the rotary embedding, `[..., head_dim / 2]` float32."""

    cos: Float[Array, "... H"]
    sin: Float[Array, "... H"]


def rotation(positions: Int[Array, "..."], head_dim: int, theta: float) -> Rotation:
    """Rotary angles (arXiv 2104.09864) at integer positions."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "... n H"], angles: Rotation) -> Float[Array, "... n H"]:
    """Rotates each head (axis -2) by the angles of its position; halves are paired as in Llama."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = angles.cos[..., None, :], angles.sin[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attention_mask(segments: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Causal attention within a segment; padding (segment 0) is never a key."""
    same = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    return same & jnp.tril(jnp.ones((segments.shape[1],) * 2, bool))


class Attention(nnx.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary positions."""

    def __init__(self, config: DecoderConfig, *, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        width, queries, shared = config.width, config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q = _matrix(keys[0], width, queries)
        self.k = _matrix(keys[1], width, shared)
        self.v = _matrix(keys[2], width, shared)
        self.o = _matrix(keys[3], queries, width, gain=(2 * config.layers) ** -0.5)
        self.kv_heads, self.head_dim = config.kv_heads, config.head_dim

    def project(self, x: Float[Array, "... D"], angles: Rotation):
        """Queries `[..., K, G, H]` scaled by `head_dim ** -0.5`, keys and values `[..., K, H]`."""
        heads = lambda w: _linear(x, w).reshape(*x.shape[:-1], -1, self.head_dim)  # noqa: E731
        q = rotate(heads(self.q), angles) * self.head_dim**-0.5
        k, v = rotate(heads(self.k), angles), heads(self.v)
        return q.reshape(*q.shape[:-2], self.kv_heads, -1, self.head_dim), k, v

    def output(self, x: Float[Array, "... N"]) -> Float[Array, "... D"]:
        return _linear(x, self.o)

    def __call__(self, x: Float[Array, "B T D"], angles: Rotation, mask: Bool[Array, "B T T"]):
        """Returns the output `[B, T, D]` and the keys and values `[B, T, K, H]` for a cache."""
        q, k, v = self.project(x, angles)
        scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, _MASKED), axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bkgts,bskh->btkgh", weights, v)
        return self.output(mixed.reshape(*x.shape[:-1], -1)), (k, v)

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
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, _MASKED), axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bkgs,bksh->bkgh", weights, values)
        return self.output(mixed.reshape(x.shape[0], -1)), keys, values


class MLP(nnx.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, *, key: PRNGKeyArray):
        keys = jax.random.split(key, 3)
        self.gate = _matrix(keys[0], config.width, config.mlp_width)
        self.up = _matrix(keys[1], config.width, config.mlp_width)
        self.down = _matrix(keys[2], config.mlp_width, config.width, gain=(2 * config.layers) ** -0.5)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        rows = x.reshape(-1, x.shape[-1])
        hidden = jax.nn.silu(_linear(rows, self.gate)) * _linear(rows, self.up)
        return _linear(hidden, self.down).reshape(x.shape)


class Block(nnx.Module):
    """Pre-norm residual block."""

    def __init__(self, config: DecoderConfig, *, key: PRNGKeyArray):
        attention_key, mlp_key = jax.random.split(key)
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, key=attention_key)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config, key=mlp_key)

    def __call__(self, x: Float[Array, "B T D"], angles: Rotation, mask: Bool[Array, "B T T"]):
        mixed, cached = self.attention(self.attention_norm(x), angles, mask)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), cached

    def step(self, x, angles, keys, values, mask, slot):
        mixed, keys, values = self.attention.step(self.attention_norm(x), angles, keys, values, mask, slot)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), keys, values
