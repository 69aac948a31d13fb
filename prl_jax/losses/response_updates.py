"""Policy updates on whole responses, beside the joint forms of `pairwise_ppo`: pairs token by token, and singles."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prl_jax.masked import check_floats, keep_rows, row_weights
from prl_jax.types import LossOutput


def pair_token_loss(
    logp: Float[Array, "B 2 T"],
    logp_old: Float[Array, "B 2 T"],
    logp_ref: Float[Array, "B 2 T"],
    mask: Bool[Array, "B 2 T"],
    gap: Float[Array, "B"],
    *,
    beta: float | Float[Array, ""] = 0.05,
    eps: float = 0.2,
    c: float = 10.0,
    weight: Float[Array, "B"] | Bool[Array, "B"] | None = None,
) -> LossOutput:
    """P3O's separate form: each token of either response is clipped by itself.

    With q and w as in `pairwise_policy_loss`, `q = gap - beta z`, and `s` 1 for the first response and -1 for the
    second: `L = sum over both of sum_t max(-s q w logp_t, -s q w clip(logp_t, old_t - eps, old_t + eps)) / 2`.

    Args:
      logp, logp_old, logp_ref: `[B, 2, T]` log-probabilities of two responses to each prompt, under the policy that is
        trained, the one that sampled and the reference; gradient through `logp` alone.
      mask: `[B, 2, T]` response tokens.
      gap: `[B]` reward of the first response minus that of the second; no gradient.
      beta: KL coefficient.
      eps: how far a token's log-probability may move.
      c: bound > 1 of the importance weight.
      weight: `[B]` float or bool; rows of weight 0 may hold anything.

    Returns:
      LossOutput whose denominator is the sum of weights. aux: 'clip_fraction' (of tokens), 'importance' (mean of w).

    Source: P3O (arXiv 2310.00212), version 1.
    """
    check_floats(3, logp=logp, logp_old=logp_old, logp_ref=logp_ref, mask=mask)
    if c < 1.0:
        raise ValueError(f"c: expected a number of at least 1, given {c}")
    weight = row_weights(weight, logp)
    mask = mask & (weight > 0)[:, None, None]
    logp, logp_old, logp_ref = (jnp.where(mask, x.astype(jnp.float32), 0.0) for x in (logp, logp_old, logp_ref))
    logp_old, logp_ref, gap = jax.lax.stop_gradient((logp_old, logp_ref, keep_rows(gap, weight)))
    ratios = jax.lax.stop_gradient((logp - logp_ref).sum(-1))
    moved = jax.lax.stop_gradient((logp - logp_old).sum((-1, -2)))
    importance = jnp.exp(jnp.clip(moved, -math.log(c), math.log(c)))
    q = gap - beta * (ratios[:, 0] - ratios[:, 1])
    factor = (-q * importance)[:, None, None] * jnp.array([1.0, -1.0])[None, :, None]
    plain, clipped = factor * logp, factor * jnp.clip(logp, logp_old - eps, logp_old + eps)
    loss = 0.5 * jnp.sum(jnp.where(mask, jnp.maximum(plain, clipped), 0.0), (-1, -2))
    total = jnp.sum(weight)
    stopped = weight[:, None, None] * ((clipped > plain) & mask)
    tokens = jnp.sum(weight[:, None, None] * mask)
    aux = {"clip_fraction": (jnp.sum(stopped), tokens), "importance": (jnp.sum(weight * importance), total)}
    return LossOutput(jnp.sum(weight * loss), total, aux)


def single_regression_loss(
    ratio: Float[Array, "B"],
    target: Float[Array, "B"],
    *,
    beta: float | Float[Array, ""] = 0.1,
    weight: Float[Array, "B"] | Bool[Array, "B"] | None = None,
) -> LossOutput:
    """`(beta log(pi / pi_ref) - target)^2` a response: its log-ratio fitted to how much it wins.

    Args:
      ratio: `[B]` log-ratios `sum_t (logp - logp_ref)` of whole responses.
      target: `[B]`, such as the win rate minus 1/2; no gradient.
      beta: coefficient of the divergence.
      weight: `[B]` float or bool; rows of weight 0 may hold anything.

    Returns:
      LossOutput whose denominator is the sum of weights. aux: 'margin' (mean of `beta ratio`).

    Source: SPPO (arXiv 2405.00675), equation 4.4 times `beta^2`, whose reference is the policy that sampled and which
    takes the normaliser for 1.
    """
    check_floats(1, ratio=ratio, target=target)
    weight = row_weights(weight, ratio)
    ratio, target = keep_rows(ratio, weight), jax.lax.stop_gradient(keep_rows(target, weight))
    z, total = beta * ratio, jnp.sum(weight)
    aux = jax.lax.stop_gradient({"margin": (jnp.sum(weight * z), total)})
    return LossOutput(jnp.sum(weight * jnp.square(z - target)), total, aux)
