"""The pipeline: one global order whatever the processes, and a state that continues exactly."""

import itertools
import json
import subprocess
import sys
import threading
from typing import NamedTuple

import numpy as np
import pytest

from prl_jax.data.pipeline import batch_iterator
from prl_jax.errors import UserError


class Row(NamedTuple):
    number: np.ndarray
    pair: tuple[np.ndarray, np.ndarray]


def encode(number: int) -> Row:
    return Row(np.asarray(number, np.int32), (np.full((3,), number, np.float32), np.asarray(number % 2 == 0)))


def numbers(n: int, batches: int | None, *, size: int = 6, seed: int = 0, **options: object) -> list[list[int]]:
    iterator = batch_iterator(range(n), encode, batch_size=size, seed=seed, **options)  # type: ignore[arg-type]
    return [batch.number.tolist() for batch in itertools.islice(iterator, batches)]


def test_batches_keep_the_structure() -> None:
    batch = next(batch_iterator([5, 6, 7, 8], encode, batch_size=4, seed=0, shuffle=False))
    assert isinstance(batch, Row)
    assert batch.number.dtype == np.int32 and batch.number.tolist() == [5, 6, 7, 8]
    assert batch.pair[0].shape == (4, 3) and batch.pair[1].dtype == bool


@pytest.mark.parametrize(("n", "epochs", "batches"), [(22, None, 8), (22, 2, 5), (23, 1, 2)])
def test_shards_of_a_batch_are_the_global_batch(n: int, epochs: int | None, batches: int) -> None:
    asked = batches if epochs is None else None
    whole = numbers(n, asked, size=8, epochs=epochs)
    assert len(whole) == batches
    for count in (1, 2, 4):
        for p in range(count):
            rows = list(range(p, 8, count))
            shard = numbers(n, asked, size=8, epochs=epochs, rows=rows)
            # as many batches each: nobody waits for one that others don't have
            assert shard == [[batch[row] for row in rows] for batch in whole]


def test_every_record_once_an_epoch_in_a_new_order_each_time() -> None:
    stream = sum(numbers(12, 6), [])
    epochs = [stream[i : i + 12] for i in (0, 12, 24)]
    for order in epochs:
        assert sorted(order) == list(range(12))
    assert len({tuple(order) for order in [*epochs, list(range(12))]}) == 4


def test_batches_straddle_epochs_and_nothing_is_lost() -> None:
    stream = sum(numbers(10, 10), [])  # 60 rows, 6 epochs of 10
    for start in range(0, 60, 10):
        assert sorted(stream[start : start + 10]) == list(range(10))


def test_order_depends_on_the_seed_alone() -> None:
    assert numbers(50, 8, seed=1) == numbers(50, 8, seed=1)
    assert numbers(50, 8, seed=1) != numbers(50, 8, seed=2)
    first = [sum(numbers(50, 25, size=2, seed=seed), []) for seed in range(4)]
    second = [sum(numbers(50, 50, size=2, seed=seed), [])[50:] for seed in range(4)]
    assert all(a != b for a in first for b in second)  # epoch 1 of one seed is not epoch 0 of the next


def test_a_finite_run_drops_the_remainder() -> None:
    batches = numbers(10, None, size=4, epochs=1)
    assert [len(batch) for batch in batches] == [4, 4]
    assert len(set(sum(batches, []))) == 8
    assert numbers(10, None, size=4, epochs=1, shuffle=False) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("done", [0, 1, 4, 7])
def test_state_is_json_and_continues_exactly(done: int) -> None:
    options = {"batch_size": 4, "seed": 3, "rows": [2, 3]}
    iterator = batch_iterator(range(11), encode, **options)  # type: ignore[arg-type]
    for _ in range(done):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator).number.tolist() for _ in range(5)]
    restored = batch_iterator(range(11), encode, **options)  # type: ignore[arg-type]
    next(restored)  # wherever it stood
    restored.set_state(state)
    assert [next(restored).number.tolist() for _ in range(5)] == expected


def test_state_serves_another_number_of_processes() -> None:
    whole = numbers(11, 6, size=4)
    iterator = batch_iterator(range(11), encode, batch_size=4, seed=0)
    for _ in range(3):
        next(iterator)
    for rows in ([0, 1], [2, 3], [1, 3]):
        shard = batch_iterator(range(11), encode, batch_size=4, seed=0, rows=rows)
        shard.set_state(iterator.get_state())
        assert next(shard).number.tolist() == [whole[3][row] for row in rows]


def test_records_are_encoded_when_their_batch_is_asked_for_and_without_threads() -> None:
    before = set(threading.enumerate())
    seen: list[int] = []

    def watched(number: int) -> Row:
        assert threading.current_thread() in before
        seen.append(number)
        return encode(number)

    iterator = batch_iterator(range(100), watched, batch_size=5, seed=0)
    assert seen == []
    next(iterator)
    assert len(seen) == 5
    assert set(threading.enumerate()) == before


def test_reading_is_silent() -> None:
    code = (
        "import numpy as np\n"
        "from prl_jax.data.pipeline import batch_iterator\n"
        "it = batch_iterator(range(10), np.int32, batch_size=4, seed=0, epochs=1)\n"
        "assert len(list(it)) == 2\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_bad_requests() -> None:
    with pytest.raises(UserError, match="^the data set is empty: expected at least one record$"):
        batch_iterator([], encode, batch_size=2, seed=0)
    with pytest.raises(UserError, match="^batch size 0: expected at least 1$"):
        batch_iterator([1], encode, batch_size=0, seed=0)
    with pytest.raises(UserError, match="^3 records in 2 epochs do not fill one batch of 8: lower the batch size or"):
        batch_iterator([1, 2, 3], encode, batch_size=8, seed=0, epochs=2)
    with pytest.raises(ValueError, match=r"rows \[4\]: expected rows of a batch of 4"):
        batch_iterator([1], encode, batch_size=4, seed=0, rows=[4])


def test_fewer_records_than_a_batch_go_round() -> None:
    assert sorted(sum(numbers(3, 3, size=8), [])) == sorted(list(range(3)) * 8)
    assert numbers(1, 1, size=3) == [[0, 0, 0]]
