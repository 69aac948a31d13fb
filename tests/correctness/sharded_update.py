"""Run by test_virtual_devices.py on eight of them: one update of PPO on a mesh and on one device, written to a file."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from correctness.world import make_critic
from fakes import make_decoder, make_rollout, on_mesh, with_pieces

from prl_jax.methods import METHODS
from prl_jax.models import LOGICAL_AXES
from prl_jax.optim import make_optimizer
from prl_jax.processes import put_batch
from prl_jax.sharding import make_mesh
from prl_jax.training.policy import Schedule, make_updates, prepare
from prl_jax.training.rollout import CriticContext
from prl_jax.training.state import create_state, initial_state
from prl_jax.tree import flatten
from prl_jax.types import Rollout

ROWS, ROOM, CLIP_NORM = 8, 5, 0.05
LENGTHS = [5, 1, 1, 2, 5, 1, 3, 1]  # devices hold unequal numbers of tokens
SCORE = np.linspace(-1, 2, ROWS, dtype=np.float32)
METHOD = with_pieces(METHODS["ppo"].method, regulariser=dict(coefficient=0.2))


def run(mesh: jax.sharding.Mesh, accumulate: int) -> dict[str, np.ndarray]:
    schedule = Schedule(accumulate=accumulate)
    optimizer = make_optimizer(learning_rate=0.01, total_steps=5, clip_norm=CLIP_NORM)
    create = lambda model: create_state(on_mesh(model, mesh), optimizer, mesh, LOGICAL_AXES)  # noqa: E731
    state = initial_state(create(make_decoder(0, layers=1)), create(make_critic(1)), METHOD)
    rollout = make_rollout(0, [3, 1, 4, 2] * 2, LENGTHS, [False] * ROWS, room=ROOM)
    rollout = Rollout(*put_batch(tuple(map(np.asarray, rollout)), mesh))
    context = CriticContext(rollout.prompt, rollout.prompt_mask)
    reference = on_mesh(make_decoder(2, layers=1), mesh)
    score = put_batch(SCORE, mesh)
    experience, _ = prepare(state, reference, rollout, context, score, method=METHOD, schedule=schedule)
    frozen, returns = experience.frozen, experience.critique.returns
    out = {"mask": experience.mask, "advantages": frozen.advantages, "returns": returns}
    # Old log-probs of another policy, so that the ratio differs from 1.
    old = frozen.logp_old + 0.4 * jnp.sin(jnp.arange(ROOM))[None]
    moved = experience._replace(frozen=frozen._replace(logp_old=old))
    updates = make_updates(METHOD, schedule, optimizer, optimizer)
    state, metrics = updates.train(state, moved, jnp.arange(ROWS))
    out |= {f"metrics/{name}": value for name, value in metrics.items()}
    for part in ("policy", "critic"):
        moments = optax.tree.get(getattr(state, part).opt_state, "mu")
        out |= {f"{part}/{name}": value for name, value in flatten(moments).items()}
    return {name: np.asarray(value) for name, value in out.items()}


if __name__ == "__main__":
    assert jax.device_count() == 8
    alone, together = run(make_mesh(devices=jax.devices()[:1]), 1), run(make_mesh(data=2, fsdp=2, tensor=2), 2)
    both = {f"{where}:{name}": x for where, out in (("1", alone), ("8", together)) for name, x in out.items()}
    np.savez(sys.argv[1], clip_norm=CLIP_NORM, **both)
