"""Rewards from win probabilities, and losses of pairs of responses.

Source: Pairwise-RL (arXiv 2504.04950), whose objective is not published; the joint clip is that of P3O
(arXiv 2310.00212).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from prl_jax.losses.preference import soft_cross_entropy, symmetrise
from prl_jax.masked import check_floats, check_option, keep_rows, masked_mean, row_weights
from prl_jax.types import LossOutput

REWARD_MAPS = ("id", "centred", "logit", "log", "hard", "signed", "verdicts")
HARD_MAPS = ("hard", "signed", "verdicts")  # those that see a winner, a loser or a tie, and no probability
OVERS = ("mean", "min", "sign")
LINKS = ("logistic", "squared")
OPPONENTS = ("anchor", "peer", "group", "pool")


def opponents(
    kind: str,
    exists: Bool[Array, "B G M"],
    *,
    keys: Key[Array, "B"] | None = None,
    draws: int = 1,
) -> Bool[Array, "B G M"]:
    """The opponents of each of `G` responses to a prompt, of `M` candidates.

    Args:
      kind: 'anchor' all candidates; 'pool' `draws` of them, drawn anew with each key and the same for the whole group;
        with the group's own members as candidates (`M = G`) 'peer' its neighbour, 0 with 1, 2 with 3 and so on, and
        'group' every other member.
      exists: `[B, G, M]`, the candidates that exist.
      keys: `[B]` a key for each prompt; 'pool' needs them.
      draws: opponents from the pool; all of them where there are fewer.

    Returns:
      `[B, G, M]`, the mask of `pairwise_rl_reward` once its first two axes are merged.
    """
    check_option("kind", kind, OPPONENTS)
    _, size, candidates = exists.shape
    if kind in ("peer", "group"):
        if size != candidates:
            raise ValueError(f"exists: expected shape (B, G, G) for {kind!r}, given {tuple(exists.shape)}")
        i, j = jnp.arange(size)[None, :, None], jnp.arange(size)[None, None]
        return exists & (i // 2 == j // 2 if kind == "peer" else True) & (i != j)
    if kind == "pool":
        if keys is None or draws < 1:
            raise ValueError(f"keys, draws: 'pool' needs a key a prompt and at least 1 draw, given {keys}, {draws}")
        lots = jax.vmap(lambda key: jax.random.uniform(key, (1, candidates)))(keys)
        lots = jnp.where(exists, lots, jnp.inf)
        rank = jnp.argsort(jnp.argsort(lots, axis=-1), axis=-1)
        return exists & (rank < draws)
    return exists


def mapped_wins(
    z_ya: Float[Array, "B M"],
    z_ay: Float[Array, "B M"],
    mask: Bool[Array, "B M"],
    *,
    space: str = "probability",
    f: str = "id",
    tie: float = 0.5,
    floor: float = 1e-4,
) -> Float[Array, "B M"]:
    """`f(P(the response beats the opponent))` of each comparison, `[B, M]` float32; what stands off the mask is open.

    The arguments are those of `pairwise_rl_reward`.
    """
    check_floats(2, z_ya=z_ya, z_ay=z_ay, mask=mask)
    check_option("f", f, REWARD_MAPS)
    z_ya, z_ay = jnp.where(mask, z_ya, 0.0), jnp.where(mask, z_ay, 0.0)
    if f == "verdicts":
        return 0.5 * (_outcome(z_ya, tie) + _outcome(-z_ay, tie))
    p = symmetrise(z_ya, z_ay, space)
    if f == "id":
        return p
    if f == "centred":
        return p - 0.5
    if f in HARD_MAPS:
        won = _outcome(p - 0.5, tie)
        return won if f == "hard" else 2.0 * won - 1.0
    p = jnp.clip(p, floor, 1.0 - floor)
    return jnp.log(p) - jnp.log1p(-p) if f == "logit" else jnp.log(p)


def _outcome(gap: Float[Array, "B M"], tie: float) -> Float[Array, "B M"]:
    """1 where the gap is above 0, 0 where it is below, `tie` where it is 0."""
    return jnp.where(gap > 0, 1.0, jnp.where(gap < 0, 0.0, jnp.float32(tie)))


def pairwise_rl_reward(
    z_ya: Float[Array, "B M"],
    z_ay: Float[Array, "B M"],
    mask: Bool[Array, "B M"],
    *,
    space: str = "probability",
    f: str = "id",
    over: str = "mean",
    tie: float = 0.5,
    floor: float = 1e-4,
) -> Float[Array, "B"]:
    """Reward of each response: over its opponents, `f(P(it beats the opponent))`.

    Args:
      z_ya: `[B, M]` judge logits with the response shown first and opponent m second.
      z_ay: `[B, M]` judge logits with opponent m shown first and the response second.
      mask: `[B, M]`, which opponents count. Without any the reward is 0.
      space: how the two orders are merged, see `symmetrise`.
      f: 'id' p; 'centred' p - 1/2; 'logit' log(p / (1 - p)); 'log' log p; 'hard' 1 for a win, `tie` for a tie, else 0;
        'signed' twice that minus 1; 'verdicts' the mean of what is 'hard' in each order, which merges nothing.
      over: 'mean' over the opponents; 'min' for the hardest of them; 'sign' for 1, 0 or -1 as the mean is above, at or
        below that of an even match.
      tie: what an exact tie is worth, of [0, 1].
      floor: 'logit' and 'log' clip p to [floor, 1 - floor] first.

    Returns:
      `[B]` float32. With one opponent, `f='id'` and a Bradley-Terry judge this is PAR (arXiv 2502.18770).
    """
    check_floats(2, z_ya=z_ya, z_ay=z_ay, mask=mask)
    check_option("over", over, OVERS)
    wins = mapped_wins(z_ya, z_ay, mask, space=space, f=f, tie=tie, floor=floor)
    if over == "min":
        return jnp.where(mask.any(-1), jnp.min(jnp.where(mask, wins, jnp.inf), -1, initial=jnp.inf), 0.0)
    mean = masked_mean(wins, mask, -1)
    return jnp.where(mask.any(-1), jnp.sign(mean - even_reward(f)), 0.0) if over == "sign" else mean


def even_reward(f: str = "id", over: str = "mean") -> float:
    """Returns `pairwise_rl_reward` of an even match: where a critic starts.

    If the policy equals its opponent then `E[p] = 1/2`, at every token, so that a critic that starts here has nothing
    to unlearn.
    """
    check_option("f", f, REWARD_MAPS)
    evens = {"id": 0.5, "logit": 0.0, "log": -math.log(2.0), "hard": 0.5, "verdicts": 0.5}
    return 0.0 if over == "sign" else evens.get(f, 0.0)


def pairwise_policy_loss(
    l1: Float[Array, "B"],
    l2: Float[Array, "B"],
    l1_old: Float[Array, "B"],
    l2_old: Float[Array, "B"],
    win: Float[Array, "B"],
    *,
    beta: float | Float[Array, ""] = 0.05,
    eps: float = 0.2,
    c: float = 10.0,
    weight: Float[Array, "B"] | Bool[Array, "B"] | None = None,
) -> LossOutput:
    """Policy update from two responses of a prompt and the probability that the first beats the second.

    P3O's joint form with win probabilities for rewards. Judged against each other, response 1 earns `p` and response 2
    `1 - p`, so that the reward gap is `2 p - 1` and no critic or calibrated score is needed. With `z = l1 - l2`:

      q = (2 p - 1) - beta z,   w = clip(exp((l1 - l1_old) + (l2 - l2_old)), 1/c, c)     (both without gradient)
      L = max(-q w z, -q w clip(z, z_old - eps, z_old + eps)) / 2

    On-policy its gradient is that of `(beta z - (2 p - 1))^2 / (4 beta)`: the log-ratio gap regresses on the win
    probability gap, and stops at `z = (2 p - 1) / beta`. With responses of the policy itself the optimum is that of
    self-play at half the coefficient, `ref exp(2 p(y > policy) / beta)`.

    Args:
      l1, l2: `[B]` log-ratios of the responses, `sum_t (logp - logp_ref)`, under the policy that is trained.
      l1_old, l2_old: `[B]` the same under the policy that sampled; no gradient.
      win: `[B]` symmetrised probability that response 1 beats response 2; no gradient.
      beta: KL coefficient.
      eps: clip range of the log-ratio gap.
      c: bound > 1 of the importance weight.
      weight: `[B]` float or bool; rows of weight 0 may hold anything.

    Returns:
      LossOutput whose denominator is the sum of weights. aux: 'clip_fraction', 'importance' (mean of w).
    """
    check_floats(1, l1=l1, l2=l2, l1_old=l1_old, l2_old=l2_old, win=win)
    if c < 1.0:
        raise ValueError(f"c: expected a number of at least 1, given {c}")
    weight = row_weights(weight, l1)
    l1, l2, l1_old, l2_old, win = (keep_rows(x, weight) for x in (l1, l2, l1_old, l2_old, win))
    l1_old, l2_old, win = jax.lax.stop_gradient((l1_old, l2_old, win))
    z, z_old = l1 - l2, l1_old - l2_old
    q = 2.0 * win - 1.0 - beta * z
    # Clipping the exponent is clipping the ratio, without an overflow.
    importance = jnp.exp(jnp.clip((l1 - l1_old) + (l2 - l2_old), -math.log(c), math.log(c)))
    q, importance = jax.lax.stop_gradient((q, importance))
    plain = -q * importance * z
    clipped = -q * importance * jnp.clip(z, z_old - eps, z_old + eps)
    loss = 0.5 * jnp.maximum(plain, clipped)
    total = jnp.sum(weight)
    aux = {
        "clip_fraction": (jnp.sum(weight * (clipped > plain)), total),
        "importance": (jnp.sum(weight * importance), total),
    }
    return LossOutput(jnp.sum(weight * loss), total, aux)


def pair_regression_loss(
    l1: Float[Array, "B"],
    l2: Float[Array, "B"],
    win: Float[Array, "B"],
    *,
    beta: float | Float[Array, ""] = 0.1,
    link: str = "logistic",
    weight: Float[Array, "B"] | Bool[Array, "B"] | None = None,
) -> LossOutput:
    """The gap of two log-ratios, `z = beta (l1 - l2)`, fitted to the probability that response 1 is better.

    Args:
      l1, l2: `[B]` log-ratios of the responses, `sum_t (logp - logp_ref)`, under the policy that is trained.
      win: `[B]` in [0, 1], the probability that response 1 beats response 2; no gradient.
      beta: coefficient of the divergence.
      link: 'logistic', cross-entropy of sigmoid(z) with `win` (DPO, arXiv 2305.18290), whose optimum is
        `ref exp(r / beta)` where the judge is a Bradley-Terry model of r; 'squared', `(z - (win - 1/2))^2` (IPO,
        arXiv 2310.12036), whose optimum on pairs of a sampler mu is `ref exp(p(y > mu) / beta)`.
      weight: `[B]` float or bool; rows of weight 0 may hold anything.

    Returns:
      LossOutput whose denominator is the sum of weights. aux: 'margin' (mean of z), 'agreement' (share of pairs, ties
      half, where z and `win` name the same response).
    """
    check_floats(1, l1=l1, l2=l2, win=win)
    check_option("link", link, LINKS)
    weight = row_weights(weight, l1)
    l1, l2, win = (keep_rows(x, weight) for x in (l1, l2, win))
    win = jax.lax.stop_gradient(win)
    z = beta * (l1 - l2)
    each = soft_cross_entropy(z, win) if link == "logistic" else jnp.square(z - (win - 0.5))
    total = jnp.sum(weight)
    agreement = 0.5 * (1.0 + jnp.sign(z) * jnp.sign(win - 0.5))
    aux = {"margin": (jnp.sum(weight * z), total), "agreement": (jnp.sum(weight * agreement), total)}
    return LossOutput(jnp.sum(weight * each), total, jax.lax.stop_gradient(aux))


def win_rate(P: Float[Array, "B G G"], mask: Bool[Array, "B G G"]) -> Float[Array, "B G"]:
    """Mean win probability of each response against the others of its group.

    Args:
      P: `[B, G, G]`, `P[b, i, j]` the probability that response i beats response j. The diagonal is ignored.
      mask: `[B, G, G]`, which pairs were judged.

    Returns:
      `[B, G]` float32; 0 for a response without opponents.

    Source: Pref-GRPO (arXiv 2508.20751), with probabilities for votes.
    """
    check_floats(3, P=P, mask=mask)
    if P.shape[1] != P.shape[2]:
        raise ValueError(f"P: expected shape (B, G, G), given {tuple(P.shape)}")
    return masked_mean(P, mask & ~jnp.eye(P.shape[1], dtype=bool)[None], -1)
