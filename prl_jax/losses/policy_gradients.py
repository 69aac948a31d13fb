"""Policy losses that weigh log-probabilities by advantages, without the clipped ratio of PPO."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prl_jax.losses.advantages import kl_estimate
from prl_jax.losses.ppo import reduce_tokens, token_means
from prl_jax.masked import bounded_exp, check_floats
from prl_jax.types import LossOutput


def reinforce_loss(
    logp: Float[Array, "B T"],
    logp_old: Float[Array, "B T"],
    adv: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    reduce: str = "token_mean",
) -> LossOutput:
    """`-A log pi` a token (REINFORCE): no ratio, so that only the first update of a batch follows the true gradient.

    Args:
      logp: `[B, T]` log-probabilities under the policy that is trained.
      logp_old: `[B, T]` the same under the policy that sampled, for the metrics alone.
      adv: `[B, T]` advantages; no gradient.
      mask: `[B, T]` response tokens.
      reduce: see `reduce_tokens`.

    Returns:
      LossOutput, denominator as `reduce` says. aux, over tokens: 'approx_kl' (k3 of old to new).
    """
    logp, logp_old, adv = _kept(logp, logp_old, adv, mask)
    return _output(-adv * logp, {}, logp, logp_old, mask, reduce)


def cispo_loss(
    logp: Float[Array, "B T"],
    logp_old: Float[Array, "B T"],
    adv: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    low: float = 1.0,
    high: float = 0.28,
    reduce: str = "token_mean",
) -> LossOutput:
    """`-clip(rho, 1 - low, 1 + high) A log pi` a token, the clipped ratio without gradient.

    Unlike in PPO a clipped token still moves the policy, by a bounded step.

    Args:
      logp, logp_old, adv, mask, reduce: as in `reinforce_loss`; here `logp_old` weighs the tokens.
      low, high: the bounds of the ratio; `low=1` has no lower bound.

    Returns:
      LossOutput. aux, over tokens: 'clip_fraction' (where the ratio is beyond a bound), 'approx_kl', 'ratio'.

    Source: MiniMax-M1 (arXiv 2506.13585), equation 4.
    """
    logp, logp_old, adv = _kept(logp, logp_old, adv, mask)
    ratio = jax.lax.stop_gradient(bounded_exp(logp - logp_old))
    weight = jnp.clip(ratio, 1.0 - low, 1.0 + high)
    means = {"clip_fraction": weight != ratio, "ratio": ratio}
    return _output(-weight * adv * logp, means, logp, logp_old, mask, reduce)


def _kept(logp, logp_old, adv, mask):
    """Float32, 0 off the mask; only the policy that is trained keeps its gradient."""
    check_floats(2, logp=logp, logp_old=logp_old, adv=adv, mask=mask)
    logp, logp_old, adv = (jnp.where(mask, x.astype(jnp.float32), 0.0) for x in (logp, logp_old, adv))
    return logp, *jax.lax.stop_gradient((logp_old, adv))


def _output(loss, means, logp, logp_old, mask, reduce) -> LossOutput:
    kl = kl_estimate(logp_old, jax.lax.stop_gradient(logp), "k3", mask=mask)
    return LossOutput(*reduce_tokens(loss, mask, reduce), token_means({**means, "approx_kl": kl}, mask))
