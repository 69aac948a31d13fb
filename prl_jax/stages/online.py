"""A policy that learns from its own samples: a policy, a judge and prompts -> a better policy, by any method."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from prl_jax.artifacts.cards import sampling_config
from prl_jax.config.durations import to_steps
from prl_jax.config.rules import value_at
from prl_jax.data.pipeline import batch_iterator
from prl_jax.errors import naming
from prl_jax.metrics import JsonlLog
from prl_jax.models import Decoder
from prl_jax.processes import is_leader
from prl_jax.runs.best import BestSoFar
from prl_jax.runs.context import StageContext, base_name, sampling_of
from prl_jax.runs.models import LoadedModels
from prl_jax.runs.training import Position, Training, train_stage
from prl_jax.stages.anchors import read_anchors
from prl_jax.stages.kind import Kind
from prl_jax.stages.online_ahead import Ahead
from prl_jax.stages.online_anchors import KeptAnchors
from prl_jax.stages.online_checks import CHECKS
from prl_jax.stages.online_costs import COSTS, spent
from prl_jax.stages.online_models import Learner, construct
from prl_jax.stages.online_samples import Setup, sample
from prl_jax.stages.online_section import (
    RULES,
    anchors_stage,
    batch_rows,
    declare,
    judges_of,
    only_warms_up,
    reads,
    reference_every,
    steps_of,
    warmup_of,
)
from prl_jax.stages.online_step import iteration, sample_rows
from prl_jax.stages.online_watch import truth_of, watched
from prl_jax.stages.win_rate import policy_win_rate
from prl_jax.training.loop import LoopConfig, due
from prl_jax.training.policy import make_updates
from prl_jax.training.state import PolicyState


def run(context: StageContext) -> dict[str, float]:
    """Trains and returns the metrics of what it has come to."""
    section, name = context.section, context.name
    setup, built = _setup(context)
    total = setup.total
    steps = lambda key: to_steps(value_at(section, key), key=f"{name}.{key}", total=total)  # noqa: E731
    warmup, log_every = warmup_of(section, name, total), steps("log_every")
    if (line := only_warms_up(section, name, total)) and is_leader():
        print(f"{name:<16} {line}", file=sys.stderr)
    updates = make_updates(setup.method, setup.schedule, *built.optimizers)
    iterator = batch_iterator(
        range(len(setup.records)), np.asarray, batch_size=section.prompts_per_step, seed=context.data_seed
    )
    with naming(f"{name}.evaluation"):
        asked = sampling_config(setup.card, setup.tokenizer, **sampling_of(section.evaluation))
    win_rate = policy_win_rate(
        context,
        setup.reference,
        setup.tokenizer,
        # Not as this stage samples to train: the same for every arm, and as in the final table.
        asked,
        judge=setup.win_rate_judge,
        max_prompt=setup.card.max_prompt,
        section=section.evaluation,
    )

    watching = setup.method, setup.schedule.group_size, truth_of(context.config, section, built.judges)

    ahead = Ahead(context.mesh)

    def step(state: PolicyState, n: int, samples: JsonlLog) -> tuple[PolicyState, Mapping[str, jax.Array]]:
        sampled = None
        if setup.schedule.rollouts_ahead:
            # Devices sample for the next step while this process reads the texts of this one and asks its judges.
            sampled = ahead.take() or sample(setup, state, next(iterator), n)
            if n < total:
                ahead.put(sample(setup, state, next(iterator), n + 1))
        index = next(iterator) if sampled is None else sampled.index
        train_policy = n > warmup
        state, metrics, done, experience = iteration(
            setup, updates, state, index, n, train_policy=train_policy, sampled=sampled
        )
        if log_every and n % log_every == 0:
            samples.write(sample_rows(setup, n, done, experience))
        return state, {**metrics, **(watched(*watching, done) if due(n, log_every, total) else {})}

    changing: dict[str, Position] = {"ahead": ahead} if setup.schedule.rollouts_ahead else {}
    if isinstance(setup.anchors, KeptAnchors):
        changing["kept_anchors"] = setup.anchors
    training = Training(
        card=setup.card,
        tokenizer=setup.tokenizer,
        state=built.state,
        parts=parts,
        whole=whole,
        loop=LoopConfig(
            total,
            log_every,
            steps("save_every"),
            steps("evaluation.every"),
            at_most={"skipped_updates": float(section.skip_updates)} if section.skip_updates else {},
        ),
        positions={"iterator": iterator, **changing},
        best=BestSoFar(section.result, "win_rate", larger=True),
        step=step,
        # Before its first step the policy is the reference.
        evaluate=lambda state, n, samples: win_rate(state.policy.model) | ({} if n else {"kl": 0.0}),
        progress_metrics=("reward", "kl", "entropy", "loss", "win_rate"),
    )
    return train_stage(context, training)


def _setup(context: StageContext) -> tuple[Setup, Learner]:
    """Loads everything that the stage reads and makes its first state."""
    section = context.section
    records, stage = context.records(section.prompts, "prompt"), anchors_stage(section)
    anchors = read_anchors(context.stage(stage), records) if stage else [()] * len(records)
    built = construct(LoadedModels(context, {}), context.name, len(records))
    card, reference, tokenizer = built.reference
    assert tokenizer is not None
    adapters = {"base": base_name(context, context.stage(section.policy))} if section.lora.rank else {}
    setup = Setup(
        context=context,
        method=built.method,
        schedule=built.schedule,
        card=dataclasses.replace(card, decoder=dataclasses.asdict(built.state.policy.model.config), **adapters),
        tokenizer=tokenizer,
        sampling=built.sampling,
        judges=[built.judges[judge] for judge in judges_of(section)],
        win_rate_judge=built.judges[section.evaluation.judge],
        records=records,
        anchors=KeptAnchors(anchors, beaten) if (beaten := section.opponents.get("beaten", 0.0)) else anchors,
        reference=reference,
        total=(total := steps_of(section, context.name, len(records))),
        reference_every=reference_every(section, context.name, total),
    )
    return setup, built


# Fields of the state that a checkpoint has as they are, where they hold anything.
_UNDER_THEIR_NAMES = ("kl_coef", "deviation", "past", "guard", "entropy", "reference", "scores")


def parts(state: PolicyState) -> tuple[Decoder, dict[str, Any]]:
    """The policy's parameters, and what a checkpoint holds beside them."""
    policy, critic = state.policy, state.critic
    beside = {"policy_opt_state": policy.opt_state, "policy_step": policy.step}
    if critic is not None:
        beside |= {"critic": critic.model, "critic_opt_state": critic.opt_state, "critic_step": critic.step}
    fields = {name: value for name, value in state._asdict().items() if name in _UNDER_THEIR_NAMES}
    return policy.model, {**beside, **{name: value for name, value in fields.items() if jax.tree.leaves(value)}}


def whole(state: PolicyState, model: Decoder, beside: Mapping[str, Any]) -> PolicyState:
    """The state that a checkpoint holds; what is frozen is that of the state that is given."""
    policy = state.policy._replace(model=model, opt_state=beside["policy_opt_state"], step=beside["policy_step"])
    critic = state.critic
    if critic is not None:
        saved = {"model": beside["critic"], "opt_state": beside["critic_opt_state"], "step": beside["critic_step"]}
        critic = critic._replace(**saved)
    fields = {name: beside[name] for name in _UNDER_THEIR_NAMES if name in beside}
    return state._replace(policy=policy, critic=critic, **fields)


KIND = Kind(
    name="online",
    family="policy",
    declare=declare,
    rules=RULES,
    checks=CHECKS,
    run=run,
    reads=reads,
    rows=batch_rows,
    costs=COSTS,
    spent=spent,
    writes="policy",
)
