"""Checksums of arrays, made where the arrays are: the same on any number of devices, in any layout."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def checksums(arrays: Mapping[str, jax.Array]) -> dict[str, int]:
    """A 32-bit checksum of each array's bits, in one pass over all of them on their devices.

    It is the sum modulo 2**32 of the words of the array, each mixed with its position: a changed word always shows,
    words that changed places do but once in 2**32. A sum of integers has no order, so that the layout doesn't matter.
    """
    sums = np.asarray(_compiled(_everywhere(arrays))(dict(arrays)))
    return {name: int(value) for name, value in zip(sorted(arrays), sums, strict=True)}


def digest(value: Any) -> int:
    """A 32-bit checksum of what JSON holds."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _everywhere(arrays: Mapping[str, jax.Array]) -> NamedSharding | None:
    """The same value on every device of the arrays' mesh: each process reads it."""
    shardings = [array.sharding for array in arrays.values()]
    return next((NamedSharding(s.mesh, PartitionSpec()) for s in shardings if isinstance(s, NamedSharding)), None)


@functools.cache
def _compiled(sharding: NamedSharding | None) -> Any:
    return jax.jit(_all_sums, out_shardings=sharding)


def _all_sums(arrays: dict[str, jax.Array]) -> jax.Array:
    return jnp.stack([_sum(arrays[name]) for name in sorted(arrays)])


def _sum(array: jax.Array) -> jax.Array:
    words = array.astype(jnp.uint8) if array.dtype == jnp.bool_ else array
    words = jax.lax.bitcast_convert_type(words, _WORDS[words.dtype.itemsize]).astype(jnp.uint32)
    position, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        position += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    # Each line maps the words of one position one to one (the constants of MurmurHash3's finaliser).
    mixed = words ^ (position * jnp.uint32(0x9E3779B1))
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
