"""Shuffling, batching and sharding by process, on Grain, with a state that fits in a checkpoint."""

from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

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
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Batches of encoded records, this process's share of each.

    The order of the records depends on the seed and the epoch alone, and each epoch has its own. Global batch `k` is
    the `k`-th run of `batch_size` records of that endless order (so a batch may straddle two epochs); process `p` of
    `n` gets its rows `p, p + n, ...`. Rows that do not fill the last batch are left out. Nothing runs in the
    background.

    Args:
      records: random access.
      encode: a record -> a pytree of numpy arrays, one row.
      batch_size: of the global batch; a multiple of `process_count`.
      seed: of the order.
      shuffle: False keeps the records' order.
      epochs: None goes on for ever.
      process_index, process_count: which share.

    Returns:
      An iterator over pytrees with a leading axis of `batch_size / process_count`. `get_state()` is a dict fit for
      JSON, counts global batches (so it serves any number of processes), and `set_state()` continues with the batch
      that would have come.

    Raises:
      UserError: for no records, too few for one batch, or a batch that the processes cannot share equally.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"batch size {batch_size} is not a positive multiple of {process_count} processes")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index}, expected 0 <= process_index < {process_count}")
    if len(records) == 0:
        raise UserError("the data set is empty: expected at least one record")
    if epochs is not None and len(records) * epochs < batch_size:
        raise UserError(
            f"{len(records)} records in {epochs} epochs do not fill one batch of {batch_size}: "
            "lower the batch size or give more data"
        )
    rows = grain.MapDataset.source(records)
    if shuffle:
        # Grain shuffles epoch e with seed + e; spreading the seeds keeps runs of neighbouring seeds apart.
        rows = rows.shuffle(seed=int(np.random.SeedSequence(seed).generate_state(1)[0]))
    rows = rows.repeat(epochs)
    if epochs is not None:  # whole global batches, so that every process has as many
        rows = rows[: len(rows) // batch_size * batch_size]
    rows = rows[process_index::process_count].map(encode)
    batches = rows.batch(batch_size // process_count, drop_remainder=True, batch_fn=stack_rows)
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
