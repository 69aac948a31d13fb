"""Losses of preference models: Bradley-Terry scores and generative pairwise judges.

A label is the probability that response 1 (here also "w", the chosen one) is the better of two: 1, 0, 0.5 for a tie, or
anything between. Each loss is unchanged when the responses are swapped and the label is replaced by `1 - label`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prl_jax.masked import check_floats, check_option, keep_rows, per_row, row_weights
from prl_jax.types import LossOutput

Weight = Float[Array, "B"] | Bool[Array, "B"] | None
FORMS = ("both_orders", "antisymmetric")
SPACES = ("probability", "logit")


def soft_cross_entropy(z: Float[Array, "B"], label: Float[Array, "B"]) -> Float[Array, "B"]:
    """`-label log sigmoid(z) - (1 - label) log sigmoid(-z)`."""
    return -(label * jax.nn.log_sigmoid(z) + (1.0 - label) * jax.nn.log_sigmoid(-z))


def bt_loss(
    r_w: Float[Array, "B"],
    r_l: Float[Array, "B"],
    *,
    label: Float[Array, "B"] | float | int = 1.0,
    margin: Float[Array, "B"] | float | int = 0.0,
    label_smoothing: float = 0.0,
    center: float = 0.0,
    weight: Weight = None,
) -> LossOutput:
    """Bradley-Terry loss `-log sigmoid(r_w - r_l - margin)`, averaged over pairs.

    Args:
      r_w, r_l: `[B]` scores of responses 1 and 2.
      label: `[B]` or a number, the probability that response 1 is better. 1 says that `r_w` belongs to the chosen one.
      margin: `[B]` or a number >= 0, how far the better response should lead. It counts by `2 label - 1`: fully for a
        certain label, not at all for a tie, against response 1 where response 2 is better.
      label_smoothing: in [0, 1]; the share of flipped labels to assume.
      center: coefficient of `(r_w + r_l)^2`, which pins the free constant of the scores.
      weight: `[B]` float or bool; rows of weight 0 may hold anything.

    Returns:
      LossOutput whose denominator is the sum of weights. aux: 'accuracy' (0.5 for equal scores) and 'margin' (lead of
      the better response), both over rows whose label is no tie.

    Raises:
      ValueError: if shapes differ.

    Source: Bradley and Terry (1952); with a margin Llama 2 (arXiv 2307.09288), equation 2.
    """
    check_floats(1, r_w=r_w, r_l=r_l)
    label, margin = per_row("label", label, r_w), per_row("margin", margin, r_w)
    weight = row_weights(weight, r_w)
    r_w, r_l, label, margin = (keep_rows(x, weight) for x in (r_w, r_l, label, margin))
    gap = r_w - r_l
    smoothed = label * (1.0 - label_smoothing) + (1.0 - label) * label_smoothing
    loss = soft_cross_entropy(gap - (2.0 * label - 1.0) * margin, smoothed)
    if center:
        loss = loss + center * jnp.square(r_w + r_l)
    correct, lead, decided = judgement(gap, label, weight)
    aux = {"accuracy": (correct, decided), "margin": (lead, decided)}
    return LossOutput(jnp.sum(weight * loss), jnp.sum(weight), aux)


def bt_ties_loss(
    r_w: Float[Array, "B"],
    r_l: Float[Array, "B"],
    *,
    log_theta: Float[Array, ""] | float,
    tie: Float[Array, "B"] | float | int = 0.0,
    label: Float[Array, "B"] | float | int = 1.0,
    weight: Weight = None,
) -> LossOutput:
    """Bradley-Terry with ties: minus the log-probability of what was said, one of three answers.

    With `d = r_w - r_l` and `a = log_theta`:

      P(1 wins) = sigmoid(d - a),  P(2 wins) = sigmoid(-d - a),  P(tie) = (exp(2 a) - 1) P(1 wins) P(2 wins)

    The three add up to 1. Without ties and with `a -> 0` this is `bt_loss`.

    Args:
      r_w, r_l: `[B]` scores of responses 1 and 2.
      log_theta: number > 0, or a scalar array where it is learnt: how readily a tie is said. The largest probability of
        a tie, that of equal scores, is `tanh(a / 2)`.
      tie: `[B]` or a number, the probability that the answer is a tie.
      label: `[B]` or a number, the probability that response 1 is better where it is none.
      weight: `[B]` float or bool; rows of weight 0 may hold anything.

    Returns:
      LossOutput whose denominator is the sum of weights. aux: 'accuracy' and 'margin' as of `bt_loss`, over what is no
      tie, and 'tie_prob' (mean probability of a tie).

    Source: Rao and Kupper (1967); for reward models Liu et al. (arXiv 2410.05328).
    """
    check_floats(1, r_w=r_w, r_l=r_l)
    if isinstance(log_theta, (int, float)) and log_theta <= 0:
        raise ValueError(f"log_theta: expected a number above 0 (at 0 no answer is a tie), given {log_theta}")
    weight = row_weights(weight, r_w)
    tie, label = per_row("tie", tie, r_w), per_row("label", label, r_w)
    r_w, r_l, tie, label = (keep_rows(x, weight) for x in (r_w, r_l, tie, label))
    gap = r_w - r_l
    wins, loses = jax.nn.log_sigmoid(gap - log_theta), jax.nn.log_sigmoid(-gap - log_theta)
    ties = jnp.log(jnp.expm1(2.0 * log_theta)) + wins + loses
    loss = -(tie * ties + (1.0 - tie) * (label * wins + (1.0 - label) * loses))
    correct, lead, decided = judgement(gap, label, weight * (1.0 - tie))
    total = jnp.sum(weight)
    tie_prob = jax.lax.stop_gradient(jnp.sum(weight * jnp.exp(ties)))
    aux = {"accuracy": (correct, decided), "margin": (lead, decided), "tie_prob": (tie_prob, total)}
    return LossOutput(jnp.sum(weight * loss), total, aux)


def verdict_prob(
    logits: Float[Array, "B V"],
    tok_yes: int | Int[Array, ""],
    tok_no: int | Int[Array, ""],
    temperature: float = 1.0,
    full_vocab: bool = False,
) -> Float[Array, "B"]:
    """Probability of the verdict YES, float32.

    Args:
      logits: `[B, V]` at the position whose next token is the verdict.
      tok_yes, tok_no: ids of the two verdict tokens.
      temperature: divides the logits.
      full_vocab: normalise over the whole vocabulary instead of over the two verdicts.
    """
    check_floats(2, logits=logits)
    logits = logits.astype(jnp.float32) / temperature
    if full_vocab:
        return jnp.exp(logits[:, tok_yes] - jax.nn.logsumexp(logits, axis=-1))
    return jax.nn.sigmoid(logits[:, tok_yes] - logits[:, tok_no])


def symmetrise(z12: Float[Array, "..."], z21: Float[Array, "..."], space: str = "probability") -> Float[Array, "..."]:
    """Probability that response 1 is better, from verdict logits in both orders.

    Args:
      z12: logit that the first response shown is better, shown in the order (1, 2).
      z21: the same logit, shown in the order (2, 1).
      space: 'probability' averages probabilities, `(p12 + 1 - p21) / 2`; 'logit' averages logits,
        `sigmoid((z12 - z21) / 2)`, which removes a constant preference for one slot exactly.
    """
    check_floats(z12=z12, z21=z21)
    check_option("space", space, SPACES)
    z12, z21 = z12.astype(jnp.float32), z21.astype(jnp.float32)
    if space == "probability":
        return 0.5 * (jax.nn.sigmoid(z12) + jax.nn.sigmoid(-z21))
    return jax.nn.sigmoid(0.5 * (z12 - z21))


def pairwise_genrm_loss(
    z12: Float[Array, "B"],
    z21: Float[Array, "B"],
    label: Float[Array, "B"],
    *,
    w_cons: float = 0.0,
    form: str = "both_orders",
    w_ce: float = 0.05,
    weight: Weight = None,
) -> LossOutput:
    """Loss of a generative pairwise judge on verdict logits, normalised over the two verdicts.

    With `ce = CE(z12, label)` and `ce' = CE(z21, 1 - label)`, a pair costs

      both_orders:    `(ce + ce') / 2 + w_cons (z12 + z21)^2`
      antisymmetric:  `CE((z12 - z21) / 2, label) + w_ce (ce + ce') / 2 + w_cons (z12 + z21)^2`

    The second trains the symmetrised judgement itself.

    Args:
      z12: `[B]` logit(YES) - logit(NO) with the responses shown in the order (1, 2); YES: the first shown is better.
      z21: `[B]` the same in the order (2, 1).
      label: `[B]` probability that response 1 is better.
      w_cons: weight of the disagreement between the orders.
      form: 'both_orders' or 'antisymmetric'.
      w_ce: weight of the per-order cross-entropies in the antisymmetric form.
      weight: `[B]` float or bool; rows of weight 0 may hold anything.

    Returns:
      LossOutput whose denominator is the sum of weights. aux: 'accuracy' of the symmetrised judgement (0.5 where it is
      undecided; ties are left out), 'order_consistency' (share of pairs where both orders name the same response),
      'position_bias' (mean of `p12 + p21 - 1`, positive where the first slot is favoured).

    Source: after Pairwise-RL (arXiv 2504.04950), whose loss is not published.
    """
    check_floats(1, z12=z12, z21=z21, label=label)
    check_option("form", form, FORMS)
    weight = row_weights(weight, z12)
    z12, z21, label = (keep_rows(x, weight) for x in (z12, z21, label))
    per_order = 0.5 * (soft_cross_entropy(z12, label) + soft_cross_entropy(z21, 1.0 - label))
    loss = _combine(per_order, z12, z21, label, w_cons, form, w_ce)
    return LossOutput(jnp.sum(weight * loss), jnp.sum(weight), _order_aux(z12, z21, label, weight))


def pairwise_genrm_full_loss(
    logp12: Float[Array, "B 2"],
    logp21: Float[Array, "B 2"],
    label: Float[Array, "B"],
    *,
    w_cons: float = 0.0,
    form: str = "both_orders",
    w_ce: float = 0.05,
    weight: Weight = None,
) -> LossOutput:
    """`pairwise_genrm_loss` whose per-order cross-entropies run over the whole vocabulary.

    They are plain next-token losses on the verdict and keep the probability mass on the two verdict tokens, which the
    antisymmetric term, a function of the differences, leaves free.

    Args:
      logp12: `[B, 2]` log P(YES), log P(NO) over the full vocabulary, shown in the order (1, 2).
      logp21: `[B, 2]` the same in the order (2, 1).
      label, w_cons, form, w_ce, weight: as in `pairwise_genrm_loss`.

    Returns:
      LossOutput as of `pairwise_genrm_loss`, with aux 'verdict_mass' (P(YES) + P(NO), mean of both orders) besides.
    """
    check_floats(2, logp12=logp12, logp21=logp21)
    check_option("form", form, FORMS)
    if logp12.shape[1] != 2:
        raise ValueError(f"logp12: expected shape ({logp12.shape[0]}, 2), given {tuple(logp12.shape)}")
    label = per_row("label", label, logp12)
    weight = row_weights(weight, logp12)
    logp12, logp21, label = (keep_rows(x, weight) for x in (logp12, logp21, label))
    (yes12, no12), (yes21, no21) = logp12.T, logp21.T
    per_order = -0.5 * (label * (yes12 + no21) + (1.0 - label) * (no12 + yes21))
    z12, z21 = yes12 - no12, yes21 - no21
    loss = _combine(per_order, z12, z21, label, w_cons, form, w_ce)
    mass = 0.5 * (jnp.exp(logp12).sum(-1) + jnp.exp(logp21).sum(-1))
    aux = _order_aux(z12, z21, label, weight)
    aux["verdict_mass"] = (jax.lax.stop_gradient(jnp.sum(weight * mass)), jnp.sum(weight))
    return LossOutput(jnp.sum(weight * loss), jnp.sum(weight), aux)


def _combine(
    per_order: Float[Array, "B"],
    z12: Float[Array, "B"],
    z21: Float[Array, "B"],
    label: Float[Array, "B"],
    w_cons: float,
    form: str,
    w_ce: float,
) -> Float[Array, "B"]:
    if form == "antisymmetric":
        loss = soft_cross_entropy(0.5 * (z12 - z21), label) + w_ce * per_order
    else:
        loss = per_order
    return loss + w_cons * jnp.square(z12 + z21) if w_cons else loss


def judgement(
    gap: Float[Array, "B"], label: Float[Array, "B"], weight: Float[Array, "B"]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Weighted sums of correctness and of the lead of the better response, and the weight of the rows that count."""
    gap = jax.lax.stop_gradient(gap)
    side = jnp.sign(label - 0.5)
    weight = jnp.where(side == 0, 0.0, weight)
    correct = 0.5 * (1.0 + jnp.sign(gap) * side)
    return jnp.sum(weight * correct), jnp.sum(weight * gap * side), jnp.sum(weight)


def _order_aux(
    z12: Float[Array, "B"], z21: Float[Array, "B"], label: Float[Array, "B"], weight: Float[Array, "B"]
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    z12, z21 = jax.lax.stop_gradient(z12), jax.lax.stop_gradient(z21)
    # p12 > p21 exactly where z12 > z21, so that this is the verdict of either way to symmetrise.
    correct, _, decided = judgement(z12 - z21, label, weight)
    consistent = jnp.sum(weight * (jnp.sign(z12) == -jnp.sign(z21)))
    bias = jnp.sum(weight * (jax.nn.sigmoid(z12) + jax.nn.sigmoid(z21) - 1.0))
    total = jnp.sum(weight)
    return {
        "accuracy": (correct, decided),
        "order_consistency": (consistent, total),
        "position_bias": (bias, total),
    }
