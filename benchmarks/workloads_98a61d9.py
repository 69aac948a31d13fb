"""The workloads for commit 98a61d9, with which later checkouts are compared: what it calls in its own way.

That commit has no benchmark of this kind itself; its functions are called as it declares them, so this stays as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from prl_jax.stages.cards import ModelCard
from prl_jax.stages.ppo_step import Setup, iteration
from prl_jax.training.ppo import CriticContext, PPOConfig, initial_state, make_update, prepare, run_update
from workload_shapes import OPTIMIZER, PPO, Step
from workload_steps import (
    World,
    counter,
    generation,
    given_rollout,
    judging,
    learner_states,
    log_probabilities,
    numbers,
    pairs,
    sft_loop,
    sft_step,
    supervised,
)

from prl_jax.optim import make_optimizer
from prl_jax.processes import fetch, put_batch
from prl_jax.sharding import replicated
from prl_jax.stages import config as sections
from prl_jax.training.reward_model import bradley_terry_objective, generative_objective
from prl_jax.types import PreferenceBatch, SFTBatch


def bradley_terry_step(world: World) -> Step:
    """W2: one step of a Bradley-Terry model."""
    return supervised(world, bradley_terry_objective(), world.scalar_model(0), PreferenceBatch(*pairs(world)))


def generative_step(world: World) -> Step:
    """W2p: one step of a generative judge, both orders of each pair."""
    return supervised(world, generative_objective((5, 6)), world.decoder(0), PreferenceBatch(*pairs(world)))


def take(given: tuple[SFTBatch, np.ndarray], mesh: jax.sharding.Mesh) -> tuple[SFTBatch, int]:
    """A batch of the pipeline on the mesh, and how many of its rows were cut."""
    batch, truncated = put_batch(given, mesh)
    return batch, int(fetch(truncated, mesh).sum())


class PolicyUpdate(NamedTuple):
    """The parts that update a policy from judged rollouts: configuration, first state and the jitted function."""

    config: PPOConfig
    state: Any
    update: Callable[..., Any]


def policy_update(world: World, *, minibatches: int) -> PolicyUpdate:
    """PPO with a critic of its own, of the policy's size."""
    config, optimizers, update = _ppo(minibatches)
    state = initial_state(*learner_states(world, optimizers), config)
    # As the stage does: elsewhere, the second call would compile once more.
    state = state._replace(kl_coef=jax.device_put(state.kl_coef, replicated(world.mesh)))
    return PolicyUpdate(config, state, update)


@functools.cache
def _ppo(minibatches: int) -> tuple[PPOConfig, tuple[Any, Any], Callable[..., Any]]:
    """Configuration, optimizers and the jitted update, which workloads of one process share."""
    config = PPOConfig(minibatches=minibatches, **PPO)
    optimizers = (make_optimizer(**OPTIMIZER), make_optimizer(**OPTIMIZER))
    return config, optimizers, make_update(config, *optimizers)


def policy_step(world: World) -> Step:
    """W4: one update on given rollouts and scores, their log-probabilities and values included."""
    calls = counter()
    config, state, update = policy_update(world, minibatches=1)
    rollout = given_rollout(world)
    context = CriticContext(rollout.prompt, rollout.prompt_mask)
    reference, score = world.decoder(2), jnp.asarray(world.inputs.normal(world.size.update_rows))

    def step() -> dict[str, float]:
        nonlocal state
        experience, before = prepare(state, reference, rollout, context, score, config=config)
        key = jax.random.key(calls())
        state, metrics = run_update(update, state, experience, key, config, train_policy=True)
        return numbers({**metrics, **before})

    return step


def policy_iteration(world: World, *, pairwise: bool) -> Step:
    """W5, W5p: one whole iteration: sample, judge (by scores, or against an anchor), freeze, update."""
    size, calls = world.size, counter()
    config, state, update = policy_update(world, minibatches=size.batch // size.update_rows)
    surroundings = judging(world, pairwise=pairwise)
    section = sections.ppo(
        reward="pairwise" if pairwise else "score",
        opponents="anchor",
        anchors="anchors" if pairwise else "",
        group_size=1,
        prompts_per_step=size.batch,
    )
    context = types.SimpleNamespace(
        name="benchmark", section=ConfigDict(section), mesh=world.mesh, key=jax.random.key(0)
    )
    card = ModelCard("policy", dataclasses.asdict(world.config), size.prompt, size.response)
    setup = Setup(
        context=context,
        config=config,
        card=card,
        tokenizer=world.tokenizer,
        sampling=world.sampling,
        win_rate_judge=surroundings.judge,
        **surroundings._asdict(),
    )

    def step() -> dict[str, float]:
        nonlocal state
        n = calls()
        index = (np.arange(size.batch) + n * size.batch) % len(surroundings.records)
        state, metrics, _, _ = iteration(setup, update, state, index, n, train_policy=True)
        return numbers(metrics)

    return step


WORKLOADS: dict[str, Callable[[World], Step]] = {
    "W1": sft_step,
    "L1": functools.partial(sft_loop, take=take),
    "W2": bradley_terry_step,
    "W2p": generative_step,
    "W3": generation,
    "W4": policy_step,
    "W5": functools.partial(policy_iteration, pairwise=False),
    "W5p": functools.partial(policy_iteration, pairwise=True),
    "W6": log_probabilities,
}
