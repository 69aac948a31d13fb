"""The key-value cache of incremental decoding."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Cache(NamedTuple):
    """Keys and values of every layer, with room for `S` positions.

    Keys are stored as `[head_dim, S]`, so that the product with a query reads memory in order.

    Attributes:
      keys: a `[B, K, H, S]` array a layer.
      values: a `[B, K, S, H]` array a layer.
      mask: `[B, S]` bool, the slots that hold a real token.
      next_position: `[B]` int32, the position of the row's next token.
      slot: int32 scalar, where the next token is written, the same in every row. Slots form a ring: a window that
        reaches back behind the first one goes on at the last one (`sampling.continuous`).
    """

    keys: tuple[Float[Array, "B K H S"], ...]
    values: tuple[Float[Array, "B K S H"], ...]
    mask: Bool[Array, "B S"]
    next_position: Int[Array, "B"]
    slot: Int[Array, ""]


class Prefilled(NamedTuple):
    """The state once the prompts are read: the last hidden state of every row, and the cache."""

    hidden: Float[Array, "B D"]
    cache: Cache


# Logical axes of these arrays, by name: each device holds the rows that it decodes, or of these its heads.
CACHE_AXES = {
    "hidden": ("rows", "stream"),
    "keys": ("cached", "kept", "head_dim", "slots"),
    "values": ("cached", "kept", "slots", "head_dim"),
    "mask": ("cached", "slots"),
    "next_position": ("cached",),
}


def build_cache(
    keys: Float[Array, "L B P K H"], values: Float[Array, "L B P K H"], mask: Bool[Array, "B P"], room: int
) -> Cache:
    """A cache with the prompt's keys and values and `room` empty slots behind them."""
    layers, _, length, _, _ = keys.shape
    grow = lambda x, axis: jnp.pad(x, [(0, room if a == axis else 0) for a in range(x.ndim)])  # noqa: E731
    return Cache(
        keys=tuple(grow(keys[i].transpose(0, 2, 3, 1), 3) for i in range(layers)),
        values=tuple(grow(values[i].transpose(0, 2, 1, 3), 2) for i in range(layers)),
        mask=grow(mask, 1),
        next_position=mask.sum(-1, dtype=jnp.int32),
        slot=jnp.int32(length),
    )
