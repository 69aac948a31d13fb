"""The functions that `prl run` executes, each as a step that `peer_workloads.py` times.

How a policy is sampled and trained is in `policy_update`, `policy_step` and `policy_iteration` alone;
what earlier checkouts call alike is in `workload_steps.py`.
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

from prl_jax.artifacts.cards import ModelCard
from prl_jax.methods import Anchors, Critic, Method, NoOpponent, RewardKL, Score, TokenClip, WinProbability
from prl_jax.optim import make_optimizer
from prl_jax.processes import put_batch
from prl_jax.sharding import replicated
from prl_jax.stages.online_samples import Setup
from prl_jax.stages.online_step import iteration
from prl_jax.training.policy import Schedule, Updates, make_updates, prepare, run_updates
from prl_jax.training.reward_model import bradley_terry_objective, generative_objective
from prl_jax.training.rollout import CriticContext
from prl_jax.training.state import initial_state
from prl_jax.types import ComparedPairs, ScoredPairs, SFTBatch


def bradley_terry_step(world: World) -> Step:
    """W2: one step of a Bradley-Terry model."""
    return supervised(world, bradley_terry_objective(), world.scalar_model(0), ScoredPairs(*pairs(world)))


def generative_step(world: World) -> Step:
    """W2p: one step of a generative judge, both orders of each pair."""
    return supervised(world, generative_objective((5, 6)), world.decoder(0), ComparedPairs(*pairs(world)))


def take(given: tuple[SFTBatch, np.ndarray], mesh: jax.sharding.Mesh) -> tuple[SFTBatch, int]:
    """A batch of the pipeline on the mesh, and how many of its rows were cut."""
    batch, truncated = given
    return put_batch(batch, mesh), int(truncated.sum())


class PolicyUpdate(NamedTuple):
    """The parts that update a policy from judged rollouts: pieces and schedule, first state, the jitted functions."""

    pieces: dict[str, Any]
    state: Any
    updates: Updates


def policy_update(world: World, *, minibatches: int, pairwise: bool = False) -> PolicyUpdate:
    """PPO with a critic of its own, of the policy's size."""
    pieces, optimizers, updates = _ppo(minibatches, pairwise)
    state = initial_state(*learner_states(world, optimizers), pieces["method"])
    # As the stage does: elsewhere, the second call would compile once more.
    state = state._replace(kl_coef=jax.device_put(state.kl_coef, replicated(world.mesh)))
    return PolicyUpdate(pieces, state, updates)


@functools.cache
def _ppo(minibatches: int, pairwise: bool) -> tuple[dict[str, Any], tuple[Any, Any], Updates]:
    """Pieces, optimizers and the jitted updates, which workloads of one process share."""
    compared = (Anchors(), WinProbability()) if pairwise else (NoOpponent(), Score())
    critic = Critic(lam_actor=PPO["lam_actor"], lam_critic=PPO["lam_critic"], weight=PPO["value_weight"])
    method = Method(*compared, critic, TokenClip(), RewardKL(coefficient=PPO["kl_coef"]))
    pieces = dict(method=method, schedule=Schedule(epochs=PPO["epochs"], minibatches=minibatches))
    optimizers = (make_optimizer(**OPTIMIZER), make_optimizer(**OPTIMIZER))
    return pieces, optimizers, make_updates(*pieces.values(), *optimizers)


def policy_step(world: World) -> Step:
    """W4: one update on given rollouts and scores, their log-probabilities and values included."""
    calls = counter()
    pieces, state, updates = policy_update(world, minibatches=1)
    rollout = given_rollout(world)
    context = CriticContext(rollout.prompt, rollout.prompt_mask)
    reference, score = world.decoder(2), jnp.asarray(world.inputs.normal(world.size.update_rows))

    def step() -> dict[str, float]:
        nonlocal state
        experience, before = prepare(state, reference, rollout, context, score, **pieces)
        key = jax.random.key(calls())
        state, metrics = run_updates(updates, state, experience, key, **pieces, train_policy=True)
        return numbers({**metrics, **before})

    return step


def policy_iteration(world: World, *, pairwise: bool) -> Step:
    """W5, W5p: one whole iteration: sample, judge (by scores, or against an anchor), freeze, update."""
    size, calls = world.size, counter()
    pieces, state, updates = policy_update(world, minibatches=size.batch // size.update_rows, pairwise=pairwise)
    surroundings = judging(world, pairwise=pairwise)
    context = types.SimpleNamespace(name="benchmark", mesh=world.mesh, key=jax.random.key(0))
    card = ModelCard("policy", dataclasses.asdict(world.config), size.prompt, size.response)
    setup = Setup(
        context=context,
        **pieces,
        card=card,
        tokenizer=world.tokenizer,
        sampling=world.sampling,
        judges=[surroundings.judge],
        win_rate_judge=surroundings.judge,
        records=surroundings.records,
        anchors=surroundings.anchors,
        reference=surroundings.reference,
    )

    def step() -> dict[str, float]:
        nonlocal state
        n = calls()
        index = (np.arange(size.batch) + n * size.batch) % len(surroundings.records)
        state, metrics, _, _ = iteration(setup, updates, state, index, n, train_policy=True)
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
