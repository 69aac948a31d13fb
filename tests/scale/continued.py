"""Run by test_continued.py: training that stops on one mesh and goes on on another.

    python continued.py FOLDER NAME=JSON ... [--join COORDINATOR NUMBER INDEX]

JSON is `{"mesh": sizes of the axes, "from": NAME}`. Without "from" it trains two steps, keeps a checkpoint and trains
two more; with it, two steps follow on that checkpoint. What has come of them is a file of arrays.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from fakes import make_decoder, on_mesh, with_pieces
from scale.steps import (
    METHOD,
    OPTIMIZER,
    ROWS,
    SCHEDULE,
    Arrays,
    command,
    fixed_rollout,
    named,
    policy_state,
    put_rollout,
    supervised_tasks,
)

from prl_jax.checkpoint import Checkpoints
from prl_jax.models import LOGICAL_AXES
from prl_jax.processes import fetch, is_leader
from prl_jax.sharding import make_mesh
from prl_jax.stages.online import parts, whole
from prl_jax.training.policy import make_updates, prepare, run_updates
from prl_jax.training.rollout import CriticContext
from prl_jax.training.state import PolicyState, TrainState, create_state, released, steer_kl, with_returns
from prl_jax.training.step import make_train_step
from prl_jax.tree import flatten

Metrics = dict[str, Any]
STEERED = with_pieces(METHOD, regulariser=dict(steer=(0.01, 100.0)))
PIECES = {"method": STEERED, "schedule": SCHEDULE}


class Training(NamedTuple):
    """What a stage keeps of a state in a checkpoint, and how it goes on."""

    state: Any
    step: Callable[[Any], tuple[Any, Metrics]]
    parts: Callable[[Any], tuple[Any, Any]]
    whole: Callable[[Any, Any, Any], Any]


def trainings(mesh: jax.sharding.Mesh) -> Iterator[tuple[str, Training]]:
    for name, task in supervised_tasks(mesh).items():
        update, batch = make_train_step(task.objective, OPTIMIZER, 2, dropout=task.dropout), task.batch
        yield (
            name,
            Training(
                create_state(task.model, OPTIMIZER, mesh, LOGICAL_AXES),
                lambda state, update=update, batch=batch: update(state, batch),
                lambda state: (state.model, (state.opt_state, state.step)),
                lambda state, model, train: TrainState(model, *train),
            ),
        )
    rollout, reference = put_rollout(fixed_rollout(), mesh), on_mesh(make_decoder(2, layers=1), mesh)
    context = CriticContext(rollout.prompt, rollout.prompt_mask)
    updates = make_updates(STEERED, SCHEDULE, OPTIMIZER, OPTIMIZER)
    score, key = np.linspace(-1, 1, ROWS, dtype=np.float32), jax.random.key(0)

    def step(state: PolicyState) -> tuple[PolicyState, Metrics]:
        experience, before = prepare(state, reference, rollout, context, score, **PIECES)
        state = with_returns(state, before["return_deviation"])
        state, metrics = run_updates(updates, state, experience, key, **PIECES, train_policy=True)
        return steer_kl(state, before["kl"], ROWS, STEERED), metrics

    yield "policy", Training(policy_state(mesh, STEERED), step, parts, whole)


def train(folder: Path, name: str, mesh: jax.sharding.Mesh, source: str | None) -> Arrays:
    out: Arrays = {}
    for task, training in trainings(mesh):
        state = training.state
        with Checkpoints(folder / "checkpoints" / (source or name) / task, read_only=source is not None) as checkpoints:
            if source is None:
                for _ in range(2):
                    state, _ = training.step(state)
                model, rest = training.parts(state)
                checkpoints.save(2, model=model, train=rest, data={})
                checkpoints.wait()
            else:
                state = released(state)
                model, rest = training.parts(state)
                saved = checkpoints.restore(model=model, train=rest)
                state = training.whole(state, saved.model, saved.train)
        for _ in range(2):
            state, metrics = training.step(state)
        model, rest = training.parts(state)
        out |= named(f"{task}/later metric", metrics) | named(f"{task}/parameter", flatten(model))
        out |= named(f"{task}/rest", flatten(rest))
    return out


def write(folder: Path, name: str, mesh: dict[str, int], source: str | None) -> None:
    mesh = make_mesh(**mesh, devices=jax.devices()[: np.prod(list(mesh.values()))])
    with jax.set_mesh(mesh):
        arrays = {key: fetch(array, mesh) for key, array in train(folder, name, mesh, source).items()}
    if is_leader():
        np.savez(folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    with command() as (folder, asked):
        for name, one in asked.items():
            write(folder, name, one["mesh"], one.get("from"))
