"""The models and functions of a stage of pairs, estimated before it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prl_jax.costs.functions import Step, generating, judging
from prl_jax.costs.models import AbstractModels, Held, held_judges
from prl_jax.costs.work import Call, Estimate
from prl_jax.runs.context import StageContext, sampling_of
from prl_jax.runs.models import Models, Policy
from prl_jax.stages.kind import Checking, Costs
from prl_jax.stages.pairs_section import judges_in, responses_of
from prl_jax.stages.spent import Spent, by_candidates


def construct(models: Models, name: str) -> tuple[list[Policy], dict[str, Any]]:
    """The policies that sample and the judges that rank, real or abstract."""
    section = models.config[name]
    policies = [models.policy(policy) for policy in (section.policy, *section.others)]
    return policies, {judge: models.judge(judge, batch_size=section.batch_size) for judge in judges_in(section)}


def _held(models: AbstractModels, name: str) -> Iterator[Held]:
    policies, judges = construct(models, name)
    yield {"policy": tuple(policy.model for policy in policies), **held_judges(judges)}


def _functions(models: AbstractModels, name: str) -> Iterator[Step]:
    section, (held,) = models.config[name], _held(models, name)
    policies, judges = construct(models, name)
    for number, (named, policy) in enumerate(zip((section.policy, *section.others), policies, strict=True), 1):
        sampling = models.sampling(named, **sampling_of(section))
        prefix = f"{number}_" if section.others else ""
        yield from generating(models, name, policy, section.batch_size, sampling, held, prefix)
    for judge, one in judges.items():
        yield from judging(models, name, one, section.batch_size, None, held, f"{judge}_" if len(judges) > 1 else "")


def _calls(estimate: Estimate, name: str) -> Iterator[Call]:
    section, count = estimate.config[name], estimate.examples(name, "prompts")
    for policy in (section.policy, *section.others):
        yield from estimate.generate(policy, section.batch_size, section.samples * count)
    number = responses_of(section)
    for judge in judges_in(section):
        rows = count * (number if estimate.models.scores(judge) else number * (number - 1))
        yield from estimate.judge(estimate.models.judge(judge), section.batch_size, rows)


def spent(context: StageContext, check: Checking) -> Spent:
    """The work of a finished stage."""
    section, number = context.section, responses_of(context.section)
    judged = sum(number if check.scores(judge) else number * (number - 1) for judge in judges_in(section))
    return by_candidates(context, number - section.include_reference, judged)


COSTS = Costs(_functions, _held, _calls)
