"""Run by test_checkpoint.py in two processes: damage that one of them meets sends all to the checkpoint before."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from prl_jax.checkpoint import Checkpoints
from prl_jax.processes import fetch, is_leader, joined, wait_for_all
from prl_jax.sharding import make_mesh


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def main(directory: Path, damage: Callable[[Path], None]) -> None:
    mesh = make_mesh(fsdp=2)
    cut, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())
    values = np.random.default_rng(0).normal(size=(64, 300)).astype(np.float32)
    put = lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])  # noqa: E731
    with Checkpoints(directory) as checkpoints:
        for step in (2, 4):
            train = {"step": put(np.array(step, np.int32), whole)}
            checkpoints.save(step, model={"w": put(values * step, cut)}, train=train, data={"n": step})
    wait_for_all("saved")
    if is_leader():
        # Where process 1 wrote its half.
        victims = sorted(directory.glob("4/model/ocdbt.process_1/d/*"), key=lambda path: path.stat().st_size)
        damage(victims[-1])
    wait_for_all("damaged")
    start = time.monotonic()
    with Checkpoints(directory) as checkpoints:
        like = {"w": put(values * 0, cut)}
        step, model, train, data = checkpoints.restore(model=like, train={"step": put(np.array(0, np.int32), whole)})
        assert step == 2 == int(train["step"]) == data["n"] and checkpoints.latest() == 2
        np.testing.assert_array_equal(fetch(model["w"], mesh), values * 2)
        checkpoints.save(4, model={"w": put(values * 4, cut)}, train=train, data={"n": 4})
        checkpoints.finish()
    wait_for_all("saved again")
    assert sorted(path.name for path in directory.iterdir()) == ["4"]
    with Checkpoints(directory, read_only=True) as checkpoints:
        np.testing.assert_array_equal(fetch(checkpoints.restore_model(like)["w"], mesh), values * 4)
    assert time.monotonic() - start < 60


if __name__ == "__main__":
    coordinator, number, index = sys.argv[sys.argv.index("--join") + 1 :]

    def tell(error: BaseException) -> int:
        raise error

    with joined(coordinator, int(number), int(index), heartbeat_timeout=30, tell=tell):
        assert jax.process_count() == 2 and jnp.ones(2).sum() == 2
        for damage in (flip, Path.unlink):
            main(Path(sys.argv[1]) / damage.__name__, damage)
