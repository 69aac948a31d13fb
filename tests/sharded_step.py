"""Run by test_sharding.py on eight virtual devices: training on a mesh is training on one device."""

import jax
import jax.numpy as jnp
import numpy as np
from fakes import make_decoder, on_mesh, random_tokens
from jax.sharding import PartitionSpec

from prl_jax.errors import UserError
from prl_jax.models import LOGICAL_AXES
from prl_jax.optim import make_optimizer
from prl_jax.processes import put_batch
from prl_jax.sharding import make_mesh, sharded_init
from prl_jax.training.sft import SFT
from prl_jax.training.state import create_state
from prl_jax.training.step import make_train_step
from prl_jax.tree import flatten
from prl_jax.types import SFTBatch, TokenRows

ROWS, LENGTH = 8, 6


def batch() -> SFTBatch:
    """Rows of very unequal length, so that devices hold unequal numbers of tokens."""
    lengths = np.array([6, 1, 2, 6, 1, 1, 5, 3])
    tokens = random_tokens(0, ROWS, LENGTH + 1)
    valid = np.arange(LENGTH) < lengths[:, None]
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), valid.shape)
    return SFTBatch(TokenRows(tokens[:, :-1], positions, valid.astype(np.int32)), tokens[:, 1:], valid)


def train(mesh: jax.sharding.Mesh, accumulate: int):
    """Two steps with a clip that bites, from the same parameters."""
    optimizer = make_optimizer(learning_rate=0.02, total_steps=5, clip_norm=0.1, weight_decay=0.01)
    state = create_state(on_mesh(make_decoder(layers=1, tied_embeddings=False), mesh), optimizer, mesh, LOGICAL_AXES)
    shardings = [x.sharding for x in jax.tree.leaves(state)]
    step, rows = make_train_step(SFT, optimizer, accumulate), put_batch(batch(), mesh)
    for _ in range(2):
        state, metrics = step(state, rows)
    assert [x.sharding for x in jax.tree.leaves(state)] == shardings
    return state, jax.device_get(metrics)


def check_one_device_equals_eight() -> None:
    (alone, metrics), (together, others) = (
        train(make_mesh(devices=jax.devices()[:1]), 1),
        train(make_mesh(data=2, fsdp=2, tensor=2), 2),
    )
    assert metrics["grad_norm"] > 0.2
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-5, err_msg=name)
    arrays = flatten(alone.model)
    for name, array in flatten(together.model).items():
        # Adam divides by the size of the gradient, so that rounding moves entries whose gradient is tiny.
        np.testing.assert_allclose(array, arrays[name], atol=1e-5, err_msg=name)


def check_shardings() -> None:
    mesh = make_mesh(data=-1, fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    shapes = {"embedding": (32, 16), "up.weight": (3, 16, 25), "scale": (16,)}
    make = lambda: {name: jnp.ones(shape) for name, shape in shapes.items()}  # noqa: E731
    arrays = sharded_init(make, mesh, LOGICAL_AXES)
    assert arrays["embedding"].sharding.spec == PartitionSpec("tensor", "fsdp")
    assert arrays["embedding"].addressable_shards[0].data.shape == (16, 8)
    assert arrays["up.weight"].addressable_shards[0].data.shape == (3, 8, 25)  # 25 columns do not divide by 2
    assert arrays["scale"].is_fully_replicated
    assert put_batch(np.arange(8), mesh).addressable_shards[0].data.shape == (2,)
    for wrong in ({"data": 3}, {"data": 2, "fsdp": 2}, {"data": -1, "fsdp": -1}, {"fsdp": 0}, {"tensor": 16}):
        try:
            make_mesh(**wrong)
        except UserError as error:
            assert "8 devices" in str(error)
        else:
            raise AssertionError(f"make_mesh took {wrong}")


if __name__ == "__main__":
    assert jax.device_count() == 8
    check_shardings()
    check_one_device_equals_eight()
    print("equal")
