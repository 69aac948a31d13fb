"""Run by test_sharding.py on eight virtual devices: training on a mesh is training on one device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from fakes import make_decoder, on_mesh, random_tokens
from jax.sharding import NamedSharding, PartitionSpec

from prl_jax.errors import UserError
from prl_jax.models import LOGICAL_AXES, Decoder
from prl_jax.models.packing import rows_needed
from prl_jax.optim import make_optimizer
from prl_jax.processes import put_batch
from prl_jax.sampling import SamplingConfig, decode, generate, prefill, row_keys
from prl_jax.sharding import batch_sharding, constrain, make_mesh, sharded_init
from prl_jax.training.sft import SFT, sft_objective
from prl_jax.training.state import create_state
from prl_jax.training.step import gradients, make_train_step, microbatches
from prl_jax.tree import flatten
from prl_jax.types import Rollout, SFTBatch, TokenRows

ROWS, LENGTH = 8, 6


def batch(lengths: tuple[int, ...] = (6, 1, 2, 6, 1, 1, 5, 3)) -> SFTBatch:
    """Rows of very unequal length, so that devices hold unequal numbers of tokens."""
    tokens = random_tokens(0, ROWS, LENGTH + 1)
    valid = np.arange(LENGTH) < np.array(lengths)[:, None]
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), valid.shape)
    return SFTBatch(TokenRows(tokens[:, :-1], positions, valid.astype(np.int32)), tokens[:, 1:], valid)


def decoder() -> Decoder:
    """Two layers, so that a stack of them can be told from one."""
    return make_decoder(tied_embeddings=False)


def sample(mesh: jax.sharding.Mesh, temperature: float) -> Rollout:
    """Responses to prompts of unequal length, on a mesh."""
    mask = np.arange(LENGTH) >= LENGTH - np.array([6, 1, 2, 6, 1, 1, 5, 3])[:, None]
    prompt, mask = put_batch((random_tokens(1, ROWS, LENGTH), mask), mesh)
    config = SamplingConfig(5, (3,), 0, temperature=temperature)
    with jax.set_mesh(mesh):
        return jax.device_get(generate(on_mesh(decoder(), mesh), prompt, mask, KEYS, config=config))


def train(mesh: jax.sharding.Mesh, accumulate: int):
    """Two steps with a clip that bites, from the same parameters."""
    optimizer = make_optimizer(learning_rate=0.02, total_steps=5, clip_norm=0.1, weight_decay=0.01)
    state = create_state(on_mesh(decoder(), mesh), optimizer, mesh, LOGICAL_AXES)
    shardings = [x.sharding for x in jax.tree.leaves(state)]
    step, rows = make_train_step(SFT, optimizer, accumulate), put_batch(batch(), mesh)
    for _ in range(2):
        with jax.set_mesh(mesh):
            state, metrics = step(state, rows)
    assert [x.sharding for x in jax.tree.leaves(state)] == shardings
    return state, jax.device_get(metrics)


def check_one_device_equals_eight() -> None:
    one = make_mesh(devices=jax.devices()[:1])
    (alone, metrics), rollouts = train(one, 1), {temperature: sample(one, temperature) for temperature in (0.0, 1.0)}
    assert metrics["grad_norm"] > 0.2
    arrays = flatten(alone.model)
    for mesh, accumulate in zip(MESHES, (2, 3, 2), strict=True):
        together, others = train(mesh, accumulate)
        for name, value in metrics.items():
            np.testing.assert_allclose(others[name], value, rtol=1e-5, err_msg=name)
        for name, array in flatten(together.model).items():
            # Adam divides by the size of the gradient, so that rounding moves entries whose gradient is tiny.
            np.testing.assert_allclose(array, arrays[name], atol=2e-5, err_msg=name)
        for temperature, rollout in rollouts.items():
            for name, array in sample(mesh, temperature)._asdict().items():
                np.testing.assert_allclose(array, getattr(rollout, name), atol=2e-5, err_msg=name)


def check_packed() -> None:
    """Each device packs its own rows, and the gradient is that of padded rows on one device."""
    lengths = (3, 2, 1, 4, 2, 2, 5, 1)  # two fit into a row on each of four devices
    one, mesh = make_mesh(devices=jax.devices()[:1]), MESHES[0]
    found = []
    for where, packed in ((one, 0), (one, rows_needed(np.array([lengths]), LENGTH)), (mesh, 4)):
        rows = put_batch(batch(lengths), where)
        with jax.set_mesh(where):
            step = jax.jit(lambda model, rows, packed=packed: gradients(sft_objective(packed), model, rows))
            found.append(jax.device_get(step(on_mesh(decoder(), where), rows)))
    expected, metrics = found[0]
    for grads, others in found[1:]:
        np.testing.assert_allclose(others["loss"], metrics["loss"], rtol=1e-6)
        for name, array in flatten(grads).items():
            np.testing.assert_allclose(array, flatten(expected)[name], atol=1e-6, err_msg=name)


def check_where_things_lie() -> None:
    """Microbatches move no row; a decoding step gathers no matrix."""
    mesh, rows = make_mesh(data=2, fsdp=4), jax.ShapeDtypeStruct((16, 3), jnp.float32)
    with jax.set_mesh(mesh):
        cut = jax.jit(lambda x: microbatches(x, 2), in_shardings=batch_sharding(mesh))
        assert collectives(cut, rows) == []
        # Any other assignment of rows does move them.
        moved = jax.jit(lambda x: constrain(x.reshape(2, 8, 3), None, "batch", None), in_shardings=batch_sharding(mesh))
        assert collectives(moved, rows)
        hidden, cache, loop = decoding(mesh)
        for array, axes in (
            (hidden, (("data", "fsdp"), None)),
            (cache.mask, (("data", "fsdp"), None)),
        ):
            assert array.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(*axes)), array.ndim)
        gathered = [line for line in loop if "= f32" in line and "all-gather" in line]  # not the drawn tokens
        assert loop and not gathered, gathered
    exchanged = [line for line in loop if "all-to-all" in line]
    with jax.set_mesh(mesh := make_mesh(data=1, fsdp=4, decode=2)):
        _, cache, loop = decoding(mesh)
        assert cache.keys[0].sharding.spec[:2] == ("fsdp", "decode"), cache.keys[0].sharding
        assert len([line for line in loop if "all-to-all" in line]) < len(exchanged) / 3, loop


def decoding(mesh: jax.sharding.Mesh) -> tuple[Any, Any, list[str]]:
    """What prefill gives on the mesh in use, and the collectives inside the decode loop, which their names tell."""
    model, keys, config = on_mesh(decoder(), mesh), jax.random.split(jax.random.key(0), 16), SamplingConfig(5, (3,), 0)
    prompt = put_batch((random_tokens(1, 16, LENGTH), np.ones((16, LENGTH), bool)), mesh)
    hidden, cache = prefill(model, *prompt, config=config)
    lines = collectives(decode, model, hidden, cache, keys, config=config)
    return hidden, cache, [line for line in lines if "while/body" in line]


def collectives(function: Any, *arguments: Any, **options: Any) -> list[str]:
    """Lines of the compiled program in which devices exchange arrays."""
    text = function.lower(*arguments, **options).compile().as_text()
    kinds = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
    return [
        line for line in text.splitlines() if any(f" {kind}(" in line or f" {kind}-start(" in line for kind in kinds)
    ]


def check_shardings() -> None:
    mesh = make_mesh(data=-1, fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "decode": 1, "sequence": 1, "tensor": 2}
    shapes = {"embedding": (32, 16), "up.weight": (3, 16, 25), "scale": (16,)}
    make = lambda: {name: jnp.ones(shape) for name, shape in shapes.items()}  # noqa: E731
    arrays = sharded_init(make, mesh, LOGICAL_AXES)
    assert arrays["embedding"].sharding.spec == PartitionSpec("tensor", ("fsdp", "decode"))
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
    MESHES = (
        make_mesh(data=2, fsdp=2, tensor=2),
        make_mesh(data=1, fsdp=2, tensor=2, sequence=2),
        make_mesh(data=2, fsdp=2, decode=2),
    )
    KEYS = row_keys(jax.random.key(2), 0, ROWS)
    check_shardings()
    check_where_things_lie()
    check_one_device_equals_eight()
    check_packed()
    print("equal")
