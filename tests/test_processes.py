"""Rows of a batch and who holds them. What needs several processes is in tests/scale and tests/multiprocess."""

import time

import jax
import numpy as np
import pytest
from fakes import one_device

from prl_jax.processes import batch_rows, fetch, joined, local_rows, put_batch, shared, wait_for_all, waits, whole_batch
from prl_jax.sharding import batch_sharding


def test_one_process_holds_all_rows():
    mesh = one_device()
    np.testing.assert_array_equal(local_rows(mesh, 6), np.arange(6))
    assert whole_batch(5, mesh) == 5


@pytest.mark.parametrize("mesh", [None, one_device()], ids=["no mesh", "mesh"])
@pytest.mark.parametrize(("count", "size"), [(6, 3), (7, 3), (2, 4), (1, 1)])
def test_batches_hold_every_item_once_and_are_filled_with_the_last(mesh, count, size):
    batches = [index.tolist() for index in batch_rows(count, size, mesh)]
    assert all(len(batch) == size for batch in batches) and len(batches) == -(-count // size)
    flat = sum(batches, [])
    assert flat[:count] == list(range(count)) and set(flat[count:]) <= {count - 1}


def test_rows_go_to_the_devices_and_come_back():
    mesh, rows = one_device(), {"x": np.arange(12, dtype=np.float32).reshape(4, 3), "flag": np.arange(4) > 1}
    batch = put_batch(rows, mesh)
    assert all(array.sharding.is_equivalent_to(batch_sharding(mesh), array.ndim) for array in batch.values())
    back = fetch(batch, mesh)
    assert all(isinstance(array, np.ndarray) for array in back.values())
    jax.tree.map(np.testing.assert_array_equal, back, rows)


def test_the_seconds_of_waiting_are_told_to_whoever_asks(monkeypatch):
    get = jax.device_get
    monkeypatch.setattr("jax.device_get", lambda tree: (time.sleep(0.02), get(tree))[1])
    with waits() as outer:
        fetch(np.ones(2))
        with waits() as inner:
            fetch(np.ones(2))
            fetch(np.ones(2))
        fetch(np.ones(2))
    fetch(np.ones(2))
    assert len(outer) == len(inner) == 2 and min(*outer, *inner) >= 0.02


@pytest.mark.parametrize(("count", "number"), [(0, 1), (7, 1), (7, 2), (8, 4), (3, 4), (0, 2)])
def test_every_process_looks_at_a_part_and_knows_the_whole(monkeypatch, count, number):
    looked, sent = [], []
    monkeypatch.setattr("jax.process_count", lambda: number)

    def look(i):
        looked.append(i)
        return i * i

    def gather(part):  # what all of them send, once all have
        sent.append(part)
        return np.stack(sent) if len(sent) == number else np.zeros((number, len(part)), np.int32)

    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", gather)
    for index in range(number):
        monkeypatch.setattr("jax.process_index", lambda index=index: index)
        found = shared(look, count)
    assert sorted(looked) == list(range(count))
    np.testing.assert_array_equal(found, np.arange(count) ** 2)


def test_one_process_waits_for_nobody_and_joins_nothing():
    wait_for_all("anything")
    with joined("", 1, -1, heartbeat_timeout=1, tell=lambda error: 1), pytest.raises(ZeroDivisionError):
        1 / 0  # noqa: B018
    assert not jax.distributed.is_initialized()
