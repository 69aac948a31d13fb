"""Rewards a token, KL estimates and generalised advantage estimation.

Responses are right-padded: a row's mask is true on its first `length` tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prl_jax.masked import (
    EXP_LIMIT,
    bounded_exp,
    check_floats,
    check_option,
    masked_count,
    masked_mean,
    masked_whiten,
    per_row,
)

KL_KINDS = ("k1", "k2", "k3")
GROUP_KINDS = ("leave_one_out", "mean", "standardised")


def kl_estimate(
    logp: Float[Array, "B T"],
    logp_ref: Float[Array, "B T"],
    kind: str = "k1",
    *,
    mask: Bool[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """Estimate a token of KL(policy || reference) from a sample of the policy.

    With `d = logp_ref - logp`: k1 `-d` (unbiased, either sign), k2 `d^2 / 2` (its gradient is that of the token's KL
    given what stands before it), k3 `exp(d) - 1 - d` (unbiased, never negative; its gradient is that of
    KL(reference || policy)). Beyond `d = 20` k3 follows its tangent, so that it stays finite.

    Args:
      logp, logp_ref: `[B, T]` log-probabilities of the sampled tokens. The reference gets no gradient.
      kind: 'k1', 'k2' or 'k3'. k1 belongs into a reward, where it leads to `ref exp(r / beta)`; k2 or k3 into a loss,
        where a token is not charged for the KL of those after it.
      mask: `[B, T]`; where false the result is 0.

    Source: J. Schulman, "Approximating KL divergence" (2020).
    """
    check_floats(2, logp=logp, logp_ref=logp_ref, mask=mask)
    check_option("kind", kind, KL_KINDS)
    d = jax.lax.stop_gradient(logp_ref.astype(jnp.float32)) - logp.astype(jnp.float32)
    if mask is not None:
        d = jnp.where(mask, d, 0.0)
    if kind == "k1":
        return -d
    if kind == "k2":
        return 0.5 * jnp.square(d)
    # expm1 keeps the digits that exp(d) - 1 loses near 0.
    return jnp.where(d > EXP_LIMIT, bounded_exp(d) - 1.0, jnp.expm1(jnp.minimum(d, EXP_LIMIT))) - d


def token_rewards(
    score: Float[Array, "B"], kl: Float[Array, "B T"], mask: Bool[Array, "B T"], beta: float | Float[Array, ""]
) -> Float[Array, "B T"]:
    """`-beta kl` a token, plus the score on the last response token; float32, 0 where the mask is false.

    Args:
      score: `[B]` reward of each response.
      kl: `[B, T]` KL estimate a token (k1 of the sampling policy to the reference).
      mask: `[B, T]` response tokens, the stop token included. The last true one gets the score; an empty row gets none.
      beta: KL coefficient.
    """
    check_floats(2, kl=kl, mask=mask)
    score = per_row("score", score, kl)
    length = jnp.sum(mask, axis=1)
    last = jnp.arange(mask.shape[1])[None] == length[:, None] - 1
    penalty = jnp.where(mask, -beta * kl.astype(jnp.float32), 0.0)
    return penalty + jnp.where(last, score[:, None], 0.0)


def gae(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    bootstrap: Float[Array, "B"] | float | int = 0.0,
    gamma: float = 1.0,
    lam_actor: Float[Array, "B"] | float | int = 0.95,
    lam_critic: Float[Array, "B"] | float | int = 1.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Generalised advantage estimates for the policy and returns for the critic, each with its own lambda.

    With `delta_t = r_t + gamma V_{t+1} - V_t`, where V after the last token is `bootstrap`:
    `A_t = delta_t + gamma lam A_{t+1}`, and `return_t = A_t(lam_critic) + V_t`.

    Args:
      rewards, values: `[B, T]`.
      mask: `[B, T]`, right-padded.
      bootstrap: `[B]` or a number, the value after the last token: 0 after a real end.
      gamma: discount.
      lam_actor, lam_critic: `[B]` or numbers in [0, 1].

    Returns:
      Advantages and returns, `[B, T]` float32, 0 where the mask is false, without gradient.

    Source: Schulman et al. (arXiv 1506.02438), equation 16; two lambdas after VC-PPO (arXiv 2503.01491).
    """
    check_floats(2, rewards=rewards, values=values, mask=mask)
    rewards, values = (jnp.where(mask, x.astype(jnp.float32), 0.0) for x in (rewards, values))
    bootstrap, lam_actor, lam_critic = (
        per_row(name, x, rewards)
        for name, x in (("bootstrap", bootstrap), ("lam_actor", lam_actor), ("lam_critic", lam_critic))
    )
    inside = jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
    following = jnp.where(inside, jnp.pad(values[:, 1:], ((0, 0), (0, 1))), bootstrap[:, None])
    delta = jnp.where(mask, rewards + gamma * following - values, 0.0)
    decay = gamma * jnp.stack([lam_actor, lam_critic])

    def step(later: Float[Array, "2 B"], now: tuple[Float[Array, "B"], Bool[Array, "B"]]):
        delta_t, mask_t = now
        advantage = jnp.where(mask_t[None], delta_t[None] + decay * later, 0.0)
        return advantage, advantage

    _, both = jax.lax.scan(step, jnp.zeros_like(decay), (delta.T, mask.T), reverse=True)
    actor, critic = both[:, 0].T, both[:, 1].T
    return jax.lax.stop_gradient(actor), jax.lax.stop_gradient(jnp.where(mask, critic + values, 0.0))


def length_adaptive_lambda(lengths: Int[Array, "B"], alpha: float = 0.05) -> Float[Array, "B"]:
    """`1 - 1 / (alpha length)`, at least 0: the longer the response, the less its end is discounted.

    Source: VAPO (arXiv 2504.05118).
    """
    return jnp.maximum(1.0 - 1.0 / (alpha * jnp.maximum(lengths.astype(jnp.float32), 1.0)), 0.0)


def group_advantage(
    r: Float[Array, "B G"],
    mask: Bool[Array, "B G"],
    *,
    kind: str = "leave_one_out",
    ddof: int = 1,
    eps: float = 1e-4,
) -> Float[Array, "B G"]:
    """Advantage of each response over its group, without a critic; float32, without gradient.

    Args:
      r: `[B, G]` rewards of `G` responses to each prompt, such as their win rates.
      mask: `[B, G]`, the responses that count; the others get 0.
      kind: 'leave_one_out' (RLOO, arXiv 2402.14740) `r_i` minus the mean of the others; 'mean' `r_i` minus the mean;
        'standardised' (GRPO, arXiv 2402.03300) `(r_i - mean) / (std + eps)`.
      ddof, eps: of the standard deviation: 1 for the sample's, 0 for the population's; added outside the root.

    Returns:
      `[B, G]`, adding up to 0 in each group. Groups of one, and of equal rewards, get 0.
    """
    check_floats(2, r=r, mask=mask)
    check_option("kind", kind, GROUP_KINDS)
    if kind == "standardised":
        return masked_whiten(r, mask, eps=eps, ddof=ddof, axis=-1)
    r = jax.lax.stop_gradient(jnp.where(mask, r.astype(jnp.float32), 0.0))
    advantage = jnp.where(mask, r - masked_mean(r, mask, -1)[:, None], 0.0)
    if kind == "mean":
        return advantage
    size = masked_count(mask, -1)[:, None]
    return advantage * size / jnp.maximum(size - 1.0, 1.0)


def difference_advantage(
    d: Float[Array, "B G M"], mask: Bool[Array, "B G M"], *, eps: float = 1e-6
) -> Float[Array, "B G"]:
    """Advantage of each response from how much better it is than each other of its group; float32, without gradient.

    `A_i = mean_j d_ij / sqrt(sum_ij d_ij^2 / (2 G (G - 1)) + eps)`, the mean over all `G` members, itself (0) included.
    With `d_ij = r_i - r_j` and `eps = 0` it is GRPO's with the sample's deviation. `eps` stands inside the root, as in
    the source: where differences are small it shrinks all advantages.

    Args:
      d: `[B, G, M]`, `M = G`, antisymmetric: by how much response i is better than response j.
      mask: `[B, G, M]`, the pairs that were judged between responses that count.
      eps: added inside the root.

    Source: Think-RM (arXiv 2505.16265), in its released form.
    """
    check_floats(3, d=d, mask=mask)
    if d.shape[1] != d.shape[2]:
        raise ValueError(f"d: expected shape (B, G, G), given {tuple(d.shape)}")
    d = jax.lax.stop_gradient(jnp.where(mask, d.astype(jnp.float32), 0.0))
    size = 1.0 + jnp.max(masked_count(mask, -1), axis=-1, keepdims=True)
    spread = jnp.sum(jnp.square(d), (1, 2))[:, None] / jnp.maximum(2.0 * size * (size - 1.0), 1.0) + eps
    return jnp.where(spread > 0, jnp.sum(d, -1) / size / jnp.sqrt(jnp.where(spread > 0, spread, 1.0)), 0.0)
