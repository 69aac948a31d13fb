"""Shapes of scores: what becomes of a reward model's numbers before a policy learns from them.

Shapes that compare a response with references of its prompt don't mind what a score model adds to all responses to a
prompt; the others do.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Bool, Float

from prl_jax.masked import check_floats, check_option, masked_mean, masked_var, per_row

FITS = ("normal", "sample")


def par_shape(
    scores: Float[Array, "N"], references: Float[Array, "N M"], mask: Bool[Array, "N M"], k: float = 1.0
) -> Float[Array, "N"]:
    """`mean_m sigmoid(k (score - reference_m))`, `[N]` float32 in [0, 1]; 0 without references.

    Args:
      scores: `[N]` of the responses.
      references: `[N, M]` scores of up to `M` other responses to the same prompt.
      mask: `[N, M]`, the references that exist.
      k: how fast it saturates.

    Source: PAR (arXiv 2502.18770).
    """
    gap = _gaps(scores, references, mask)
    return masked_mean(jax.nn.sigmoid(k * gap), mask, -1)


def centred_shape(
    scores: Float[Array, "N"], references: Float[Array, "N M"], mask: Bool[Array, "N M"]
) -> Float[Array, "N"]:
    """The score minus the mean of the references; arguments as in `par_shape`."""
    return masked_mean(_gaps(scores, references, mask), mask, -1)


def lsc_shape(
    scores: Float[Array, "N"],
    references: Float[Array, "N M"],
    mask: Bool[Array, "N M"],
    *,
    quantile: float = 0.85,
    fit: str = "normal",
) -> Float[Array, "N"]:
    """`log sigmoid(score - q)` with `q` a quantile of the references' scores; arguments as in `par_shape`.

    Sums over several score models are then log-probabilities of being better than the reference in every respect.

    Args:
      quantile: in (0, 1).
      fit: 'normal' for the quantile of a normal distribution with the references' mean and population deviation,
        'sample' for that of the references themselves, linear between neighbours.

    Source: log-sigmoid-centred transformation (arXiv 2402.00742). With one reference `exp` of it is PAR.
    """
    check_option("fit", fit, FITS)
    gap = -_gaps(scores, references, mask)  # the references as seen from the response
    if fit == "normal":
        deviation = jnp.sqrt(masked_var(gap, mask, -1))
        return jax.nn.log_sigmoid(-(masked_mean(gap, mask, -1) + deviation * ndtri(quantile)))
    known = jnp.where(mask, gap, jnp.nan)
    return jax.nn.log_sigmoid(-jnp.nanquantile(known, quantile, axis=-1))


def minmax_shape(scores: Float[Array, "N"]) -> Float[Array, "N"]:
    """Scores of a batch, moved and scaled to [0, 1]; 1/2 where all are equal."""
    check_floats(1, scores=scores)
    scores = scores.astype(jnp.float32)
    low, high = jnp.min(scores), jnp.max(scores)
    return jnp.where(high > low, (scores - low) / jnp.where(high > low, high - low, 1.0), 0.5)


def log_tame(scores: Float[Array, "K N"]) -> Float[Array, "K N"]:
    """`log(1 + score)` for those of `K` judges whose scores vary more than those of the average judge.

    The measure is the coefficient of variation over the batch, `std / (mean + 1e-6)`, and the threshold its mean over
    the judges.

    Args:
      scores: `[K, N]`, not negative.

    Returns:
      `[K, N]` float32; the scores of the other judges, and of a judge alone, as they are.

    Source: PaCo-RL (arXiv 2512.04784).
    """
    check_floats(2, scores=scores)
    scores = scores.astype(jnp.float32)
    variation = jnp.std(scores, axis=1, ddof=1) / (jnp.mean(scores, axis=1) + 1e-6)
    # Equal coefficients differ from their mean by rounding alone.
    tamed = variation > jnp.mean(variation) * (1.0 + 1e-6)
    return jnp.where(tamed[:, None], jnp.log1p(scores), scores)


def _gaps(scores: Float[Array, "N"], references: Float[Array, "N M"], mask: Bool[Array, "N M"]) -> Float[Array, "N M"]:
    check_floats(2, references=references, mask=mask)
    scores = per_row("scores", scores, references)
    return jnp.where(mask, scores[:, None] - references.astype(jnp.float32), 0.0)
