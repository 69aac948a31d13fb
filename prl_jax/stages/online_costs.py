"""The models and functions of a stage that trains a policy on its own samples, estimated before it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from prl_jax.config.durations import to_steps
from prl_jax.costs.functions import Step, abstract_rollout, generating, judging
from prl_jax.costs.models import EXAMPLES, AbstractModels, Held, held_judges
from prl_jax.costs.work import Call, Estimate, flops, passes
from prl_jax.methods import Critic, Method, opponents
from prl_jax.methods.surrogates import Frozen
from prl_jax.models import MixedDecoder
from prl_jax.processes import whole_batch
from prl_jax.runs.context import StageContext, sampling_of
from prl_jax.runs.models import Policy
from prl_jax.sharding import batch_parts
from prl_jax.stages.kind import Checking, Costs
from prl_jax.stages.online_models import Learner, construct
from prl_jax.stages.online_samples import prompts_to_read
from prl_jax.stages.online_section import anchors_stage, judges_of, method_in, schedule_in, steps_of, warmup_of
from prl_jax.stages.spent import Spent, by_rollouts
from prl_jax.training.policy import make_updates, prepare
from prl_jax.training.rollout import CriticContext, Critique, Experience
from prl_jax.training.state import learning


def functions(models: AbstractModels, name: str) -> Iterator[Step]:
    """Sampling, judging, freezing, the update, and evaluations."""
    section, built = models.config[name], construct(models, name, EXAMPLES)
    held, size = _holding(built), section.prompts_per_step * section.group_size
    # The policy that samples is the one that is trained; it has the lengths of the one that it started from.
    policy = built.reference._replace(model=built.state.policy.model)
    _, group = prompts_to_read(range(section.prompts_per_step), section.group_size, models.mesh)
    yield from generating(models, name, policy, size, built.sampling, held, group=group)
    yield from _standing_in(models, name, built, policy, held)
    asked = judged_rows(models.config, section, built.method)
    for judge in judges_of(section):
        yield from judging(models, name, built.judges[judge], section.judge_batch_size, asked, held)
    yield from _learning(models, name, built, held)
    # Evaluations, where they ask more than training did, or somebody else.
    limit, prefix = section.evaluation.prompts.limit, "evaluation_"
    tested = whole_batch(min(limit or section.evaluation.batch_size, section.evaluation.batch_size), models.mesh)
    asks = models.sampling(section.policy, **sampling_of(section.evaluation))
    if tested > size or asks != built.sampling:
        yield from generating(models, name, policy, tested, asks, held, prefix)
    if section.evaluation.judge not in judges_of(section) or not asked >= 2 * limit > 0:
        judge, pairs = built.judges[section.evaluation.judge], 2 * limit or None
        yield from judging(models, name, judge, section.judge_batch_size, pairs, held, prefix)


def _standing_in(models: AbstractModels, name: str, built: Learner, policy: Policy, held: Held) -> Iterator[Step]:
    """Yields the functions that sample the texts which stand for prompts."""
    met, section = built.method.opponents, models.config[name]
    if met.candidates != "sampled" and not built.method.baseline.reads_greedy:
        return
    likeliest = met.sampler in ("", "greedy")
    asks = dataclasses.replace(built.sampling, temperature=0.0) if likeliest else built.sampling
    if isinstance(met, opponents.Mixture):
        reference = built.reference.model if built.state.reference is None else built.state.reference
        policy = policy._replace(model=MixedDecoder(policy.model, reference, met.share))
    size = whole_batch(section.prompts_per_step, models.mesh)
    yield from generating(models, name, policy, size, asks, held, "opponent_")


def _learning(models: AbstractModels, name: str, built: Learner, held: Held) -> Iterator[Step]:
    """Yields the functions that follow on a rollout and its rewards."""
    section, rows, token_rows, card = models.config[name], models.rows, models.token_rows, built.reference.card
    size, before, room = section.prompts_per_step * section.group_size, card.max_prompt, card.max_response
    method, pieces = built.method, dict(method=built.method, schedule=built.schedule)
    rollout, reward = abstract_rollout(models, size, card), models.whole(size, dtype=jnp.float32)
    number, context, critique = rollout.logp, None, None
    if isinstance(method.baseline, Critic):
        # A marker and the opponent stand before the prompt that a privileged critic reads.
        read = before + method.baseline.sees_opponent * (1 + room)
        context = CriticContext(rows(size, read), rows(size, read, dtype=bool))
        critique = Critique(token_rows(size, read + room), number, number)
    kept = None if built.schedule.flat_groups == "keep" else models.whole(size, dtype=jnp.bool_)
    reference = built.reference.model if built.state.reference is None else built.state.reference
    arguments = (built.state, reference, rollout, context, reward, kept)
    beside: dict[str, Any] = {}
    if method.baseline.reads_differences:
        shape = size, built.schedule.group_size
        beside["differences"] = models.whole(*shape, dtype=jnp.float32), models.whole(*shape, dtype=bool)
    if method.baseline.reads_greedy:
        beside["greedy"] = reward
    yield Step(name, "prepare", prepare.trace(*arguments, **beside, **pieces), arguments, held)
    frozen = Frozen(number, number, number, rollout.mask)
    experience = Experience(token_rows(size, before + room), rows(size, room), rollout.mask, frozen, critique)
    index = models.whole(size // built.schedule.minibatches, dtype=jnp.int32)
    updates, state = make_updates(built.method, built.schedule, *built.optimizers), learning(built.state)
    # The critic also learns alone in steps whose groups are all dropped.
    alone = warmup_of(section, name, steps_of(section, name, EXAMPLES)) or built.schedule.flat_groups != "keep"
    if updates.warm_up is not None and alone:
        learns = ((state.critic, state.guard), state.deviation, experience, index)
        yield Step(name, "warm_up", updates.warm_up.trace(*learns), learns, held)
    yield Step(name, "update", updates.train.trace(state, experience, index), (state, experience, index), held)


def held(models: AbstractModels, name: str) -> Iterator[Held]:
    """All that the stage holds, at once."""
    yield _holding(construct(models, name, EXAMPLES))


def _holding(built: Learner) -> Held:
    state, values = built.state, {}
    policy, critic = state.policy, state.critic
    if critic is not None:
        values = {"critic": critic.model, "critic optimizer": (critic.opt_state, critic.step)}
    start: dict[str, Any] = {"reference": built.reference.model}
    if state.reference is not None:
        start = {"reference": state.reference, "start": built.reference.model}
    if state.past:
        values["earlier policies"] = state.past
    return {
        "policy": policy.model,
        "policy optimizer": (policy.opt_state, policy.step, state.kl_coef, state.deviation, state.guard, state.entropy),
        **values,
        **start,
        **held_judges(built.judges),
    }


def calls(estimate: Estimate, name: str) -> Iterator[Call]:
    """Yields rough costs of sampling, judging, freezing, the update and evaluations."""
    models, section = estimate.models, estimate.config[name]
    method, size = method_in(section), section.prompts_per_step * section.group_size
    card, steps = models.card(section.policy), steps_of(section, name, estimate.examples(name, "prompts"))
    every = to_steps(section.evaluation.every, key=f"{name}.evaluation.every", total=steps)
    length, room = card.max_prompt + card.max_response, card.max_response
    decoder, trained_models = models.trained_config(name), 1 + method.baseline.reads_values
    draws = schedule_in(section).draws
    _, group = prompts_to_read(range(section.prompts_per_step), section.group_size, estimate.mesh)
    yield from estimate.generate(section.policy, size, size * steps * draws, group)
    if method.opponents.candidates == "sampled" or method.baseline.reads_greedy:
        yield from estimate.generate(section.policy, section.prompts_per_step, section.prompts_per_step * steps)
    judged = judged_rows(estimate.config, section, method) * draws
    for judge in judges_of(section):
        yield from estimate.judge(models.judge(judge), section.judge_batch_size, judged * steps)
    row, moved = flops(decoder, length, room), estimate.moved(decoder, size, length)
    # Policy, reference and critic read the same rows; where layers are unrolled, two of them are at work at once.
    at_once = 2 if estimate.unrolled(decoder) else 1
    temporary = at_once * estimate.forward(decoder, estimate.shard(size), length, room)
    read = 1 + trained_models
    yield Call("prepare", temporary, read * size * row, steps, moved=read * moved)
    micro = estimate.shard(size, section.minibatches * section.accumulate)
    activations = estimate.training(decoder, micro, length, room)
    parts, share = section.epochs * section.minibatches, passes(decoder) / section.minibatches
    warmup = warmup_of(section, name, steps)
    for function, models_trained, taken in (("warm_up", 1, warmup), ("update", trained_models, steps - warmup)):
        if not taken:
            continue
        gradient = models_trained * estimate.trained(decoder) * (2 if section.accumulate > 1 else 1)
        # With remat the policy and the critic come one after the other.
        together = 1 if decoder.remat and not estimate.unrolled(decoder) else models_trained
        work = models_trained * share
        yield Call(function, gradient + together * activations, work * size * row, taken * parts, moved=work * moved)
    if every:
        tests, asked = 1 + steps // every, estimate.examples(name, "evaluation.prompts")
        yield from estimate.generate(section.policy, min(asked, section.evaluation.batch_size), asked * (tests + 1))
        judge = models.judge(section.evaluation.judge)
        yield from estimate.judge(judge, section.judge_batch_size, 2 * asked * tests)


def judged_rows(config: ConfigDict, section: ConfigDict, method: Method) -> int:
    """Rows that each judge reads in a step, at most; see `training.compare`."""
    kept, met = 0, method.opponents
    if anchors_stage(section):
        anchors = config[anchors_stage(section)]
        kept = anchors.keep if anchors.choice == "best_of_n" else 1
    prompts, group = section.prompts_per_step, section.group_size
    # The likeliest response of a prompt is one more, which meets what the others meet.
    likeliest = prompts if method.baseline.reads_greedy else 0
    if method.reward.asks == "scores":  # the anchors of a prompt are scored once
        outside = 0 if met.candidates == "group" else met.per_response(group, kept)
        return prompts * (group + outside) + likeliest
    orders = 2 if met.orders == "both" else 1
    return orders * (prompts * met.pairs(group, kept) + likeliest * met.pairs(1, kept))


def spent(context: StageContext, check: Checking) -> Spent:
    """The work of a finished stage."""
    section, config = context.section, context.config
    steps, method = steps_of(section, context.name, 0), method_in(section)
    rows = steps * section.prompts_per_step * section.group_size
    return by_rollouts(context, rows, steps * len(judges_of(section)) * judged_rows(config, section, method))


def smaller(section: ConfigDict, stage: str, function: str, mesh: Mapping[str, int]) -> list[str]:
    """Keys that make a function's batches smaller."""
    if function.endswith("judge"):
        return [f"{stage}.judge_batch_size down"]
    if function.startswith("evaluation"):
        return [f"{stage}.evaluation.batch_size down"]
    rows = section.prompts_per_step * section.group_size
    least = batch_parts(mesh) * section.minibatches * section.accumulate
    more = [f"{stage}.accumulate up"] if function in ("warm_up", "update") and rows > least else []
    return [*more, f"{stage}.prompts_per_step or {stage}.group_size down"]


COSTS = Costs(functions, held, calls, smaller)
