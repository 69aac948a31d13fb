"""What a stage of PPO holds and calls, told before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import jax.numpy as jnp
from ml_collections import ConfigDict

from prl_jax.config.durations import to_steps
from prl_jax.costs.functions import Step, abstract_rollout, generating, judging
from prl_jax.costs.models import EXAMPLES, AbstractModels, Held, held_judges
from prl_jax.costs.work import Call, Estimate, flops, passes
from prl_jax.processes import whole_batch
from prl_jax.stages.kind import Costs
from prl_jax.stages.ppo_models import Learner, construct, steps_of
from prl_jax.training.ppo import CriticContext, make_update, prepare
from prl_jax.training.rollout import Experience


def functions(models: AbstractModels, name: str) -> Iterator[Step]:
    """Sampling, judging, freezing, the update, and evaluations."""
    section, built = models.config[name], construct(models, name, EXAMPLES)
    held, size = _holding(built), section.prompts_per_step * section.group_size
    # The policy that samples is the one that is trained; it has the lengths of the one that it started from.
    policy = built.reference._replace(model=built.state.policy.model)
    sampling = models.sampling(
        section.policy, temperature=section.temperature, top_k=section.top_k, top_p=section.top_p
    )
    yield from generating(models, name, policy, size, sampling, held)
    scored = size if section.reward == "score" else 2 * size * _opponents(models.config, section)
    yield from judging(models, name, built.judges[section.judge], section.judge_batch_size, scored, held)
    yield from _learning(models, name, built, held)
    # Evaluations, where they ask more than training did, or somebody else.
    limit, prefix = section.evaluation.prompts.limit, "evaluation_"
    tested = whole_batch(min(limit or section.evaluation.batch_size, section.evaluation.batch_size), models.mesh)
    asks = models.sampling(section.policy, temperature=section.evaluation.temperature)
    if tested > size or asks != sampling:
        yield from generating(models, name, policy, tested, asks, held, prefix)
    if section.evaluation.judge != section.judge or not scored >= 2 * limit > 0:
        judge, pairs = built.judges[section.evaluation.judge], 2 * limit or None
        yield from judging(models, name, judge, section.judge_batch_size, pairs, held, prefix)


def _learning(models: AbstractModels, name: str, built: Learner, held: Held) -> Iterator[Step]:
    """What follows on a rollout and its rewards."""
    section, rows, token_rows, card = models.config[name], models.rows, models.token_rows, built.reference.card
    size, before, room = section.prompts_per_step * section.group_size, card.max_prompt, card.max_response
    # A marker and an anchor stand before the prompt that a privileged critic reads.
    read = before + section.critic_sees_anchor * (1 + room)
    context = CriticContext(rows(size, read), rows(size, read, dtype=bool))
    rollout, score = abstract_rollout(models, size, card), models.whole(size, dtype=jnp.float32)
    frozen = (built.state, built.reference.model, rollout, context, score)
    yield Step(name, "prepare", prepare.trace(*frozen, config=built.config), frozen, held)
    experience = Experience(
        token_rows(size, before + room),
        token_rows(size, read + room),
        rows(size, room),
        rollout.mask,
        rollout.mask,
        *(rollout.logp for _ in range(5)),
    )
    index = models.whole(size // built.config.minibatches, dtype=jnp.int32)
    arguments = (built.state, experience, index, models.whole(dtype=bool))
    yield Step(name, "update", make_update(built.config, *built.optimizers).trace(*arguments), arguments, held)


def held(models: AbstractModels, name: str) -> Iterator[Held]:
    """All that the stage holds, at once."""
    yield _holding(construct(models, name, EXAMPLES))


def _holding(built: Learner) -> Held:
    policy, critic, kl_coef = built.state
    return {
        "policy": policy.model,
        "policy optimizer": (policy.opt_state, policy.step),
        "critic": critic.model,
        "critic optimizer": (critic.opt_state, critic.step, kl_coef),
        "reference": built.reference.model,
        **held_judges(built.judges),
    }


def calls(estimate: Estimate, name: str) -> Iterator[Call]:
    """What sampling, judging, freezing, the update and evaluations take, about."""
    models, section = estimate.models, estimate.config[name]
    algorithm, size = section.algorithm, section.prompts_per_step * section.group_size
    card, steps = models.card(section.policy), steps_of(section, name, estimate.examples(name, "prompts"))
    every = to_steps(section.evaluation.every, key=f"{name}.evaluation.every", total=steps)
    length, room = card.max_prompt + card.max_response, card.max_response
    decoder = models.trained_config(name)
    yield from estimate.generate(section.policy, size, size * steps)
    judged = size if section.reward == "score" else 2 * size * _opponents(estimate.config, section)
    yield from estimate.judge(models.judge(section.judge), section.judge_batch_size, judged * steps)
    row, moved = flops(decoder, length, room), estimate.moved(decoder, size, length)
    # Policy, reference and critic read the same rows; where layers are unrolled, two of them are at work at once.
    at_once = 2 if estimate.unrolled(decoder) else 1
    temporary = at_once * estimate.forward(decoder, estimate.shard(size), length, room)
    yield Call("prepare", temporary, 3 * size * row, steps, moved=3 * moved)
    micro = estimate.shard(size, algorithm.minibatches * algorithm.accumulate)
    trained = 2 * estimate.trained(decoder) * (2 if algorithm.accumulate > 1 else 1)
    # With remat the policy and the critic come one after the other.
    together = 1 if decoder.remat and not estimate.unrolled(decoder) else 2
    yield Call(
        "update",
        trained + together * estimate.training(decoder, micro, length, room),
        2 * size / algorithm.minibatches * row * passes(decoder),
        steps * algorithm.epochs * algorithm.minibatches,
        moved=2 * moved / algorithm.minibatches * passes(decoder),
    )
    if every:
        tests, asked = 1 + steps // every, estimate.examples(name, "evaluation.prompts")
        yield from estimate.generate(section.policy, min(asked, section.evaluation.batch_size), asked * (tests + 1))
        judge = models.judge(section.evaluation.judge)
        yield from estimate.judge(judge, section.judge_batch_size, 2 * asked * tests)


def _opponents(config: ConfigDict, section: ConfigDict) -> int:
    """Comparisons of a response."""
    if section.opponents == "anchor":
        anchors = config[section.anchors]
        return anchors.keep if anchors.choice == "best_of_n" else 1
    return {"peer": 1, "group": section.group_size - 1, "pool": section.opponent_draws}[section.opponents]


def smaller(section: ConfigDict, stage: str, function: str, mesh: Mapping[str, int]) -> list[str]:
    """Keys that make a function's batches smaller."""
    if function.endswith("judge"):
        return [f"{stage}.judge_batch_size down"]
    if function.startswith("evaluation"):
        return [f"{stage}.evaluation.batch_size down"]
    rows, algorithm = section.prompts_per_step * section.group_size, section.algorithm
    least = mesh["data"] * mesh["fsdp"] * algorithm.minibatches * algorithm.accumulate
    more = [f"{stage}.algorithm.accumulate up"] if function == "update" and rows > least else []
    return [*more, f"{stage}.prompts_per_step or {stage}.group_size down"]


COSTS = Costs(functions, held, calls, smaller)
