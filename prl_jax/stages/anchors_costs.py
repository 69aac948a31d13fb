"""The models and functions of a stage of anchors, estimated before it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prl_jax.costs.functions import Step, generating, judging
from prl_jax.costs.models import AbstractModels, Held, held_judges
from prl_jax.costs.work import Call, Estimate
from prl_jax.runs.context import sampling_of
from prl_jax.runs.models import Models, Policy
from prl_jax.stages.kind import Costs


def construct(models: Models, name: str) -> tuple[Policy, Any]:
    """The policy that samples and the judge that ranks, real or abstract."""
    section = models.config[name]
    return models.policy(section.policy), models.judge(section.judge, batch_size=section.batch_size)


def _functions(models: AbstractModels, name: str) -> Iterator[Step]:
    section = models.config[name]
    if section.choice == "best_of_n":
        policy, judge = construct(models, name)
        held = {"policy": policy.model, **held_judges({"judge": judge})}
        sampling = models.sampling(section.policy, **sampling_of(section))
        yield from generating(models, name, policy, section.batch_size, sampling, held)
        yield from judging(models, name, judge, section.batch_size, None, held)


def _held(models: AbstractModels, name: str) -> Iterator[Held]:
    if models.config[name].choice == "best_of_n":
        policy, judge = construct(models, name)
        yield {"policy": policy.model, **held_judges({"judge": judge})}


def _calls(estimate: Estimate, name: str) -> Iterator[Call]:
    section = estimate.config[name]
    if section.choice == "best_of_n":
        count, number = estimate.examples(name, "prompts"), section.samples
        yield from estimate.generate(section.policy, section.batch_size, number * count)
        scalar = estimate.models.scores(section.judge)
        rows = count * (number if scalar else number * (number - 1))
        yield from estimate.judge(estimate.models.judge(section.judge), section.batch_size, rows)


COSTS = Costs(_functions, _held, _calls)
