"""Terms of the reward that depend on the length of a response alone."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prl_jax.masked import check_shapes


def overlong_penalty(lengths: Int[Array, "N"], room: int, buffer: float | int, penalty: float) -> Float[Array, "N"]:
    """`penalty` times the share of the last `buffer` tokens of the room that a response takes; float32.

    It is 0 up to `room - buffer` tokens and grows linearly to `penalty` at `room`, beyond which nothing is sampled.

    Args:
      lengths: `[N]` tokens of the responses, the stop token included.
      room: tokens that a response may have.
      buffer: tokens before the end of the room; above 0.
      penalty: what a response that fills the room pays.

    Source: DAPO (arXiv 2503.14476), equation 13, with the sign of a penalty.
    """
    check_shapes(1, lengths=lengths)
    beyond = lengths.astype(jnp.float32) - (room - buffer)
    return penalty * jnp.clip(beyond / buffer, 0.0, 1.0)


def relative_brevity(lengths: Int[Array, "B G"]) -> Float[Array, "B G"]:
    """`w_i` minus the mean of the group, `w_i = 1 - (l_i - l_min) / (l_max - l_min)`: 1 for the shortest response of a
    group, 0 for the longest; float32, 0 where all have one length.

    Args:
      lengths: `[B, G]` tokens of `G` responses to each prompt.

    Source: reconstructed: Group Relative Length Control of Nemotron 3.
    """
    check_shapes(2, lengths=lengths)
    lengths = lengths.astype(jnp.float32)
    least, most = lengths.min(-1, keepdims=True), lengths.max(-1, keepdims=True)
    share = 1.0 - (lengths - least) / jnp.maximum(most - least, 1.0)
    return share - share.mean(-1, keepdims=True)
