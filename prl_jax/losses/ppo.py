"""Proximal policy optimisation: clipped policy loss, clipped value loss, entropy.

Source: Schulman et al. (arXiv 1707.06347).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prl_jax.losses.advantages import kl_estimate
from prl_jax.masked import bounded_exp, check_floats, check_option, masked_count, masked_mean, masked_sum
from prl_jax.types import LossOutput

REDUCTIONS = ("token_mean", "seq_mean_token_sum", "seq_mean_token_mean", "seq_mean_room_mean")
RATIO_LEVELS = ("token", "sequence")


def reduce_tokens(
    x: Float[Array, "B T"], mask: Bool[Array, "B T"], reduce: str
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum and denominator of a loss a token.

    'token_mean' counts tokens. The others count the sequences that have any token, and add over each of them:
    'seq_mean_token_sum' the sum, 'seq_mean_token_mean' the mean, 'seq_mean_room_mean' the sum over the room `T`, so
    that tokens of long and short responses weigh the same (Dr. GRPO, arXiv 2503.20783).
    """
    check_option("reduce", reduce, REDUCTIONS)
    if reduce == "token_mean":
        return masked_sum(x, mask), masked_count(mask)
    each = masked_mean(x, mask, -1) if reduce == "seq_mean_token_mean" else masked_sum(x, mask, -1)
    room = mask.shape[-1] if reduce == "seq_mean_room_mean" else 1
    return jnp.sum(each) / room, masked_count(jnp.any(mask, axis=-1))


def ppo_policy_loss(
    logp: Float[Array, "B T"],
    logp_old: Float[Array, "B T"],
    adv: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual: float | None = None,
    reduce: str = "token_mean",
    ratio_level: str = "token",
) -> LossOutput:
    """Clipped surrogate `max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))` with `rho = exp(logp - logp_old)`.

    Args:
      logp: `[B, T]` log-probabilities under the policy that is trained.
      logp_old: `[B, T]` the same under the policy that sampled; no gradient.
      adv: `[B, T]` advantages; no gradient.
      mask: `[B, T]` response tokens.
      clip_low, clip_high: clip range.
      dual: c > 1 caps the loss of negative advantages at `-c A` (dual clip, arXiv 1912.09729).
      reduce: see `reduce_tokens`.
      ratio_level: 'token', or 'sequence' for one ratio a response, `exp(mean_t(logp - logp_old))` (GSPO,
        arXiv 2507.18071).

    Returns:
      LossOutput, denominator as `reduce` says. aux, over tokens: 'clip_fraction' (where the clipped term is the one
      that counts), 'approx_kl' (k3 of old to new), 'ratio'.
    """
    check_floats(2, logp=logp, logp_old=logp_old, adv=adv, mask=mask)
    check_option("ratio_level", ratio_level, RATIO_LEVELS)
    if dual is not None and dual <= 1.0:
        raise ValueError(f"dual: expected a number above 1, given {dual}")
    adv = jnp.where(mask, jax.lax.stop_gradient(adv.astype(jnp.float32)), 0.0)
    logp = jnp.where(mask, logp.astype(jnp.float32), 0.0)
    logp_old = jnp.where(mask, jax.lax.stop_gradient(logp_old.astype(jnp.float32)), 0.0)
    log_ratio = logp - logp_old
    if ratio_level == "sequence":
        log_ratio = jnp.where(mask, masked_mean(log_ratio, mask, -1)[:, None], 0.0)
    ratio = bounded_exp(log_ratio)
    plain, clipped = -adv * ratio, -adv * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    loss = jnp.maximum(plain, clipped)
    if dual is not None:
        loss = jnp.where(adv < 0, jnp.minimum(loss, -adv * dual), loss)
    total, denominator = reduce_tokens(loss, mask, reduce)
    kl = kl_estimate(logp_old, jax.lax.stop_gradient(logp), "k3", mask=mask)
    means = {"clip_fraction": clipped > plain, "approx_kl": kl, "ratio": ratio}
    return LossOutput(total, denominator, token_means(means, mask))


def ppo_value_loss(
    v: Float[Array, "B T"],
    v_old: Float[Array, "B T"],
    ret: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    clip_value: float | Float[Array, ""] | None = None,
) -> LossOutput:
    """`max((v - ret)^2, (v_clip - ret)^2) / 2` a token, `v_clip = v_old + clip(v - v_old, -clip_value, clip_value)`.

    Args:
      v: `[B, T]` values that are trained.
      v_old: `[B, T]` values when the rollout was made; no gradient.
      ret: `[B, T]` returns; no gradient.
      mask: `[B, T]`.
      clip_value: clip range; None for no clipping.

    Returns:
      LossOutput, denominator in tokens. aux, over tokens: 'clip_fraction', 'value', 'return'.
    """
    check_floats(2, v=v, v_old=v_old, ret=ret, mask=mask)
    v = jnp.where(mask, v.astype(jnp.float32), 0.0)
    v_old, ret = (jnp.where(mask, jax.lax.stop_gradient(x.astype(jnp.float32)), 0.0) for x in (v_old, ret))
    plain = jnp.square(v - ret)
    clipped = plain if clip_value is None else jnp.square(v_old + jnp.clip(v - v_old, -clip_value, clip_value) - ret)
    total = masked_sum(0.5 * jnp.maximum(plain, clipped), mask)
    means = {"clip_fraction": clipped > plain, "value": v, "return": ret}
    return LossOutput(total, masked_count(mask), token_means(means, mask))


def entropy_loss(entropy: Float[Array, "B T"], mask: Bool[Array, "B T"], *, reduce: str = "token_mean") -> LossOutput:
    """Minus the entropy, so that adding `c_H` times this loss rewards entropy.

    Args:
      entropy: `[B, T]` entropy of the next-token distribution, nats.
      mask: `[B, T]`.
      reduce: see `reduce_tokens`.

    Returns:
      LossOutput, with aux 'entropy' over tokens.
    """
    check_floats(2, entropy=entropy, mask=mask)
    entropy = jnp.where(mask, entropy.astype(jnp.float32), 0.0)
    total, denominator = reduce_tokens(-entropy, mask, reduce)
    return LossOutput(total, denominator, token_means({"entropy": entropy}, mask))


def token_means(
    means: dict[str, Float[Array, "B T"] | Bool[Array, "B T"]], mask: Bool[Array, "B T"]
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Sum and count of each of these `[B, T]` arrays over the mask, without gradient: the aux of a loss."""
    count = masked_count(mask)
    return {name: (masked_sum(jax.lax.stop_gradient(x.astype(jnp.float32)), mask), count) for name, x in means.items()}
