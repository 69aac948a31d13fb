"""All that a stage of PPO holds on the devices, real or abstract, from one construction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict

from prl_jax.config.durations import to_steps
from prl_jax.runs.models import Models, Policy, stage_optimizer
from prl_jax.streams import Stream
from prl_jax.training.ppo import PPOConfig, PPOState


class Learner(NamedTuple):
    """The models and states of PPO.

    Attributes:
      config: of the update.
      state: what is trained, before the first step.
      optimizers: of the policy and of the critic.
      reference: what the policy starts from, and its KL is taken to.
      judges: by their names: whoever gives the reward, and whoever tells the win rates.
    """

    config: PPOConfig
    state: PPOState
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation]
    reference: Policy
    judges: Mapping[str, Any]


def algorithm_of(section: ConfigDict) -> PPOConfig:
    """What the update does."""
    return PPOConfig(**section.algorithm.to_dict(), temperature=section.temperature)


def steps_of(section: ConfigDict, name: str, examples: int) -> int:
    """Steps of a stage with so many prompts."""
    return to_steps(
        section.duration, key=f"{name}.duration", batch_size=section.prompts_per_step, examples=examples
    )  # fmt: skip


def construct(models: Models, name: str, examples: int) -> Learner:
    """Everything that the stage holds; `examples` are the prompts of its source."""
    section = models.config[name]
    config = algorithm_of(section)
    reference = models.policy(section.policy)
    named = sorted({section.judge, section.evaluation.judge})
    judges = {judge: models.judge(judge, batch_size=section.judge_batch_size) for judge in named}
    total = steps_of(section, name, examples) * config.epochs * config.minibatches
    optimizers = (
        stage_optimizer(section.policy_optimizer, total, key=f"{name}.policy_optimizer"),
        stage_optimizer(section.critic_optimizer, total, key=f"{name}.critic_optimizer"),
    )
    policy = models.trainable(name)
    critic = models.scalar(models.trainable(name, stream=Stream.CRITIC_ADAPTERS), bias=section.value_init)
    state = PPOState(
        models.state(policy, optimizers[0]), models.state(critic, optimizers[1]), models.number(config.kl_coef)
    )
    return Learner(config, state, optimizers, reference, judges)
