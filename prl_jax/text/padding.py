"""Lists of token ids as arrays of one static length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prl_jax.types import TokenRows

_SHORTEST = 64  # tokens; below, another compiled function costs more than it saves


def static_length(longest: int, most: int) -> int:
    """The length that a batch of rows is padded to: few different ones, so that few functions are compiled.

    A power of two from 64 tokens on, where that saves a quarter of `most` or more, else `most`.

    Args:
      longest: tokens of the longest row of the batch.
      most: tokens that a row may have.
    """
    rounded = max(_SHORTEST, 1 << max(longest - 1, 0).bit_length())
    return rounded if 4 * rounded <= 3 * most else most


def pad_rows(
    rows: Sequence[Sequence[int]],
    length: int,
    *,
    pad_id: int,
    positions: Sequence[Sequence[int]] | None = None,
    side: str = "right",
) -> TokenRows:
    """Pads rows to `[N, length]` int32 numpy arrays; the mask comes from the lengths, never from the pad token.

    Args:
      rows: token ids, each row between 1 and `length` long.
      length: static length.
      pad_id: fills the padding, whose segment is 0.
      positions: position of each token; counted from 0 at the first real token if not given.
      side: where the padding goes, "right" or "left".

    Raises:
      ValueError: a row does not fit, or `side` is neither.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side={side!r}, expected 'left' or 'right'")
    tokens = np.full((len(rows), length), pad_id, np.int32)
    where = np.zeros((len(rows), length), np.int32)
    segments = np.zeros((len(rows), length), np.int32)
    for i, ids in enumerate(rows):
        n = len(ids)
        if n > length:
            raise ValueError(f"row {i} has {n} tokens, expected at most {length}")
        at = slice(0, n) if side == "right" else slice(length - n, length)
        tokens[i, at] = ids
        where[i, at] = np.arange(n) if positions is None else positions[i]
        segments[i, at] = 1
    return TokenRows(tokens, where, segments)
