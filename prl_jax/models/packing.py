"""Several short rows in a long one, so that a model reads few tokens of padding.

A batch stays `[N, T]` rows; a model reads `[R, T]` packed ones, in which each row is a segment that attention does not
leave, at the positions that it had. So packed and padded rows give the same numbers but for rounding. Rows go where
they fit first, the longest before the others (first-fit decreasing), within the part of the batch that a device has.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from prl_jax.models.attention import BRANCHES
from prl_jax.sharding import constrain, parts
from prl_jax.types import TokenRows

_AT_ONCE = 256  # batches whose rows `rows_needed` places side by side


class Packed(NamedTuple):
    """Rows in packed rows. `S` parts of a batch are packed for themselves, each into `R / S` rows.

    Attributes:
      rows: `[R, T]`, what a model reads.
      source: `[S, R / S * T]` int32, which of the `N / S * T` tokens of the part stands at a place; `N / S * T` on
        padding.
      last: `[S, N / S]` int32, the place of the last token of each row.
    """

    rows: TokenRows
    source: Int[Array, "S P"]
    last: Int[Array, "S M"]

    def spread(self, x: Shaped[Array, "N T"]) -> Shaped[Array, "R T"]:
        """Returns what belongs to tokens where these are now; zeros on padding."""
        return _taken(x, self.source, self.rows.tokens.shape)

    def of_rows(self, x: Shaped[Array, "R T"]) -> Shaped[Array, "N"]:
        """Sums what belongs to tokens over each row."""
        shards, count = self.last.shape
        length = self.rows.tokens.shape[1]
        sums = functools.partial(jax.ops.segment_sum, num_segments=count)
        return jax.vmap(sums)(x.reshape(shards, -1), self.source // length).reshape(-1)

    def at_last(self, x: Shaped[Array, "R T D"]) -> Shaped[Array, "N D"]:
        """Returns what stands at the last token of each row."""
        shards, count = self.last.shape
        x = x.reshape(shards, -1, x.shape[-1])
        return jnp.take_along_axis(x, self.last[..., None], axis=1).reshape(shards * count, -1)


def pack(rows: TokenRows, count: int) -> Packed:
    """Packs rows of one segment each into `count` rows, which must be enough (`rows_needed`)."""
    (size, length), shards = rows.tokens.shape, shards_of(rows.tokens.shape[0])
    assert count % shards == 0, (count, shards)
    assert size < BRANCHES, size
    real = (rows.segments > 0).reshape(shards, size // shards, length)
    row, start, _ = jax.vmap(lambda lengths: _first_fit(lengths, count // shards, length))(real.sum(-1))
    rank = jnp.cumsum(real, axis=-1) - 1
    tokens, places = size // shards * length, count // shards * length
    place = jnp.where(real, (row * length + start)[..., None] + rank, places).reshape(shards, tokens)
    put = lambda place: jnp.full(places, tokens, jnp.int32).at[place].set(jnp.arange(tokens), mode="drop")  # noqa: E731
    source = jax.vmap(put)(place)
    number = jnp.where(rows.segments > 0, jnp.arange(1, size + 1, dtype=jnp.int32)[:, None], 0)
    last = jnp.max(jnp.where(real, place.reshape(real.shape), 0), axis=-1)
    shape = (count, length)
    packed = TokenRows(*(_taken(x, source, shape) for x in (rows.tokens, rows.positions, number)))
    return Packed(packed, source, last)


def _taken(x: Shaped[Array, "N T"], source: Int[Array, "S P"], shape: tuple[int, int]) -> Shaped[Array, "R T"]:
    x = jnp.pad(x.reshape(source.shape[0], -1), [(0, 0), (0, 1)])
    return constrain(jnp.take_along_axis(x, source, axis=1).reshape(shape), "batch", None)


def shards_of(rows: int) -> int:
    """Parts of so many rows that are packed for themselves."""
    shards = parts("batch")
    return shards if rows % shards == 0 else 1


def rows_needed(lengths: Int[np.ndarray, "B N"], room: int) -> int:
    """The least number of packed rows that holds the rows of any of `B` batches.

    Args:
      lengths: tokens of each row; of those that are not there 0.
      room: tokens of a packed row.
    """
    count = lengths.shape[1]
    used = jax.jit(jax.vmap(lambda lengths: _first_fit(lengths, count, room)[2]))
    most = 1
    for first in range(0, len(lengths), _AT_ONCE):
        block = lengths[first : first + _AT_ONCE]
        filled = np.pad(block, [(0, _AT_ONCE - len(block)), (0, 0)]).astype(np.int32)
        most = max(most, int(np.max(used(filled))))
    return most


def _first_fit(
    lengths: Int[Array, "N"], count: int, room: int
) -> tuple[Int[Array, "N"], Int[Array, "N"], Int[Array, ""]]:
    """The packed row of each row, where in it the row begins, and how many packed rows have any."""
    order = jnp.argsort(-lengths, stable=True)

    def place(free, length):
        row = jnp.argmax(free >= length).astype(jnp.int32)
        return free.at[row].add(-length), (row, room - free[row])

    free, found = jax.lax.scan(place, jnp.full(count, room, jnp.int32), lengths[order].astype(jnp.int32))
    row, start = (jnp.zeros_like(part).at[order].set(part) for part in found)
    return row, start, jnp.sum(free < room)
