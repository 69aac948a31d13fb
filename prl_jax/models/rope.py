"""Rotary position embeddings (arXiv 2104.09864), and how they are stretched."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prl_jax.models.config import RopeScaling


class Rotation(NamedTuple):
    """Cosines and sines of the rotary embedding, `[..., head_dim / 2]` float32."""

    cos: Float[Array, "... H"]
    sin: Float[Array, "... H"]


def rotation(positions: Int[Array, "..."], head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Rotation:
    """Rotary angles at integer positions."""
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    factor = 1.0
    if scaling is not None:
        frequencies = stretched(frequencies, head_dim, theta, scaling)
        factor = scaling.attention_factor if scaling.kind == "yarn" else 1.0
    places = positions[..., None].astype(jnp.float32)
    angles = places * jax.lax.broadcast_to_rank(jnp.asarray(frequencies, jnp.float32), places.ndim)
    return Rotation(jnp.cos(angles) * factor, jnp.sin(angles) * factor)


def stretched(frequencies: np.ndarray, head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """Rotary frequencies, `[head_dim / 2]`, as a scaling leaves them."""
    return {"linear": _linear, "llama3": _llama3, "yarn": _yarn}[scaling.kind](frequencies, head_dim, theta, scaling)


def rotate(x: Float[Array, "... n H"], angles: Rotation) -> Float[Array, "... n H"]:
    """Rotates each head (axis -2) by the angles of its position; halves are paired as in Llama."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = angles.cos[..., None, :], angles.sin[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _linear(frequencies: np.ndarray, head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    return frequencies / scaling.factor


def _llama3(frequencies: np.ndarray, head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """Short wavelengths stay, long ones are stretched, those between are blended."""
    turns = scaling.original_positions * frequencies / (2 * math.pi)  # over the original context
    kept = (turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
    kept = np.clip(kept, 0.0, 1.0)
    return kept * frequencies + (1.0 - kept) * frequencies / scaling.factor


def _yarn(frequencies: np.ndarray, head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """Dimensions that turn often stay, those that turn seldom are stretched, a linear ramp between them."""

    def dimension(turns: float) -> float:
        return head_dim * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low if high != low else 0.001), 0.0, 1.0)
    return (1.0 - ramp) * frequencies + ramp * frequencies / scaling.factor
