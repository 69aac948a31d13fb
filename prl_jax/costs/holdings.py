"""What each stage of a config keeps on the devices while it runs, as abstract arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from prl_jax.config.durations import to_steps
from prl_jax.costs.models import AbstractJudge, AbstractModels
from prl_jax.models import Decoder
from prl_jax.optim import make_optimizer
from prl_jax.training.ppo import PPOConfig, PPOState
from prl_jax.training.state import TrainState

# What data no plan reads would tell; schedules of optimizers depend on it, no cost does.
_EXAMPLES = 100_000
Held = Mapping[str, Any]
"""What is held, by what it is: `{"policy": ...}`. Models that share arrays share abstract arrays."""


class Fitted(NamedTuple):
    """The models and states of SFT and of a reward model."""

    state: TrainState
    optimizer: Any
    held: Held


class Sampled(NamedTuple):
    """The models of best-of-N anchors."""

    policy: Decoder
    judge: AbstractJudge | None
    held: Held


class Improved(NamedTuple):
    """The models and states of PPO; `judges` by their names."""

    config: PPOConfig
    state: PPOState
    optimizers: tuple[Any, Any]
    reference: Decoder
    judges: Mapping[str, AbstractJudge | None]
    held: Held


class Compared(NamedTuple):
    """The models of an evaluation while it compares one arm with the baseline; arms come one after the other."""

    baseline: Decoder
    policy: Decoder
    judge: AbstractJudge | None
    held: Held


@dataclasses.dataclass(frozen=True)
class Holdings:
    """Makes the abstract arrays of a config's stages."""

    config: ConfigDict
    models: AbstractModels

    def each(self, name: str) -> Iterator[Held]:
        """All that a stage holds, one after the other; a stage that only copies text holds nothing."""
        section = self.config[name]
        if section.kind == "anchors":
            if section.choice == "best_of_n":
                yield self.anchors(name).held
        elif section.kind == "ppo":
            yield self.ppo(name).held
        elif section.kind == "evaluation":
            yield from (held_judges({key: self.models.judge(key)}) for key in section.judges)
            if section.baseline:
                yield self.evaluation(name).held
        else:
            yield self.supervised(name).held

    def supervised(self, name: str) -> Fitted:
        section, models = self.config[name], self.models
        total = to_steps(
            section.duration, key=f"{name}.duration", batch_size=section.batch_size, examples=_EXAMPLES
        )  # fmt: skip
        optimizer, model = _optimizer(section.optimizer, total), models.trainable(section)
        state = models.state(models.scalar(model) if section.kind == "bradley_terry" else model, optimizer)
        return Fitted(state, optimizer, {"parameters": state.model, "optimizer": (state.opt_state, state.step)})

    def anchors(self, name: str) -> Sampled:
        section = self.config[name]
        policy, judge = self.models.decoder(section.policy), self.models.judge(section.judge)
        return Sampled(policy, judge, {"policy": policy, **held_judges({"judge": judge})})

    def ppo(self, name: str) -> Improved:
        section, models = self.config[name], self.models
        config = PPOConfig(**section.algorithm.to_dict(), temperature=section.temperature)
        total = to_steps(section.duration, key=f"{name}.duration", batch_size=section.prompts_per_step,
                         examples=_EXAMPLES) * config.epochs * config.minibatches  # fmt: skip
        optimizers = _optimizer(section.policy_optimizer, total), _optimizer(section.critic_optimizer, total)
        reference = models.decoder(section.policy)
        policy = models.state(models.trainable(section), optimizers[0])
        critic = models.state(models.scalar(models.trainable(section), bias=section.value_init), optimizers[1])
        state = PPOState(policy, critic, models.whole(dtype=jnp.float32))
        judges = {key: models.judge(key) for key in (section.judge, section.evaluation.judge)}
        held = {
            "policy": policy.model,
            "policy optimizer": (policy.opt_state, policy.step),
            "critic": critic.model,
            "critic optimizer": (critic.opt_state, critic.step, state.kl_coef),
            "reference": reference,
            **held_judges(judges),
        }
        return Improved(config, state, optimizers, reference, judges, held)

    def evaluation(self, name: str) -> Compared:
        section, models = self.config[name], self.models
        baseline, judge = models.decoder(section.baseline), models.judge(section.judge)
        arm = next(iter(section.arms), section.baseline)
        policy = baseline if arm == section.baseline else models.decoder(arm)
        return Compared(
            baseline,
            policy,
            judge,
            {"baseline": baseline, "policy": policy, **held_judges({section.judge: judge})},
        )


def held_judges(judges: Mapping[str, AbstractJudge | None]) -> dict[str, Any]:
    """The models of one or several judges, as a stage holds them."""
    found = tuple(judge.model for judge in judges.values() if judge is not None)
    return {"judge": found} if found else {}


def _optimizer(section: ConfigDict, total: int) -> Any:
    values = section.to_dict()
    warmup = to_steps(values.pop("warmup"), key="warmup", total=total)
    return make_optimizer(**values, warmup_steps=warmup, total_steps=total)
