"""All that a stage which trains a policy on its own samples holds, real or abstract, from one construction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import optax

from prl_jax.methods import Method
from prl_jax.runs.context import sampling_of
from prl_jax.runs.models import Models, Policy, stage_optimizer
from prl_jax.sampling import SamplingConfig
from prl_jax.stages.online_section import (
    critic_source,
    judges_of,
    method_in,
    reference_every,
    schedule_in,
    steps_of,
    warmup_of,
    watched_by,
)
from prl_jax.streams import Stream
from prl_jax.training.schedule import Schedule
from prl_jax.training.state import PolicyState, initial_state


class Learner(NamedTuple):
    """The models and states of a policy that learns.

    Attributes:
      method, schedule: what the update does.
      sampling: how the policy answers the prompts that it learns from.
      state: what is trained, before the first step.
      optimizers: of the policy and of the critic, which is None where the method has none.
      reference: what the policy starts from; the divergence is taken to it, unless the state has a reference.
      judges: by their names: whoever gives the reward, tells the win rates, or is believed.
    """

    method: Method
    schedule: Schedule
    sampling: SamplingConfig
    state: PolicyState
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation | None]
    reference: Policy
    judges: Mapping[str, Any]


def construct(models: Models, name: str, examples: int) -> Learner:
    """Everything that the stage holds; `examples` are the prompts of its source."""
    section = models.config[name]
    reference, sampling = models.policy(section.policy), models.sampling(section.policy, **sampling_of(section))
    method, schedule = method_in(section), schedule_in(section, sampling.support)
    named = sorted({*judges_of(section), section.evaluation.judge, watched_by(section)} - {""})
    judges = {judge: models.judge(judge, batch_size=section.judge_batch_size) for judge in named}
    total, updates = steps_of(section, name, examples), schedule.epochs * schedule.minibatches
    # The policy takes no step while the critic warms up.
    steps = max(total - warmup_of(section, name, total), 1)
    optimizer = stage_optimizer(section.optimizer, steps, updates, key=f"{name}.optimizer")
    policy = models.state(models.trainable(name), optimizer)
    critic = critic_optimizer = None
    if method.baseline.reads_values:
        critic_optimizer = stage_optimizer(section.critic.optimizer, total, updates, key=f"{name}.critic.optimizer")
        if source := critic_source(models.config, section):
            values = models.values(name, source)
        else:
            trunk = models.trainable(name, stream=Stream.CRITIC_ADAPTERS)
            values = models.scalar(trunk, bias=method.reward.even)
        critic = models.state(values, critic_optimizer)
    follows = schedule.reference_ema > 0 or reference_every(section, name, total) > 0
    made = dict(number=models.number, copy=models.copy)
    state = initial_state(policy, critic, method, **made, guarded=schedule.guarded, follows=follows)
    return Learner(method, schedule, sampling, state, (optimizer, critic_optimizer), reference, judges)
