"""Links of direct preference losses: what a pair costs whose first response is the better one.

A link takes two numbers of a pair, `u_1` and `u_2` of shape `[B]`, and returns `[B]` float32. Where nothing else is
said they are implicit rewards, `beta log(pi / pi_ref)` of each response, and `z = u_1 - u_2`. Labels other than "the
first one" are `direct.label_loss`: every link is written for one order only, and the other one follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Numbers = Float[Array, "B"]
Shift = Float[Array, "B"] | Float[Array, ""] | float
Link = Callable[[Numbers, Numbers], Numbers]

# The largest mean log-probability that has odds: beyond it a response is certain, and the odds would be infinite.
_CERTAIN = -1e-6


def log1mexp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`log(1 - exp(x))` for negative x, exact near 0 and far below it."""
    near = x > -math.log(2.0)
    # Each branch sees a harmless number where the other one counts, so that no gradient of it is NaN.
    close, far = jnp.where(near, x, -1.0), jnp.where(near, -1.0, x)
    return jnp.where(near, jnp.log(-jnp.expm1(close)), jnp.log1p(-jnp.exp(far)))


def sigmoid_link(u_1: Numbers, u_2: Numbers, *, margin: float = 0.0) -> Numbers:
    """`-log sigmoid(z - margin)`.

    Source: DPO (arXiv 2305.18290), equation 7; with a margin SimPO (arXiv 2405.14734), equation 6.
    """
    return -jax.nn.log_sigmoid(u_1 - u_2 - margin)


def ipo_link(u_1: Numbers, u_2: Numbers, *, tau: float) -> Numbers:
    """`(z - 1 / (2 tau))^2`, where z is the gap of plain log-ratios.

    Source: IPO (arXiv 2310.12036), equation 17; on mixed references INPO (arXiv 2407.00617), MNPO (arXiv 2509.23102).
    """
    return jnp.square(u_1 - u_2 - 0.5 / tau)


def hinge_link(u_1: Numbers, u_2: Numbers) -> Numbers:
    """`max(0, 1 - z)`.

    Source: SLiC-HF (arXiv 2305.10425), in units of its margin; with log-ratios RSO (arXiv 2309.06657).
    """
    return jax.nn.relu(1.0 - (u_1 - u_2))


def robust_link(u_1: Numbers, u_2: Numbers, *, flip_rate: float) -> Numbers:
    """`(-(1 - e) log sigmoid(z) + e log sigmoid(-z)) / (1 - 2 e)`.

    Its mean over labels that are flipped with probability e is the sigmoid loss of the true ones. It falls without end
    in z where the label never varies.

    Source: robust DPO (arXiv 2403.00409).
    """
    z = u_1 - u_2
    kept, flipped = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
    return (flip_rate * flipped - (1.0 - flip_rate) * kept) / (1.0 - 2.0 * flip_rate)


def linear_link(u_1: Numbers, u_2: Numbers, *, clip: float) -> Numbers:
    """`-(u_1 - u_2)` of plain log-ratios, each held to `[-clip, clip]`; beyond its bound a response has no gradient.

    Source: the DRO objective of DSO (arXiv 2503.22677), whose losses of denoising bound themselves; log-ratios do not.
    """
    return jnp.clip(u_2, -clip, clip) - jnp.clip(u_1, -clip, clip)


def kto_link(
    u_1: Numbers, u_2: Numbers, *, desirable: float = 1.0, undesirable: float = 1.0, z0: Shift = 0.0
) -> Numbers:
    """The mean of `desirable (1 - sigmoid(u_1 - z0))` and `undesirable (1 - sigmoid(z0 - u_2))`.

    Args:
      u_1, u_2: `[B]` implicit rewards.
      desirable, undesirable: weights of the better and of the worse response.
      z0: what an implicit reward is measured from, in units of them: beta times the divergence. No gradient.

    Source: KTO (arXiv 2402.01306), where a pair is one desirable and one undesirable response.
    """
    z0 = jax.lax.stop_gradient(z0)
    return 0.5 * (desirable * jax.nn.sigmoid(z0 - u_1) + undesirable * jax.nn.sigmoid(u_2 - z0))


def odds_link(logp_1: Numbers, logp_2: Numbers) -> Numbers:
    """`-log sigmoid(o_1 - o_2)` with log-odds `o = a - log(1 - exp(a))` of mean log-probabilities a of a token.

    Source: ORPO (arXiv 2403.07691), equation 7.
    """
    return -jax.nn.log_sigmoid(log_odds(logp_1) - log_odds(logp_2))


def log_odds(logp: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log-odds of log-probabilities; those of a certain response stop at about 14, and have no gradient there."""
    logp = jnp.minimum(logp, _CERTAIN)
    return logp - log1mexp(logp)


def apo_zero_link(u_1: Numbers, u_2: Numbers) -> Numbers:
    """`1 - sigmoid(u_1) + sigmoid(u_2)`: the better response is made likelier, the worse one less likely.

    Source: APO (arXiv 2408.06266), equation 7.
    """
    return jax.nn.sigmoid(-u_1) + jax.nn.sigmoid(u_2)


def apo_down_link(u_1: Numbers, u_2: Numbers) -> Numbers:
    """`sigmoid(u_1) + 1 - sigmoid(u_1 - u_2)`: both are made less likely, the worse response more so.

    Source: APO (arXiv 2408.06266), equation 8.
    """
    return jax.nn.sigmoid(u_1) + jax.nn.sigmoid(u_2 - u_1)


def nca_link(u_1: Numbers, u_2: Numbers) -> Numbers:
    """`-log sigmoid(u_1) - (log sigmoid(-u_1) + log sigmoid(-u_2)) / 2`.

    Source: NCA (arXiv 2402.05369), for pairs.
    """
    return -jax.nn.log_sigmoid(u_1) - 0.5 * (jax.nn.log_sigmoid(-u_1) + jax.nn.log_sigmoid(-u_2))


def bco_link(u_1: Numbers, u_2: Numbers, *, delta: Shift = 0.0) -> Numbers:
    """`-log sigmoid(u_1 - delta) - log sigmoid(delta - u_2)`: a classifier of either response.

    Args:
      u_1, u_2: `[B]` implicit rewards.
      delta: their mean over both kinds of responses, no gradient.

    Source: BCO (arXiv 2404.04656), with its reward shift.
    """
    delta = jax.lax.stop_gradient(delta)
    return -jax.nn.log_sigmoid(u_1 - delta) - jax.nn.log_sigmoid(delta - u_2)


def exo_link(u_1: Numbers, u_2: Numbers, *, smoothing: float) -> Numbers:
    """`KL(q || h)` of `q = (sigmoid(z), sigmoid(-z))` to the label `h = (1 - smoothing, smoothing)`.

    The divergence is the reverse one: that of the sigmoid link runs from the label to q. `smoothing` is above 0, since
    a certain label is infinitely far.

    Source: EXO (arXiv 2402.00856), equation 16.
    """
    z = u_1 - u_2
    won = jax.nn.sigmoid(z) * (jax.nn.log_sigmoid(z) - math.log1p(-smoothing))
    lost = jax.nn.sigmoid(-z) * (jax.nn.log_sigmoid(-z) - math.log(smoothing))
    return won + lost
