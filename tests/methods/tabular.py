"""Any method on one prompt whose policy is a table: its own pieces, over every group that the policy can draw."""

import functools

import jax
import jax.numpy as jnp
from losses.tabular import EPOCHS, MASK, REF_LOGITS, ROLLOUTS, STATES, draws, probabilities, token_logps

from prl_jax.methods import Judgements, Method, Values
from prl_jax.methods.baselines import Rewards
from prl_jax.methods.surrogates import Frozen


@functools.partial(jax.jit, static_argnames=("method", "group_size"))
def descend(method: Method, group_size: int, logits_judge, scores, anchors):
    """`[7]` probabilities of the policy that gradient descent ends at, from the uniform one.

    Args:
      method: its pieces; a critic is a table of states that starts at 0.
      group_size: responses that are drawn together.
      logits_judge: `[7, 7]` logits of "the row's response beats the column's", the same in both orders.
      scores: `[7]` what a scoring judge says.
      anchors: `[M]` responses that are anchors.
    """
    members = draws(group_size)
    flat = members.reshape(-1)
    mask, logp_ref = jnp.asarray(MASK)[flat], token_logps(REF_LOGITS)[flat]
    reward = method.reward(_judged(method, members, logits_judge, scores, anchors))
    beta = jnp.float32(method.regulariser.coefficient)
    truncated = jnp.zeros(group_size, bool)
    grouped = lambda x: x.reshape(-1, group_size, *x.shape[1:])  # noqa: E731

    def rollout(params, _):
        logits, values = params
        logp_old, v_old = token_logps(logits)[flat], values[STATES][flat]
        weight = jnp.prod(probabilities(logits)[members], -1)
        last = jnp.arange(2)[None] == mask.sum(-1, keepdims=True) - 1
        tokens = method.regulariser.reward(logp_old, logp_ref, beta) + jnp.where(last, reward[:, None], 0.0)

        def advantages(tokens, mask, v_old):
            values = Values(v_old, jnp.zeros(group_size)) if method.baseline.reads_values else None
            found, returns = method.baseline(Rewards(tokens, mask, mask, truncated, group_size), values)
            return found, v_old if returns is None else returns

        found, returns = jax.vmap(advantages)(*map(grouped, (tokens, mask, v_old)))

        def one(logp, logp_old, logp_ref, advantages, mask, v, v_old, returns):
            loss = method.surrogate(logp, Frozen(logp_old, logp_ref, advantages, mask), beta)
            terms = method.regulariser.terms(logp, logp_ref, jnp.zeros_like(logp), mask, method.surrogate.reduce)
            weights = method.regulariser.weights(beta)
            parts = [(loss.sum, loss.denominator)]
            parts += [(weights[name] * term.sum, term.denominator) for name, term in terms.items()]
            if method.baseline.reads_values:
                value = method.baseline.loss(v, v_old, returns, mask)
                parts.append((value.sum, value.denominator))
            return parts

        def loss(params):
            logp, v = token_logps(params[0])[flat], params[1][STATES][flat]
            rows = map(
                grouped, (logp, logp_old, logp_ref, found.reshape(-1, 2), mask, v, v_old, returns.reshape(-1, 2))
            )
            parts = jax.vmap(one)(*rows)
            return sum(jnp.sum(weight * total) / jnp.sum(weight * count) for total, count in parts)

        def epoch(params, _):
            grads = jax.grad(loss)(params)
            return (params[0] - grads[0] / beta, params[1] - grads[1]), None

        return jax.lax.scan(epoch, params, None, EPOCHS)[0], None

    (logits, _), _ = jax.lax.scan(rollout, (jnp.zeros((3, 3)), jnp.zeros(3)), None, ROLLOUTS)
    return probabilities(logits)


def _judged(method, members, logits_judge, scores, anchors) -> Judgements:
    """What a judge says of every response of every group."""
    groups, size = members.shape
    own = method.opponents.candidates == "group"
    candidates = members if own else jnp.tile(anchors, (groups, 1))
    if method.opponents.candidates == "none":
        candidates = candidates[:, :0]
    width = candidates.shape[1]
    exists = jnp.ones((groups, size, width), bool)
    keys = jax.random.split(jax.random.key(0), groups)
    mask = method.opponents.mask(exists, keys).reshape(groups * size, width)
    rows, columns = members.reshape(-1, 1), jnp.repeat(candidates, size, axis=0)
    z = logits_judge[rows, columns]
    return Judgements(mask, z, -z, scores[members.reshape(-1)], scores[columns])
