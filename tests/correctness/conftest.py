"""A fixed rollout, small models with random parameters, and updates of them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from correctness import world
from correctness.world import CLIP_NORM, LENGTHS, PLAIN, PROMPTS, ROOM, SCORE, TEMPERATURE, TRUNCATED, Setting, Truth
from fakes import make_decoder, make_rollout, on_mesh, one_device

from prl_jax.models import LOGICAL_AXES
from prl_jax.optim import make_optimizer
from prl_jax.training.policy import Updates, make_updates, prepare
from prl_jax.training.rollout import CriticContext, Experience
from prl_jax.training.state import PolicyState, create_state, initial_state
from prl_jax.types import Rollout


@pytest.fixture(scope="session")
def models() -> SimpleNamespace:
    return SimpleNamespace(
        policy=make_decoder(0, layers=1), critic=world.make_critic(1), reference=make_decoder(2, layers=1)
    )


@pytest.fixture(scope="session")
def rollout() -> Rollout:
    return make_rollout(0, PROMPTS, LENGTHS, TRUNCATED, room=ROOM)


@pytest.fixture(scope="session")
def truth(models, rollout) -> Truth:
    laws = [world.response_laws(model, rollout, TEMPERATURE) for model in (models.policy, models.reference)]
    logp, logp_ref = (world.chosen(law, rollout) for law in laws)
    return Truth(logp, logp_ref, *world.response_values(models.critic, rollout))


@pytest.fixture(scope="session")
def optimizer():
    """Of policy and critic; its clip bites."""
    return make_optimizer(learning_rate=0.03, total_steps=100, clip_norm=CLIP_NORM)


@pytest.fixture(scope="session")
def fresh(models, optimizer) -> Callable[[], PolicyState]:
    """The state before the first update; an update donates it."""
    mesh = one_device()
    create = lambda model: create_state(on_mesh(model, mesh), optimizer, mesh, LOGICAL_AXES)  # noqa: E731
    return lambda: initial_state(create(models.policy), create(models.critic), PLAIN.method)


@pytest.fixture(scope="session")
def updates(optimizer) -> Updates:
    """Of policy and critic on a minibatch, as `PLAIN` has it."""
    return make_updates(*PLAIN, optimizer, optimizer)


@pytest.fixture(scope="session")
def update(updates):
    """One update of policy and critic."""
    return updates.train


@pytest.fixture(scope="session")
def freeze(models, rollout, fresh) -> Callable[..., tuple[Experience, dict[str, np.ndarray]]]:
    """`prepare` on the rollout, as NumPy arrays."""
    state = fresh()

    def call(setting: Setting = PLAIN, score: Any = SCORE, rollout: Rollout = rollout):
        context = CriticContext(rollout.prompt, rollout.prompt_mask)
        score = jnp.asarray(score, jnp.float32)
        return jax.device_get(prepare(state, models.reference, rollout, context, score, **setting._asdict()))

    return call
