"""Any method on one prompt whose policy is a table: its own pieces, over every group that the policy can draw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from losses.tabular import EPOCHS, MASK, REF_LOGITS, RESPONSES, ROLLOUTS, STATES, draws, probabilities, token_logps

from prl_jax.methods import Judgements, Method, Values
from prl_jax.methods.baselines import Rewards
from prl_jax.methods.surrogates import Frozen

BATCH = 1024  # groups, where statistics run over a whole batch
SECOND = jnp.array([[0, 0, 0], [1, 2, 3], [4, 5, 6]])  # the response that each token would be, behind each first one


def greedy(logits):
    """The response that always takes the likeliest token."""
    first = jnp.argmax(logits[0])
    return SECOND[first, jnp.argmax(logits[first])]


def mixture(logits, share):
    """`[7]` probabilities of the geometric mixture with the reference, token by token."""
    return probabilities((1 - share) * jax.nn.log_softmax(logits) + share * jax.nn.log_softmax(REF_LOGITS))


@functools.partial(jax.jit, static_argnames=("method", "group_size", "epochs"))
def descend(method: Method, group_size: int, logits_judge, scores, anchors, epochs: int = EPOCHS):
    """`[7]` probabilities of the policy that gradient descent ends at, from the uniform one.

    What is drawn beside the group (a member to meet, a response to meet) is enumerated too. Where statistics run over a
    batch, the groups are as many of `BATCH` as their probabilities say.

    Args:
      method: its pieces; a critic is a table of states that starts at 0.
      group_size: responses that are drawn together.
      logits_judge: `[7, 7]` logits of "the row's response beats the column's", the same in both orders.
      scores: `[7]` what a scoring judge says.
      anchors: `[M]` responses that are anchors.
      epochs: gradient steps on each rollout.
    """
    drawn = group_size if method.opponents.kind == "random_peer" else 1
    others = RESPONSES if method.opponents.sampler == "mixture" else 1
    whole = getattr(method.baseline, "scale", "") == "batch"
    members, lot, other = _every(draws(group_size), np.arange(drawn), np.arange(others))
    beta = jnp.float32(method.regulariser.coefficient)
    grouped = lambda x: x.reshape(-1, group_size, *x.shape[1:])  # noqa: E731

    def rollout(params, _):
        logits, values = params
        weight = jnp.prod(probabilities(logits)[members], -1)
        if others > 1:
            weight = weight * mixture(logits, method.opponents.share)[other]
        rows = jnp.arange(len(members))
        if whole:
            rows = jnp.searchsorted(jnp.cumsum(weight) / weight.sum(), (jnp.arange(BATCH) + 0.5) / BATCH)
            weight = jnp.ones(BATCH)
        flat = jnp.asarray(members)[rows].reshape(-1)
        mask, logp_ref = jnp.asarray(MASK)[flat], token_logps(REF_LOGITS)[flat]
        logp_old, v_old = token_logps(logits)[flat], values[STATES][flat]
        sampled = jnp.full(len(rows), greedy(logits)) if method.opponents.sampler == "greedy" else other[rows]
        judged = _judged(method, grouped(flat), lot[rows], sampled, logits_judge, scores, anchors)
        reward = method.reward(*[judged] * max(len(method.reward.judges), 1))
        last = jnp.arange(2)[None] == mask.sum(-1, keepdims=True) - 1
        tokens = method.regulariser.reward(logp_old, logp_ref, beta) + jnp.where(last, reward[:, None], 0.0)
        differences = None
        if method.baseline.reads_differences:
            differences = method.reward.differences(judged), judged.mask
        likeliest = jnp.full(len(flat), scores[greedy(logits)]) if method.baseline.reads_greedy else None

        def advantages(tokens, mask, v_old, truncated, differences, likeliest):
            values = Values(v_old, jnp.zeros(len(v_old))) if method.baseline.reads_values else None
            given = Rewards(tokens, mask, mask, truncated, group_size, differences, likeliest)
            found, returns = method.baseline(given, values)
            return found, v_old if returns is None else returns

        given = (tokens, mask, v_old, jnp.zeros(len(flat), bool), differences, likeliest)
        if whole:
            found, returns = map(grouped, advantages(*given))
        else:
            found, returns = jax.vmap(advantages)(*jax.tree.map(grouped, given))

        def one(logp, logp_old, logp_ref, advantages, mask, v, v_old, returns):
            held = method.regulariser.reference(logp_old, logp_ref)
            loss = method.surrogate(logp, Frozen(logp_old, held, advantages, mask), beta)
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

        return jax.lax.scan(epoch, params, None, epochs)[0], None

    (logits, _), _ = jax.lax.scan(rollout, (jnp.zeros((3, 3)), jnp.zeros(3)), None, ROLLOUTS)
    return probabilities(logits)


def _every(members, lots, others):
    """Every group with every lot and every other response, a row each."""
    grid = np.meshgrid(np.arange(len(members)), lots, others, indexing="ij")
    row, lot, other = (x.reshape(-1) for x in grid)
    return members[row], jnp.asarray(lot), jnp.asarray(other)


def _judged(method, members, lot, sampled, logits_judge, scores, anchors) -> Judgements:
    """What a judge says of every response of every group."""
    groups, size = members.shape
    candidates = {
        "group": members,
        "anchors": jnp.tile(anchors, (groups, 1)),
        "sampled": sampled[:, None],
        "none": members[:, :0],
    }[method.opponents.candidates]
    width = candidates.shape[1]
    exists = jnp.ones((groups, size, width), bool)
    keys = jax.random.split(jax.random.key(0), groups)
    mask = method.opponents.mask(exists, keys)
    if method.opponents.kind == "random_peer":  # whom it would draw is enumerated
        i, j = jnp.arange(size)[None, :, None], jnp.arange(size)[None, None]
        mask = (j == lot[:, None, None]) & (i != j)
    mask = mask.reshape(groups * size, width)
    rows, columns = members.reshape(-1, 1), jnp.repeat(candidates, size, axis=0)
    z = logits_judge[rows, columns]
    return Judgements(mask, z, -z, scores[members.reshape(-1)], scores[columns])
