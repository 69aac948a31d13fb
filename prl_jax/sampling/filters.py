"""The distribution that is sampled, made of logits, and draws from it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_BLOCK = 64  # The inverse CDF is taken over blocks first, then inside one.


def filtered_log_probs(
    logits: Float[Array, "B V"], *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Float[Array, "B V"]:
    """Log-probabilities of the distribution that is sampled, -inf on what the filters removed.

    Temperature first, then the `top_k` most likely tokens (0: all), then the smallest set of the most likely tokens
    whose probability reaches `top_p` (arXiv 1904.09751); ties with the last kept token stay. Last, the tokens with at
    least the share `min_p` of the likeliest one's probability (arXiv 2407.01082; 0: all). `temperature` is > 0.
    """
    logits = logits.astype(jnp.float32)
    if temperature != 1.0:
        # Relative to the largest: a small temperature makes large numbers, whose differences would be lost.
        logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature
    vocab = logits.shape[-1]
    if 0 < top_k < vocab:
        kth = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs
        last = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < last, -jnp.inf, logits)
    if min_p > 0.0:
        least = jnp.max(logits, axis=-1, keepdims=True) + math.log(min_p)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.nn.log_softmax(logits, axis=-1)


def penalised(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: float) -> Float[Array, "B V"]:
    """Logits that make tokens which a row has already less likely, for a penalty above 1 (arXiv 1909.05858, eq. 1, with
    negative logits multiplied, as transformers has it)."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample_categorical(uniform: Float[Array, "B"], log_probs: Float[Array, "B V"]) -> Int[Array, "B"]:
    """One draw a row by inverting the distribution function at `uniform` in [0, 1).

    Two levels, blocks then tokens: the same law as the Gumbel trick at a small part of its time on CPU, and one random
    number a row. A token of probability 0 is never drawn.
    """
    batch, vocab = log_probs.shape
    blocks = -(-vocab // _BLOCK)
    probs = jnp.pad(jnp.exp(log_probs), ((0, 0), (0, blocks * _BLOCK - vocab))).reshape(batch, blocks, _BLOCK)
    block, fraction = _invert(probs.sum(-1), uniform)
    inside, _ = _invert(jnp.take_along_axis(probs, block[:, None, None], axis=1)[:, 0], fraction)
    return (block * _BLOCK + inside).astype(jnp.int32)


def _invert(weights: Float[Array, "B N"], uniform: Float[Array, "B"]):
    """Index drawn in proportion to `weights`, and where in its interval `uniform` fell, again in [0, 1)."""
    upper = jnp.cumsum(weights, axis=-1)
    # Strictly below the total, so that rounding cannot step past the last index of positive weight.
    target = jnp.minimum(uniform * upper[:, -1], jnp.nextafter(upper[:, -1], jnp.float32(0)))[:, None]
    index = jnp.sum(upper <= target, axis=-1)
    weight = jnp.take_along_axis(weights, index[:, None], axis=-1)
    lower = jnp.take_along_axis(upper, index[:, None], axis=-1) - weight
    fraction = jnp.clip((target - lower) / weight, 0.0, 1.0 - 2.0**-24)
    return index, fraction[:, 0]
