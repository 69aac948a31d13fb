"""One run in several processes: which rows of a batch are whose, and what one process does for all.

Every process runs the same program in the same order. What is small is the same in all of them: records, texts,
rewards, metrics. What is large is cut: each process encodes the rows of a batch that its devices hold (`local_rows`)
and holds its pieces of the arrays. Where the rows of a batch lie never changes which rows they are, so that results do
not depend on the number of processes.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float, Int

from prl_jax.errors import Stopped, UserError
from prl_jax.sharding import BATCH_AXES, batch_sharding, replicated

Tree = TypeVar("Tree")

_waits: contextvars.ContextVar[list[float] | None] = contextvars.ContextVar("waits", default=None)


def is_leader() -> bool:
    """Whether this is the process that writes files and speaks to the terminal."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when every process has got here; `what` names the place, the same in all of them."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def agreed(here: bool) -> bool:
    """Whether something holds in every process; all of them must ask."""
    if jax.process_count() == 1:
        return here
    return bool(np.all(multihost_utils.process_allgather(np.array(here))))


def least(here: float) -> float:
    """The smallest of the numbers that the processes have, in float32; all of them must ask."""
    if jax.process_count() == 1:
        return here
    return float(np.min(multihost_utils.process_allgather(np.array(here, np.float32))))


def greatest(here: int) -> int:
    """The largest of the counts that the processes have, at most 2^24; all of them must ask."""
    return -int(least(float(-here)))


def as_leader(here: bool) -> bool:
    """Returns what the first process says; all of them must ask."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.broadcast_one_to_all(np.array(here)))


def from_leader(ask: Callable[[], Float[np.ndarray, "N"]], count: int) -> Float[np.ndarray, "N"]:
    """`[N]` float64 numbers that the first process has found, in every process; all of them must ask.

    For what may answer every process otherwise: a function of the user's, or another program.

    Args:
      ask: finds the `count` numbers; it is called in the first process alone.

    Raises:
      UserError: `ask` has raised it; in every process the same.
    """
    if jax.process_count() == 1:
        return ask()
    numbers, failure = np.zeros(count), b""
    if is_leader():
        try:
            numbers = np.asarray(ask(), np.float64)
        except UserError as error:
            failure = str(error).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.array(len(failure), np.int32)))
    if length:
        raise UserError(_bytes_of_leader(failure, length).decode())
    return np.frombuffer(_bytes_of_leader(numbers.tobytes(), numbers.nbytes))


def _bytes_of_leader(data: bytes, length: int) -> bytes:
    """The bytes that the first process has; all processes know how many. Few lengths are sent: each one compiles."""
    sent = np.zeros(1 << length.bit_length(), np.uint8)
    if is_leader():
        sent[:length] = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(sent))[:length].tobytes()


def shared(look: Callable[[int], int], count: int) -> Int[np.ndarray, "N"]:
    """`look(i)` of each of `count` items, a small number: every process looks at a part of them and has the result of
    all. `look` must not raise: the others would wait."""
    local = [look(i) for i in range(jax.process_index(), count, jax.process_count())]
    return all_rows(np.array(local, np.int32).reshape(-1, 1), count)[:, 0]


def all_rows(local: Int[np.ndarray, "n C"], count: int) -> Int[np.ndarray, "N C"]:
    """Rows of int32 that the processes have found in turn, every so many-th each, put together in every process."""
    number = jax.process_count()
    if number == 1:
        return local
    parts = np.zeros((-(-count // number), local.shape[1]), np.int32)
    parts[: len(local)] = local
    return multihost_utils.process_allgather(parts).swapaxes(0, 1).reshape(-1, local.shape[1])[:count]


@contextlib.contextmanager
def joined(
    coordinator: str, number: int, index: int, *, heartbeat_timeout: int, tell: Callable[[BaseException], int]
) -> Iterator[None]:
    """Joins the processes of a run; nothing may have asked for JAX's devices before.

    A process that fails in here ends at once, without the farewell in which Python would wait for the others, who may
    wait for this one: they notice its silence and end too.

    Args:
      coordinator: `HOST:PORT` of process 0; "" asks the cluster (Cloud TPU, SLURM, Open MPI, Kubernetes).
      number: of processes; 1 joins none, -1 asks the cluster.
      index: which of them this is; -1 asks the cluster.
      heartbeat_timeout: seconds after which a silent process is taken for lost, and every other one ends.
      tell: says why this process fails and returns its exit code, or raises what it cannot explain.

    Raises:
      UserError: the cluster does not tell, or the coordinator cannot be reached.
    """
    if number == 1:
        yield
        return
    # Several processes on the CPU talk through gloo; other platforms do not look at this.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    asked = (coordinator or None, None if number < 0 else number, None if index < 0 else index)
    try:
        jax.distributed.initialize(*asked, heartbeat_timeout_seconds=heartbeat_timeout)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"several processes: {' '.join(str(error).split())[:300]}; where the cluster does not tell, give "
            "--coordinator HOST:PORT --num_processes N --process_id I, the same HOST:PORT to each of the N processes"
        ) from error
    try:
        yield
        wait_for_all("the run is finished")
    except BaseException as error:
        code = 1
        try:
            if isinstance(error, Stopped):  # all of them are, at the same step
                wait_for_all("the run is stopped")
            code = tell(error)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@functools.lru_cache(maxsize=16)
def _shards(mesh: Mesh) -> tuple[int, tuple[int, ...]]:
    """Shards of a batch, and which of them the devices of this process hold, in ascending order."""
    sizes = [mesh.shape[axis] for axis in BATCH_AXES]
    mine = np.vectorize(lambda device: device.process_index)(mesh.devices) == jax.process_index()
    places = dict(zip(mesh.axis_names, np.nonzero(mine), strict=True))
    held = np.unique(np.ravel_multi_index([places[axis] for axis in BATCH_AXES], sizes))
    return math.prod(sizes), tuple(held.tolist())


def local_rows(mesh: Mesh, count: int) -> Int[np.ndarray, "n"]:
    """Which rows of a batch of `count` rows the devices of this process hold, in ascending order.

    Processes that a tensor-parallel group spans hold the same ones.
    """
    shards, held = _shards(mesh)
    if count % shards:
        raise ValueError(f"{count} rows cannot be cut into the {shards} shards of mesh {dict(mesh.shape)}")
    size = count // shards
    return (np.array(held)[:, None] * size + np.arange(size)).reshape(-1)


def whole_batch(rows: int, mesh: Mesh) -> int:
    """The smallest number of at least `rows` rows that divides among the mesh's shards of a batch."""
    shards, _ = _shards(mesh)
    return -(-rows // shards) * shards


def batch_rows(count: int, size: int, mesh: Mesh | None) -> Iterator[Int[np.ndarray, "n"]]:
    """Cuts `count` items into batches of `size`: for each, the items that this process puts into it (`put_batch`).

    The last batch is filled up with the last item. Without a mesh one process has all rows.
    """
    mine = np.arange(size) if mesh is None else local_rows(mesh, size)
    for start in range(0, count, size):
        yield np.minimum(start + mine, count - 1)


def put_batch(rows: Tree, mesh: Mesh) -> Tree:
    """The rows of this process (`local_rows`, numpy) -> global arrays, cut along the batch axes."""
    shards, held = _shards(mesh)
    sharding = batch_sharding(mesh)

    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        count = len(x) * shards // len(held)
        mine = local_rows(mesh, count)

        def piece(index: tuple[slice, ...]) -> np.ndarray:
            first = int(np.searchsorted(mine, index[0].start or 0))
            return x[first : first + count // shards]

        return jax.make_array_from_callback((count, *x.shape[1:]), sharding, piece)

    return jax.tree.map(put, rows)


def fetch(tree: Tree, mesh: Mesh | None = None) -> Tree:
    """Whole arrays as numpy, the same in every process; all of them must ask."""
    start = time.perf_counter()
    if mesh is not None and jax.process_count() > 1:
        tree = _replicate(replicated(mesh))(tree)
    tree = jax.device_get(tree)
    if (seconds := _waits.get()) is not None:
        seconds.append(time.perf_counter() - start)
    return tree


@contextlib.contextmanager
def waits() -> Iterator[list[float]]:
    """The seconds of each `fetch` in here: it waits for the devices, and they for those of the other processes."""
    token = _waits.set(seconds := [])
    try:
        yield seconds
    finally:
        _waits.reset(token)


@functools.cache
def _replicate(sharding: NamedSharding) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=sharding)
