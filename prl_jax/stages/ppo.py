"""PPO: a policy, a judge and prompts -> a better policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from prl_jax.artifacts.cards import sampling_config
from prl_jax.artifacts.models import CHECKPOINTS_DIR, save_card
from prl_jax.checkpoint import Checkpoints
from prl_jax.config.durations import to_steps
from prl_jax.data.pipeline import batch_iterator
from prl_jax.models import Decoder
from prl_jax.processes import is_leader
from prl_jax.runs.best import BestSoFar
from prl_jax.runs.context import StageContext, base_name
from prl_jax.runs.models import LoadedModels
from prl_jax.runs.telemetry import telemetry
from prl_jax.stages.anchors import read_anchors
from prl_jax.stages.kind import Kind
from prl_jax.stages.ppo_costs import COSTS
from prl_jax.stages.ppo_models import construct, steps_of
from prl_jax.stages.ppo_section import CHECKS, RULES, batch_rows, declare, reads
from prl_jax.stages.ppo_step import Setup, iteration, sample_rows
from prl_jax.stages.win_rate import policy_win_rate
from prl_jax.training.loop import LoopConfig, run_loop
from prl_jax.training.ppo import PPOState, make_update
from prl_jax.training.state import released


def run(context: StageContext) -> dict[str, float]:
    """Trains and returns the metrics of what it has come to."""
    section, name = context.section, context.name
    setup, state, optimizers = _setup(context)
    total = steps_of(section, name, len(setup.records))
    warmup = to_steps(section.critic_warmup, key=f"{name}.critic_warmup", total=total)
    steps = lambda key: to_steps(section[key], key=f"{name}.{key}", total=total)  # noqa: E731
    every = to_steps(section.evaluation.every, key=f"{name}.evaluation.every", total=total)
    loop = LoopConfig(total, steps("log_every"), steps("save_every"), every)
    update = make_update(setup.config, *optimizers)
    iterator = batch_iterator(
        range(len(setup.records)), np.asarray, batch_size=section.prompts_per_step, seed=context.data_seed
    )
    best = BestSoFar(section.result, "win_rate", larger=True)
    save_card(context.directory, setup.card, setup.tokenizer)
    evaluate = policy_win_rate(
        context,
        setup.reference,
        setup.tokenizer,
        # Not as this stage samples to train: the same for every arm, and as in the final table.
        dataclasses.replace(setup.sampling, temperature=section.evaluation.temperature, top_k=0, top_p=1.0),
        judge=setup.win_rate_judge,
        max_prompt=setup.card.max_prompt,
        section=section.evaluation,
    )
    with Checkpoints(context.directory / CHECKPOINTS_DIR) as checkpoints:
        state, first = _start(state, checkpoints, iterator, best)
        with telemetry(context, first=first, total=total) as shown, context.stop.after_steps():

            def step(state: PPOState, n: int) -> tuple[PPOState, Mapping[str, jax.Array]]:
                state, metrics, done, experience = iteration(
                    setup, update, state, next(iterator), n, train_policy=n > warmup
                )
                if loop.log_every and n % loop.log_every == 0:
                    shown.samples.write(sample_rows(n, done, experience, context.mesh))
                context.stop.done()
                return state, metrics

            def save(n: int, state: PPOState) -> None:
                shown.metrics.flush()
                data = {"iterator": iterator.get_state(), "best": best.state()}
                checkpoints.save(n, model=state.policy.model, train=_rest(state), data=data, best=best.step)

            run_loop(
                name,
                state,
                first,
                loop,
                step=shown.profiled(step),
                on_step=lambda n, values: shown.progress.update(n, _shown(values)),
                write=shown.metrics.write,
                save=save,
                # Before its first step the policy is the reference.
                evaluate=lambda state, n: evaluate(state.policy.model) | ({} if n else {"kl": 0.0}),
                improved=best.improved,
                timed=shown.timed,
                stop=lambda n: context.stop(),
            )
        checkpoints.finish(best.step)
    return best.result(shown.metrics.path) if is_leader() else {}


def _setup(context: StageContext) -> tuple[Setup, PPOState, tuple[Any, Any]]:
    """Loads everything that the stage reads and makes its first state."""
    section = context.section
    records = context.records(section.prompts, "prompt")
    anchors = read_anchors(context.stage(section.anchors), records) if section.anchors else [()] * len(records)
    built = construct(LoadedModels(context, {}), context.name, len(records))
    card, reference, tokenizer = built.reference
    assert tokenizer is not None
    adapters = {"base": base_name(context, context.stage(section.policy))} if section.lora.rank else {}
    setup = Setup(
        context=context,
        config=built.config,
        card=dataclasses.replace(card, decoder=dataclasses.asdict(built.state.policy.model.config), **adapters),
        tokenizer=tokenizer,
        sampling=sampling_config(
            card, tokenizer, temperature=section.temperature, top_k=section.top_k, top_p=section.top_p
        ),
        judge=built.judges[section.judge],
        win_rate_judge=built.judges[section.evaluation.judge],
        records=records,
        anchors=anchors,
        reference=reference,
    )
    return setup, built.state, built.optimizers


def _start(state: PPOState, checkpoints: Checkpoints, iterator: Any, best: BestSoFar) -> tuple[PPOState, int]:
    """The state to start from, and the steps behind it."""
    if checkpoints.latest() is None:
        return state, 0
    state = released(state)
    saved = checkpoints.restore(model=state.policy.model, train=_rest(state))
    iterator.set_state(saved.data["iterator"])
    best.restore(saved.data["best"], checkpoints)
    return _whole(state, saved.model, saved.train), saved.step


def _rest(state: PPOState) -> Any:
    """What a checkpoint holds beside the policy's parameters."""
    return {
        "policy_opt_state": state.policy.opt_state,
        "policy_step": state.policy.step,
        "critic": state.critic.model,
        "critic_opt_state": state.critic.opt_state,
        "critic_step": state.critic.step,
        "kl_coef": state.kl_coef,
    }


def _whole(state: PPOState, model: Decoder, rest: Mapping[str, Any]) -> PPOState:
    policy = state.policy._replace(model=model, opt_state=rest["policy_opt_state"], step=rest["policy_step"])
    critic = state.critic._replace(model=rest["critic"], opt_state=rest["critic_opt_state"], step=rest["critic_step"])
    return PPOState(policy, critic, rest["kl_coef"])


def _shown(values: Mapping[str, float]) -> dict[str, float]:
    keys = ("reward", "kl", "entropy", "loss", "win_rate")
    return {key: values[key] for key in keys if key in values}


KIND = Kind(
    name="ppo",
    family="policy",
    declare=declare,
    rules=RULES,
    checks=CHECKS,
    run=run,
    reads=reads,
    rows=batch_rows,
    costs=COSTS,
    writes="policy",
)
