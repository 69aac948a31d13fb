"""How much a response counts that another policy has sampled.

Source: truncated importance sampling (Ionides 2008, "Truncated Importance Sampling"), in PPO whose ratio is to a policy
between the two (arXiv 2110.00641, section 3; arXiv 2505.24298, equation 5).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prl_jax.losses.ppo import RATIO_LEVELS
from prl_jax.masked import bounded_exp, check_floats, check_option, masked_mean


def truncated_importance(
    logp: Float[Array, "B T"],
    logp_sampled: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    cap: float,
    level: str = "token",
) -> Float[Array, "B T"]:
    """`min(exp(logp - logp_sampled), cap)`, `[B, T]` float32 without gradient, 0 off the mask.

    Args:
      logp: `[B, T]` log-probabilities under the policy that is trained, before its update.
      logp_sampled: `[B, T]` the same under the policy that sampled.
      mask: `[B, T]` response tokens.
      cap: the most that a weight may be, at least 1: it bounds the variance, and the bias is that of the cut tokens.
      level: 'token', or 'sequence' for one weight a response, `exp(mean_t(logp - logp_sampled))`, beside ratios of that
        kind (GSPO, arXiv 2507.18071).
    """
    check_floats(2, logp=logp, logp_sampled=logp_sampled, mask=mask)
    check_option("level", level, RATIO_LEVELS)
    if cap < 1:
        raise ValueError(f"cap: expected at least 1, given {cap}")
    logp, logp_sampled = (jnp.where(mask, x.astype(jnp.float32), 0.0) for x in (logp, logp_sampled))
    log_ratio = logp - logp_sampled
    if level == "sequence":
        log_ratio = jnp.broadcast_to(masked_mean(log_ratio, mask, -1)[:, None], mask.shape)
    weights = jnp.minimum(bounded_exp(log_ratio), cap)
    return jax.lax.stop_gradient(jnp.where(mask, weights, 0.0))
