"""Shuffling, batching and sharding by process, on Grain, with a state that fits in a checkpoint."""

from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from prl_jax.data.rows import stack_rows
from prl_jax.errors import UserError


def batch_iterator(
    records: Sequence[Any],
    encode: Callable[[Any], Any],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    epochs: int | None = None,
    rows: Sequence[int] | None = None,
) -> grain.DatasetIterator:
    """Batches of encoded records, this process's share of each.

    The order of the records depends on the seed and the epoch alone, and each epoch has its own. Global batch `k` is
    the `k`-th run of `batch_size` records of that endless order (so a batch may straddle two epochs); a process reads
    the rows of it that are its own. Rows that do not fill the last batch are left out. Nothing runs in the background.

    Args:
      records: random access.
      encode: a record -> a pytree of numpy arrays, one row.
      batch_size: of the global batch.
      seed: of the order.
      shuffle: False keeps the records' order.
      epochs: None goes on for ever.
      rows: which rows of each global batch to read, in this order (`processes.local_rows`); all by default.

    Returns:
      An iterator over pytrees with a leading axis of `len(rows)`. `get_state()` is a dict fit for JSON, counts global
      batches (so it serves any number of processes), and `set_state()` continues with the batch that would have come.

    Raises:
      UserError: for no records, too few for one batch, or a batch without rows.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: expected at least 1")
    indices = range(batch_size) if rows is None else rows
    if not all(0 <= row < batch_size for row in indices):
        raise ValueError(f"rows {list(indices)}: expected rows of a batch of {batch_size}")
    if len(records) == 0:
        raise UserError("the data set is empty: expected at least one record")
    if epochs is not None and len(records) * epochs < batch_size:
        raise UserError(
            f"{len(records)} records in {epochs} epochs do not fill one batch of {batch_size}: "
            "lower the batch size or give more data"
        )
    order = _order(len(records), seed, shuffle, epochs).map(lambda number: encode(records[number]))
    batches = grain.MapDataset.range(len(order) // batch_size)
    batches = batches.map(lambda k: stack_rows([order[k * batch_size + row] for row in indices]))
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def batch_numbers(count: int, *, batch_size: int, seed: int, batches: int) -> Int[np.ndarray, "K B"]:
    """The numbers of the records in the first global batches of `batch_iterator`, of `count` records without end."""
    order = _order(count, seed, shuffle=True, epochs=None)
    return np.array([order[i] for i in range(batches * batch_size)], np.int64).reshape(batches, batch_size)


def _order(count: int, seed: int, shuffle: bool, epochs: int | None) -> grain.MapDataset:
    """Numbers of records, epoch after epoch."""
    order = grain.MapDataset.range(count)
    if shuffle:
        # Grain shuffles epoch e with seed + e; spreading the seeds keeps runs of neighbouring seeds apart.
        order = order.shuffle(seed=int(np.random.SeedSequence(seed).generate_state(1)[0]))
    return order.repeat(epochs)
