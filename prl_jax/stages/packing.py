"""How many rows a model reads the rows of a batch in, where it reads several short ones in one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from prl_jax.models.attention import choose
from prl_jax.models.config import DecoderConfig
from prl_jax.models.packing import rows_needed, shards_of
from prl_jax.processes import all_rows, fetch
from prl_jax.runs.context import StageContext
from prl_jax.sharding import parts
from prl_jax.training.step import microbatches
from prl_jax.types import TokenRows

_SHORTEST = 128  # tokens of a row that may be padding; fewer cost less than the packing
_SILENT_SECONDS, _EVERY = 2.0, 100  # before the first line of progress, and rows between two
_MOST = 0.75  # of the rows: with more there is too little to save


def packed_rows(
    context: StageContext,
    decoder: DecoderConfig,
    records: Sequence[Any],
    encode: Callable[[Any], tuple[Any, bool]],
    batches: Callable[[], Int[np.ndarray, "K B"]],
    *,
    length: int,
    reads: int,
    accumulate: int = 1,
) -> tuple[int, float]:
    """The rows in which a model reads those of a microbatch, and their share of these; 0 and 1 for as they are.

    The batches are known beforehand, so that one number serves all of them, and every process finds the same.

    Args:
      context: of the stage.
      decoder: the model's.
      records: of a source.
      encode: record -> one row of a batch and whether it was cut.
      batches: gives the numbers of the records in each batch.
      length: tokens of a row of the model.
      reads: how many rows the model reads for a row of a batch.
      accumulate: microbatches of a batch.
    """
    section = context.section
    if not section.pack or length < _SHORTEST or section.lora.dropout or parts("length") > 1:
        return 0, 1.0
    if choose(decoder.attention, decoder.attending(length))[0] == "cudnn":  # which takes one segment a row
        return 0, 1.0
    numbers = batches()
    places = _microbatches(context, numbers.shape[1], accumulate)
    count = reads * places.shape[1]
    used, where = np.unique(numbers, return_inverse=True)
    lengths = _lengths(context, records, used.tolist(), encode, reads)[where].reshape(*numbers.shape, reads)
    lengths = np.concatenate([np.zeros_like(lengths[:, :1]), lengths], axis=1)[:, places]  # [K, parts, M, reads]
    shards = shards_of(count)
    rows = shards * rows_needed(np.moveaxis(lengths, 3, 2).reshape(-1, count // shards), length)
    return (rows, rows / count) if rows <= _MOST * count else (0, 1.0)


def _microbatches(context: StageContext, size: int, number: int) -> Int[np.ndarray, "N M"]:
    """Which rows of a batch, counted from 1, each microbatch has; 0 where it is filled up."""
    rows = lambda: jnp.arange(1, size + 1, dtype=jnp.int32)  # noqa: E731
    if number == 1:
        return np.asarray(rows())[None]
    return np.asarray(fetch(jax.jit(lambda: microbatches(rows(), number))(), context.mesh))


def _lengths(
    context: StageContext,
    records: Sequence[Any],
    numbers: Sequence[int],
    encode: Callable[[Any], tuple[Any, bool]],
    reads: int,
) -> Int[np.ndarray, "N R"]:
    """Tokens of the rows that the model reads for records of these numbers; each process looks at a part of them."""
    others = jax.process_count()
    here = numbers[jax.process_index() :: others]
    local, start = np.zeros((len(here), reads), np.int32), time.monotonic()
    with context.progress(len(numbers), name=f"{context.name}.lengths", unit="row") as progress:
        for i, number in enumerate(here):
            rows = jax.tree.leaves(encode(records[number])[0], is_leaf=lambda x: isinstance(x, TokenRows))
            local[i] = [np.count_nonzero(row.segments) for row in rows if isinstance(row, TokenRows)][:reads]
            if i % _EVERY == 0 and time.monotonic() - start > _SILENT_SECONDS:
                progress.update(min((i + 1) * others, len(numbers)))
    return all_rows(local, len(numbers))
