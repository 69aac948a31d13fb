"""Run by test_checkpoint.py on eight virtual devices: a checkpoint continues on another mesh as on its own."""

import sys
from pathlib import Path

import jax
import numpy as np
from fakes import make_decoder, on_mesh
from sharded_step import batch

from prl_jax.checkpoint import Checkpoints
from prl_jax.models import LOGICAL_AXES
from prl_jax.optim import make_optimizer
from prl_jax.processes import put_batch
from prl_jax.sharding import make_mesh
from prl_jax.training.sft import SFT
from prl_jax.training.state import TrainState, create_state
from prl_jax.training.step import make_train_step
from prl_jax.tree import flatten

OPTIMIZER = make_optimizer(learning_rate=0.02, total_steps=5, clip_norm=0.1, weight_decay=0.01)


def start(mesh) -> TrainState:
    return create_state(on_mesh(make_decoder(layers=1, tied_embeddings=False), mesh), OPTIMIZER, mesh, LOGICAL_AXES)


def steps(state: TrainState, mesh, count: int) -> tuple[TrainState, dict]:
    step, rows = make_train_step(SFT, OPTIMIZER, 1), put_batch(batch(), mesh)
    with jax.set_mesh(mesh):
        for _ in range(count):
            state, metrics = step(state, rows)
    return state, jax.device_get(metrics)


def rest(state: TrainState) -> dict:
    return {"opt_state": state.opt_state, "step": state.step, "kl_coef": state.step * 0.5}


def main(directory: Path) -> None:
    devices = jax.devices()
    first = make_mesh(data=2, fsdp=2, tensor=2)
    state, _ = steps(start(first), first, 2)
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(2, model=state.model, train=rest(state), data={})
    saved = jax.device_get((flatten(state.model), flatten(rest(state))))
    state, metrics = steps(state, first, 2)
    whole = jax.device_get(flatten(state.model))
    for mesh in (make_mesh(fsdp=4, tensor=2), make_mesh(devices=devices[:1])):
        like = start(mesh)
        with Checkpoints(directory) as checkpoints:
            restored = checkpoints.restore(model=like.model, train=rest(like))
        for got, expected, there in zip((restored.model, restored.train), saved, (like.model, rest(like)), strict=True):
            for name, array in flatten(got).items():
                np.testing.assert_array_equal(array, expected[name], err_msg=name)
                assert array.sharding == flatten(there)[name].sharding, name
        assert int(restored.train["step"]) == 2 and float(restored.train["kl_coef"]) == 1.0
        state = TrainState(restored.model, restored.train["opt_state"], restored.train["step"])
        state, others = steps(state, mesh, 2)
        for name, value in metrics.items():
            np.testing.assert_allclose(others[name], value, rtol=1e-5, err_msg=name)
        for name, array in flatten(state.model).items():
            np.testing.assert_allclose(array, whole[name], atol=1e-5, err_msg=name)


if __name__ == "__main__":
    assert jax.device_count() == 8
    main(Path(sys.argv[1]))
    print("equal")
