"""The models and functions of an evaluation, estimated before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prl_jax.costs.functions import Step, abstract_rollout, generating, judging
from prl_jax.costs.models import AbstractJudge, AbstractModels, Held, held_judges
from prl_jax.costs.work import Call, Estimate
from prl_jax.runs.context import sampling_of
from prl_jax.runs.models import Policy
from prl_jax.stages.kind import Costs
from prl_jax.stages.win_rate import log_ratio


class _Compared(NamedTuple):
    """The models of an evaluation while it compares one arm with the opponent; arms come one after the other."""

    opponent: Policy
    policy: Policy
    judge: Sequence[AbstractJudge]
    held: Held


def _compared(models: AbstractModels, name: str) -> _Compared:
    section = models.config[name]
    opponent, judge = models.policy(section.opponent), models.judge(section.judge)
    policy = models.policy(next(iter(section.arms), section.opponent))
    held = {"opponent": opponent.model, "policy": policy.model, **held_judges({section.judge: judge})}
    return _Compared(opponent, policy, judge, held)


def functions(models: AbstractModels, name: str) -> Iterator[Step]:
    """Judging the pairs; sampling, the distance from the opponent and judging of the arms."""
    section = models.config[name]
    for key in section.judges:
        judge, pairs = models.judge(key), 2 * section.pairs.limit or None
        yield from judging(models, name, judge, section.batch_size, pairs, held_judges({key: judge}), f"{key}_")
    if not section.opponent:
        return
    opponent, policy, judge, held = _compared(models, name)
    sampling = models.sampling(section.opponent, **sampling_of(section))
    asked = opponent._replace(model=policy.model)  # arms are sampled with the lengths of the opponent
    yield from generating(models, name, asked, section.batch_size, sampling, held)
    arguments = (policy.model, opponent.model, abstract_rollout(models, section.batch_size, opponent.card))
    static = (section.temperature or 1.0, sampling.support)
    yield Step(name, "log_ratio", log_ratio.trace(*arguments, *static), arguments, held)
    yield from judging(models, name, judge, section.batch_size, 2 * section.prompts.limit or None, held)


def held(models: AbstractModels, name: str) -> Iterator[Held]:
    """The judges one after the other, then the models that are compared."""
    section = models.config[name]
    yield from (held_judges({key: models.judge(key)}) for key in section.judges)
    if section.opponent:
        yield _compared(models, name).held


def calls(estimate: Estimate, name: str) -> Iterator[Call]:
    """Yields rough costs of sampling and judging."""
    section, models = estimate.config[name], estimate.models
    for key in section.judges:
        yield from estimate.judge(models.judge(key), section.batch_size, 2 * estimate.examples(name, "pairs"))
    if section.opponent:
        responses = estimate.examples(name, "prompts") * section.samples
        policies = len(section.arms) + 3  # the opponent's samples twice, and its greedy responses
        chosen = [arm for arm in section.arms.values() if arm.get("best_of", 1) > 1]
        drawn = policies + sum(arm.best_of - 1 for arm in chosen)
        yield from estimate.generate(section.opponent, section.batch_size, responses * drawn)
        yield from estimate.judge(models.judge(section.judge), section.batch_size, 4 * responses * policies)
        for arm in chosen:
            rows = arm.best_of * (1 if models.scores(arm.judge) else arm.best_of - 1)
            yield from estimate.judge(models.judge(arm.judge), section.batch_size, responses * rows)


COSTS = Costs(functions, held, calls)
