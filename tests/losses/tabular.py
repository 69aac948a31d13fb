"""One prompt, seven responses and a policy that is a table: gradient descent on exact expectations.

A response is `0`, or `1` or `2` followed by one of three tokens, so that lengths differ and the first token's credit
depends on the second. Every loss is that of `prl_jax.losses`: it sees one row (or pair) at a time, and its sums and
denominators are added with the row's probability for weight, as an endless batch would add them.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prl_jax import losses
from prl_jax.losses import DirectTerms
from prl_jax.types import LossOutput

# What the policy has read before each token, and the token.
STATES = np.array([[0, 0], [0, 1], [0, 1], [0, 1], [0, 2], [0, 2], [0, 2]])
TOKENS = np.array([[0, 0], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]])
MASK = np.array([[True, False], *[[True, True]] * 6])
RESPONSES = len(MASK)
# Rollouts, and gradient steps on each: enough to move tokens beyond the clip.
ROLLOUTS, EPOCHS = 400, 4
REF_LOGITS = jnp.array([[0.2, 0.5, -0.3], [0.6, 0.0, -0.5], [-0.4, 0.1, 0.3]])


def token_logps(logits):
    """`[7, 2]` log-probabilities of every response's tokens; `logits` is `[state, token]`."""
    return jnp.where(MASK, jax.nn.log_softmax(logits)[STATES, TOKENS], 0.0)


def probabilities(logits):
    return jnp.exp(token_logps(logits).sum(-1))


REF = np.asarray(probabilities(REF_LOGITS), np.float64)


class Rows(NamedTuple):
    """The rows that a sampler can draw.

    Attributes:
      members: `[R, K]` responses that the policy draws together; the first one is trained on.
      score: `[R]` reward of the first member.
      share: `[R]` probability of whatever else is drawn, such as an opponent from a pool.
    """

    members: np.ndarray
    score: jax.Array
    share: np.ndarray | float = 1.0


def samples(score):
    """Rows of a policy whose responses have fixed scores `[7]`."""
    return Rows(draws(1), jnp.asarray(score, jnp.float32))


def draws(count):
    """`[7**count, count]`: every outcome of so many draws from the policy."""
    return np.array(list(itertools.product(range(RESPONSES), repeat=count)))


def expect(loss, weight, *rows):
    """`loss` of an endless batch that holds each row as often as its weight says."""

    def one(*row):
        out = loss(*(x[None] for x in row))
        return out.sum, out.denominator, out.aux

    return LossOutput(*jax.tree.map(lambda x: jnp.sum(weight * x), jax.vmap(one)(*rows)))


def kl_loss(logp, logp_ref, mask, *, kind, of, reduce):
    """The KL estimate as a loss, of every token or of the response as one."""
    if of == "response":
        logp, logp_ref, mask = (x.sum(-1, keepdims=True) for x in (logp, logp_ref, mask))
        mask = mask > 0
    return LossOutput(*losses.reduce_tokens(losses.kl_estimate(logp, logp_ref, kind, mask=mask), mask, reduce))


def ppo(
    rows, beta, *, kl="reward", kind="k1", lam=0.95, critic_rate=1.0, reduce="seq_mean_token_sum", options=()
):  # fmt: skip
    """PPO from the uniform policy: `[7]` probabilities at the end, and the largest share of clipped tokens.

    Args:
      rows: what is sampled.
      beta: KL coefficient.
      kl: "reward" (of tokens), or "tokens" or "response" for a term of the loss.
      kind: KL estimator.
      lam: GAE's lambda of the actor.
      critic_rate: step size of the critic, which starts at 0; 0 freezes it there.
      reduce, options: of `ppo_policy_loss`.
    """
    return _ppo(rows, beta, lam, critic_rate, kl, kind, reduce, options)


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7))
def _ppo(rows, beta, lam, critic_rate, kl, kind, reduce, options):
    beta, response = jnp.float32(beta), rows.members[:, 0]
    mask, logp_ref = jnp.asarray(MASK)[response], token_logps(REF_LOGITS)[response]
    lam = jnp.full(len(response), lam, jnp.float32)
    policy_loss = functools.partial(losses.ppo_policy_loss, reduce=reduce, **dict(options))

    def rollout(params, _):
        logits, values = params
        logp_old, v_old = token_logps(logits)[response], values[STATES][response]
        weight = rows.share * jnp.prod(probabilities(logits)[rows.members], -1)
        estimate = losses.kl_estimate(logp_old, logp_ref, kind, mask=mask)
        rewards = losses.token_rewards(rows.score, estimate, mask, beta if kl == "reward" else 0.0 * beta)
        adv, ret = losses.gae(rewards, v_old, mask, lam_actor=lam)

        def loss(params):
            logp, v = token_logps(params[0])[response], params[1][STATES][response]
            policy = expect(policy_loss, weight, logp, logp_old, adv, mask)
            total = policy.value + expect(losses.ppo_value_loss, weight, v, v_old, ret, mask).value
            if kl != "reward":
                term = functools.partial(kl_loss, kind=kind, of=kl, reduce=reduce)
                total += beta * expect(term, weight, logp, logp_ref, mask).value
            clipped, tokens = policy.aux["clip_fraction"]
            return total, clipped / tokens

        def epoch(params, _):
            (logits, values), clipped = jax.grad(loss, has_aux=True)(params)
            return (params[0] - logits / beta, params[1] - critic_rate * values), clipped

        return jax.lax.scan(epoch, params, None, EPOCHS)

    (logits, _), clipped = jax.lax.scan(rollout, (jnp.zeros((3, 3)), jnp.zeros(3)), None, ROLLOUTS)
    return probabilities(logits), clipped.max()


@functools.partial(jax.jit, static_argnames=("beta", "eps", "c"))
def joint_clip(win, *, beta, sampler=None, eps=0.2, c=10.0):
    """`pairwise_policy_loss` over all pairs, from the uniform policy: `[7]` probabilities at the end.

    Args:
      win: `[7, 7]` probability that the row's response beats the column's.
      beta, eps, c: of the loss.
      sampler: `[7]` probabilities of a fixed sampler; None samples anew from the policy.
    """
    i, j = draws(2).T

    def rollout(logits, _):
        mu = probabilities(logits) if sampler is None else sampler
        old = jnp.log(mu / REF)

        def loss(logits):
            ratio = (token_logps(logits) - token_logps(REF_LOGITS)).sum(-1)
            surrogate = functools.partial(losses.pairwise_policy_loss, beta=beta, eps=eps, c=c)
            return expect(surrogate, mu[i] * mu[j], ratio[i], ratio[j], old[i], old[j], win[i, j]).value

        def epoch(logits, _):
            return logits - jax.grad(loss)(logits) / beta, None

        return jax.lax.scan(epoch, logits, None, EPOCHS)

    return probabilities(jax.lax.scan(rollout, jnp.zeros((3, 3)), None, ROLLOUTS)[0])


def direct_terms(ratio_1, ratio_2, **given):
    """`DirectTerms` of these log-ratios: response 1 is better, no reference and no targets, unless they are given."""
    zeros, ones = jnp.zeros(ratio_1.shape), jnp.ones(ratio_1.shape)
    fields = dict(logp_1=ratio_1, logp_2=ratio_2, label=ones, target_1=zeros, target_2=zeros, scale=ones, weight=ones)
    return DirectTerms(ratio_1, ratio_2, **{**fields, "statistic": jnp.zeros(()), **given})


@functools.partial(jax.jit, static_argnames=("loss", "steps"))
def fit_pairs(loss, ref, mu, label, target_1, target_2, rate, statistic=0.0, steps=3000):
    """A direct loss over all pairs that a fixed sampler draws, from the reference policy of the bed.

    Args:
      loss: of `DirectTerms`.
      ref: `[7]` log-probs of the responses under the reference, which needs no normaliser.
      mu: `[7]` probabilities of the sampler.
      label: `[7, 7]` probability that the row's response beats the column's.
      target_1, target_2: `[7, 7]` targets of the row's response and of the column's.
      rate: step size of gradient descent.
      statistic, steps: of the loss; of gradient descent.

    Returns:
      `[7]` probabilities at the end.
    """
    i, j = draws(2).T
    data = dict(label=label[i, j], target_1=target_1[i, j], target_2=target_2[i, j], weight=mu[i] * mu[j])

    def value(logits):
        logp = token_logps(logits).sum(-1)
        ratio, fields = logp - ref, dict(logp_1=logp[i], logp_2=logp[j], statistic=jnp.asarray(statistic), **data)
        return loss(direct_terms(ratio[i], ratio[j], **fields)).value

    def step(logits, _):
        return logits - rate * jax.grad(value)(logits), None

    return probabilities(jax.lax.scan(step, REF_LOGITS, None, steps)[0])


# Closed forms, in float64 numpy


def gibbs(reward, beta, ref=REF):
    """The maximiser of `E[reward] - beta KL(. || ref)`."""
    weights = ref * np.exp((reward - np.max(reward)) / beta)
    return weights / weights.sum()


def forward_kl_optimum(reward, beta, ref=REF):
    """The maximiser of `E[reward] - beta KL(ref || .)`: `beta ref / (x - reward)`, with the x that makes it sum to 1.

    Source: Grill et al. (arXiv 2007.12509), equation 8.
    """
    low, high = np.max(reward + beta * ref), np.max(reward) + beta
    for _ in range(100):
        x = 0.5 * (low + high)
        low, high = (x, high) if np.sum(beta * ref / (x - reward)) > 1 else (low, x)
    return beta * ref / (x - reward)


def token_by_token(solve, reward, credit=1.0):
    """`solve(reward, ref)` in each state; a first token earns `credit` times the mean reward of what follows it."""
    branches = slice(1, 4), slice(4, 7)
    later = [solve(reward[rows], REF[rows] / REF[rows].sum()) for rows in branches]
    means = [credit * pi @ reward[rows] for pi, rows in zip(later, branches, strict=True)]
    first = solve(np.array([reward[0], *means]), np.array([REF[0], *(REF[rows].sum() for rows in branches)]))
    return np.concatenate([first[:1], first[1] * later[0], first[2] * later[1]])


def mirror_ascent(reward, beta, steps=800, rate=0.05):
    """Where `pi <- (pi^(1 - rate) ref^rate exp(rate reward(pi) / beta)) / Z` ends."""
    pi = np.full(RESPONSES, 1 / RESPONSES)
    for _ in range(steps):
        pi = gibbs(rate * reward(pi), beta, pi ** (1 - rate) * REF**rate)
    return pi


def total_variation(p, q):
    return 0.5 * np.abs(np.asarray(p, np.float64) - np.asarray(q, np.float64)).sum()
