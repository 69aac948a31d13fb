"""One step of a policy that learns from its own samples: sample, judge, freeze, update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prl_jax.artifacts.cards import ModelCard
from prl_jax.data.records import PromptRecord
from prl_jax.judges import Judge
from prl_jax.losses import pairwise_rl_reward
from prl_jax.methods import Critic, Judgements, Method
from prl_jax.models import Decoder
from prl_jax.processes import fetch, local_rows, put_batch
from prl_jax.runs.context import StageContext
from prl_jax.sampling import (
    SamplingConfig,
    encode_prompts,
    generate,
    read_responses,
    reason_shares,
    row_keys,
    stop_reasons,
)
from prl_jax.stages.judging import check_finite, imitations, judge_counters
from prl_jax.streams import Stream, stream_key
from prl_jax.text.chat import Prompt, fit_prompt, prompt_text
from prl_jax.text.padding import pad_rows
from prl_jax.text.tokenizer import Tokenizer
from prl_jax.training.compare import Rewarded, rewards_of
from prl_jax.training.policy import Updates, prepare, run_updates
from prl_jax.training.redraws import flat_groups, rows_of, with_rewards, with_rows
from prl_jax.training.rollout import CriticContext, Experience
from prl_jax.training.schedule import Schedule
from prl_jax.training.state import PolicyState, refreshed, remember, scheduled, steer_kl, with_returns
from prl_jax.types import Rollout

SAMPLES_A_STEP = 4  # rows of samples.jsonl


class Setup(NamedTuple):
    """The surroundings of a step, beside its state."""

    context: StageContext
    method: Method
    schedule: Schedule
    card: ModelCard
    tokenizer: Tokenizer
    sampling: SamplingConfig
    judge: Judge
    win_rate_judge: Judge
    records: Sequence[PromptRecord]
    anchors: Sequence[Sequence[str]]
    reference: Decoder
    total: int = 1  # steps of the stage
    reference_every: int = 0  # after how many of them the reference becomes the policy; 0: never


class Step(NamedTuple):
    """One batch of rollouts with what was thought of it."""

    prompts: list[Prompt]
    responses: list[str]
    anchors: list[Sequence[str]]
    judged: Judgements
    reward: np.ndarray
    rollout: Rollout
    stopped: np.ndarray
    truncated_prompts: int
    cut_judgements: int
    disagreement: float | None
    redrawn: int = 0


def iteration(
    setup: Setup, updates: Updates, state: PolicyState, index: np.ndarray, n: int, *, train_policy: bool
) -> tuple[PolicyState, dict[str, jax.Array | float], Step, Experience]:
    """One step: sample, judge, freeze, update."""
    method, schedule = setup.method, setup.schedule
    state = scheduled(state, n, setup.total, method)
    done = roll_out(setup, state.policy.model, index, n)
    check_finite(done.reward, f"{setup.context.name}: the judge's rewards at step {n}")
    kept = None if schedule.flat_groups == "keep" else ~flat_groups(done.reward, schedule.group_size)
    train_policy &= kept is None or bool(kept.any())
    context, reward = critic_context(setup, done), jnp.asarray(done.reward)
    frozen = dict(kept=None if kept is None else jnp.asarray(np.repeat(kept, schedule.group_size)))
    pieces = dict(method=method, schedule=schedule)
    reference = setup.reference if state.reference is None else state.reference
    experience, before = prepare(state, reference, done.rollout, context, reward, **frozen, **pieces)
    if "return_deviation" in before:
        state = with_returns(state, before["return_deviation"])
    key = stream_key(setup.context.key, Stream.SHUFFLING, n)
    state, metrics = run_updates(
        updates,
        state,
        experience,
        key,
        method,
        schedule,
        train_policy=train_policy,
    )
    if train_policy:
        state = steer_kl(state, before["kl"], len(done.responses), method)
    state = _followed(setup, updates, state, n)
    # A copy: the next update takes the state's arrays, which may be before anybody reads the metrics.
    metrics = {**metrics, **before, "kl_coef": jnp.copy(state.kl_coef), "reward": jnp.asarray(done.reward.mean())}
    metrics["truncated_prompts"] = jnp.asarray(done.truncated_prompts)
    metrics["cut_judgements"] = jnp.asarray(done.cut_judgements)
    if setup.reference_every:
        metrics["reference_age"] = jnp.asarray((n - 1) % setup.reference_every)
    if state.entropy is not None:
        metrics["entropy_weight"] = jnp.copy(state.entropy)
    if kept is not None:
        metrics |= {"flat_groups": jnp.asarray(1 - kept.mean()), "redrawn": jnp.asarray(done.redrawn)}
    if done.disagreement is not None:
        metrics["judge_disagreement"] = jnp.asarray(done.disagreement)
    metrics |= {name: jnp.asarray(share) for name, share in reason_shares(done.stopped).items()}
    metrics |= {name: jnp.asarray(value) for name, value in imitations(setup.judge, done.responses).items()}
    metrics |= judge_counters(setup.judge)
    if done.judged.z_ya is not None:
        metrics |= _judge_metrics(method.opponents.kind, done.judged)
    return state, metrics, done, experience


def _followed(setup: Setup, updates: Updates, state: PolicyState, n: int) -> PolicyState:
    """The state after the updates of step `n`, once the models that stand by have followed the policy."""
    state = remember(refreshed(state, n, setup.reference_every), n, setup.method.opponents.every)
    if updates.drift is not None:
        reference, _ = updates.drift(state.reference, state.policy.model)
        state = state._replace(reference=reference)
    return state


def roll_out(setup: Setup, policy: Decoder, index: np.ndarray, n: int) -> Step:
    """Samples and judges `group_size` responses to each prompt of the step; once more those to prompts whose responses
    all earn the same, where the schedule says so."""
    size = setup.schedule.group_size
    done = _draw(setup, policy, index, n, np.arange(len(index)), 0)
    for attempt in range(1, setup.schedule.draws):
        groups = np.flatnonzero(flat_groups(done.reward, size))
        if len(groups):
            again = _draw(setup, policy, index, n, groups, attempt)
            done = _redrawn(done, again, rows_of(groups, size), setup.context.mesh)
    return done


def _draw(setup: Setup, policy: Decoder, index: np.ndarray, n: int, groups: np.ndarray, attempt: int) -> Step:
    """One draw: responses to all prompts of the step, so that every draw has the same shapes; the judge is asked about
    those of the given groups alone."""
    context, size = setup.context, setup.schedule.group_size
    asked = [setup.records[i].prompt for i in index]
    prompts = [prompt for prompt in asked for _ in range(size)]
    anchors = [setup.anchors[i] for i in np.repeat(index, size)]
    local_prompts = [prompts[i] for i in local_rows(context.mesh, len(prompts))]
    encoded = put_batch(encode_prompts(setup.tokenizer, local_prompts, length=setup.card.max_prompt), context.mesh)
    sampling, drawing = (stream_key(context.key, stream, n) for stream in (Stream.RESPONSES, Stream.OPPONENTS))
    if attempt:
        again = stream_key(context.key, Stream.REDRAWS, n)
        sampling, drawing = (jax.random.fold_in(again, 2 * attempt + k) for k in range(2))
    keys = row_keys(sampling, 0, len(prompts))
    rollout = generate(policy, encoded.tokens, encoded.mask, keys, config=setup.sampling)
    known, cut = fetch((rollout, encoded.truncated), context.mesh)
    responses, ended = read_responses(setup.tokenizer, known, setup.sampling)
    if setup.sampling.stop:
        mine = local_rows(context.mesh, len(prompts))
        rollout = Rollout(*put_batch(tuple(x[mine] for x in ended), context.mesh))
    rows, stopped = rows_of(groups, size), stop_reasons(ended, setup.sampling.stop_ids)
    rewarded = rewards_of(
        setup.judge,
        setup.method.opponents,
        setup.method.reward,
        [prompts[i] for i in rows],
        [responses[i] for i in rows],
        group_size=size,
        anchors=[anchors[i] for i in rows],
        keys=row_keys(drawing, 0, len(index))[groups],
    )
    reward, judged, cuts, disagreement = rewarded
    redrawn = len(groups) if attempt else 0
    return Step(
        prompts, responses, anchors, judged, reward, rollout, stopped, int(cut.sum()), cuts, disagreement, redrawn
    )


def _redrawn(done: Step, again: Step, rows: np.ndarray, mesh: Mesh) -> Step:
    """A draw whose given rows come from another one, which was judged on these alone."""
    taken = np.isin(np.arange(len(done.responses)), rows)
    texts = [new if other else old for old, new, other in zip(done.responses, again.responses, taken, strict=True)]
    rollout = with_rows(done.rollout, again.rollout, put_batch(taken[local_rows(mesh, len(taken))], mesh))
    before, later = (Rewarded(x.reward, x.judged, x.cut_judgements, x.disagreement) for x in (done, again))
    reward, judged, cuts, disagreement = with_rewards(before, later, rows)
    return done._replace(
        responses=texts,
        judged=judged,
        reward=reward,
        rollout=rollout,
        stopped=np.where(taken, again.stopped, done.stopped),
        cut_judgements=cuts,
        disagreement=disagreement,
        redrawn=done.redrawn + again.redrawn,
    )


def critic_context(setup: Setup, done: Step) -> CriticContext | None:
    """Returns what the critic reads before the response: the prompt, and before it the opponent that it met."""
    baseline, mesh = setup.method.baseline, setup.context.mesh
    if not isinstance(baseline, Critic):
        return None
    if not baseline.sees_opponent:
        return CriticContext(done.rollout.prompt, done.rollout.prompt_mask)
    tokenizer, card, met = setup.tokenizer, setup.card, np.asarray(done.judged.mask)
    marker = tokenizer.special("reference")
    lead = tokenizer.encode("Reference: ") if marker is None else [marker]
    rows = []
    for i in local_rows(mesh, len(done.prompts)):
        question, _ = fit_prompt(tokenizer, done.prompts[i], card.max_prompt)
        opponent = done.anchors[i][int(met[i].argmax())]
        rows.append([*lead, *tokenizer.encode(opponent)[: card.max_response], *question])
    length = len(lead) + card.max_response + card.max_prompt
    padded = pad_rows(rows, length, pad_id=tokenizer.pad_id, side="left")
    return CriticContext(*put_batch((padded.tokens, padded.segments > 0), mesh))


def _judge_metrics(opponents: str, judged: Judgements) -> dict[str, jax.Array]:
    """How the judge saw the step: win probability, and how often the two orders name different winners.

    Two even verdicts agree, such as those on identical responses.
    """
    assert judged.z_ya is not None and judged.z_ay is not None
    mask = np.asarray(judged.mask)
    disagree = (np.sign(judged.z_ya) != -np.sign(judged.z_ay)) & mask
    wins = pairwise_rl_reward(judged.z_ya, judged.z_ay, judged.mask, space=judged.merge).mean()
    return {f"win_rate_{opponents}": wins, "order_disagreement": jnp.asarray(disagree.sum() / mask.sum())}


def sample_rows(n: int, done: Step, experience: Experience, mesh: Mesh) -> list[dict[str, Any]]:
    """A few rows of the step as a person reads them."""
    frozen = experience.frozen
    logp, logp_ref = fetch((frozen.logp_old.sum(1), frozen.logp_ref.sum(1)), mesh)
    kl, judged, met, rows = logp - logp_ref, done.judged, np.asarray(done.judged.mask), []
    for i in range(min(SAMPLES_A_STEP, len(done.responses))):
        first_met = int(met[i].argmax()) if met.shape[1] else 0  # the first opponent; a response itself is none
        orders = {}
        for name, z in (("p_12", judged.z_ya), ("p_21", judged.z_ay)):
            orders[name] = None if z is None else float(jax.nn.sigmoid(z[i, first_met]))
        anchor = done.anchors[i][first_met if met.shape[1] == len(done.anchors[i]) else 0] if done.anchors[i] else None
        row = {"step": n, "prompt": prompt_text(done.prompts[i]), "response": done.responses[i], "anchor": anchor}
        rows.append({**row, **orders, "reward": float(done.reward[i]), "logp": float(logp[i]), "kl": float(kl[i])})
    return rows
