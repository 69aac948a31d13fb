"""The responses of a step, and what judges say of them: sampled, compared, and drawn again where all earn the same."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prl_jax.artifacts.cards import ModelCard
from prl_jax.data.records import PromptRecord
from prl_jax.judges import Judge
from prl_jax.methods import Judgements, Method, opponents
from prl_jax.methods.rewards import Moments
from prl_jax.models import Decoder, MixedDecoder
from prl_jax.processes import fetch, greatest, local_rows, put_batch, whole_batch
from prl_jax.runs.context import StageContext
from prl_jax.sampling import (
    SamplingConfig,
    encode_prompts,
    generate,
    read_responses,
    respond,
    row_keys,
    shortened,
    stop_reasons,
    unpadded,
)
from prl_jax.stages.online_ahead import Sampled
from prl_jax.stages.online_anchors import KeptAnchors
from prl_jax.streams import Stream, stream_key
from prl_jax.text.chat import Prompt
from prl_jax.text.tokenizer import Tokenizer
from prl_jax.training.compare import Rewarded, rewards_of
from prl_jax.training.redraws import flat_groups, rows_of, with_rewards, with_rows
from prl_jax.training.schedule import Schedule
from prl_jax.training.state import PolicyState
from prl_jax.types import Rollout


class Setup(NamedTuple):
    """The surroundings of a step, beside its state."""

    context: StageContext
    method: Method
    schedule: Schedule
    card: ModelCard
    tokenizer: Tokenizer
    sampling: SamplingConfig
    judges: Sequence[Judge]
    win_rate_judge: Judge
    records: Sequence[PromptRecord]
    anchors: Sequence[Sequence[str]] | KeptAnchors
    reference: Decoder
    total: int = 1  # steps of the stage
    reference_every: int = 0  # after how many of them the reference becomes the policy; 0: never


class Step(NamedTuple):
    """One batch of rollouts with what was thought of it.

    Attributes:
      anchors: the texts that stand for the prompt of each row, those that were sampled for it at this step included.
      judged: the answers of each judge.
      greedy: `[N]` float32, the reward of the likeliest response to the row's prompt; None where nobody asks.
      stopped: `[N]`, why each response ended, see `stop_reasons`.
      longest: tokens of the longest response that was drawn, what was drawn again included.
      redrawn: how many groups were drawn again.
    """

    prompts: list[Prompt]
    responses: list[str]
    anchors: list[Sequence[str]]
    judged: tuple[Judgements, ...]
    reward: np.ndarray
    greedy: np.ndarray | None
    rollout: Rollout
    stopped: np.ndarray
    truncated_prompts: int
    cut_judgements: int
    disagreement: float | None
    longest: int
    redrawn: int = 0


class Beside(NamedTuple):
    """The texts that stand for each of `B` prompts of a step.

    Attributes:
      anchors: kept by an anchors stage, or sampled at this step.
      likeliest: the policy's own greedy response, for a baseline that reads its reward; None where nobody asks.
    """

    anchors: list[Sequence[str]]
    likeliest: list[str] | None


def roll_out(setup: Setup, state: PolicyState, index: np.ndarray, n: int, sampled: Sampled | None = None) -> Step:
    """Samples and judges `group_size` responses to each prompt of the step; once more those to prompts whose responses
    all earn the same, where the schedule says so. What is `sampled` already is judged alone."""
    size, beside = setup.schedule.group_size, stand_ins(setup, state, index, n)
    sampled = sample(setup, state, index, n) if sampled is None else sampled
    done = _judged(setup, state, sampled, n, beside, np.arange(len(index)), 0)
    for attempt in range(1, setup.schedule.draws):
        groups = np.flatnonzero(flat_groups(done.reward, size))
        if len(groups):
            again = _judged(setup, state, sample(setup, state, index, n, attempt), n, beside, groups, attempt)
            done = _redrawn(done, again, rows_of(groups, size), setup.context.mesh)
    if setup.schedule.overlong or setup.method.surrogate.reduce == "seq_mean_room_mean":
        return done  # they read from the arrays how much room a response has
    return done._replace(rollout=unpadded(done.rollout, done.longest))


def stand_ins(setup: Setup, state: PolicyState, index: np.ndarray, n: int) -> Beside:
    """The texts that stand for the prompts of a step."""
    prompts, met = [setup.records[i].prompt for i in index], setup.method.opponents
    anchors: list[Sequence[str]] = [setup.anchors[i] for i in index.tolist()]
    if met.candidates == "sampled":
        anchors = [(text,) for text in sampled_for(setup, state, prompts, met.sampler, n)]
    reads = setup.method.baseline.reads_greedy
    return Beside(anchors, sampled_for(setup, state, prompts, "greedy", n) if reads else None)


def sampled_for(setup: Setup, state: PolicyState, prompts: Sequence[Prompt], sampler: str, n: int) -> list[str]:
    """A text for each prompt of a step, to compare the responses with.

    Args:
      setup, state: of the stage.
      prompts: one of each prompt.
      sampler: whose text it is, see `Opponents`.
      n: number of the step.
    """
    context, model, sampling = setup.context, state.policy.model, setup.sampling
    key = stream_key(context.key, Stream.OPPONENT_SAMPLES, n)
    if sampler == "greedy":
        sampling = dataclasses.replace(sampling, temperature=0.0)
    elif sampler == "past":
        model = state.past[int(jax.random.randint(jax.random.fold_in(key, len(prompts)), (), 0, len(state.past)))]
    elif isinstance(setup.method.opponents, opponents.Mixture):
        reference = setup.reference if state.reference is None else state.reference
        model = MixedDecoder(model, reference, setup.method.opponents.share)
    size = whole_batch(len(prompts), context.mesh)
    options = dict(config=sampling, key=key, max_prompt=setup.card.max_prompt, batch_size=size, mesh=context.mesh)
    return respond(model, setup.tokenizer, prompts, **options)[0]


def sample(setup: Setup, state: PolicyState, index: np.ndarray, n: int, attempt: int = 0) -> Sampled:
    """Responses to all prompts of the step, so that every draw has the same shapes. Nothing waits for them here."""
    context, size = setup.context, setup.schedule.group_size
    read, group = prompts_to_read([setup.records[i].prompt for i in index], size, context.mesh)
    local_prompts = [read[i] for i in local_rows(context.mesh, len(read))]
    encoded = encode_prompts(setup.tokenizer, local_prompts, length=setup.card.max_prompt)
    encoded = put_batch(shortened(encoded, greatest(int(encoded.mask.sum(1).max()))), context.mesh)
    keys = row_keys(_key(setup, Stream.RESPONSES, n, attempt), 0, size * len(index))
    rollout = generate(state.policy.model, encoded.tokens, encoded.mask, keys, config=setup.sampling, group=group)
    # A copy: the next update takes the state's arrays.
    return Sampled(index, rollout, encoded.truncated, jnp.copy(state.policy.step))


def _key(setup: Setup, stream: Stream, n: int, attempt: int) -> jax.Array:
    """The key of responses, or of the opponents that they meet, in the first draw of a step or a later one."""
    if not attempt:
        return stream_key(setup.context.key, stream, n)
    again = stream_key(setup.context.key, Stream.REDRAWS, n)
    return jax.random.fold_in(again, 2 * attempt + (stream is Stream.OPPONENTS))


def _judged(
    setup: Setup, state: PolicyState, sampled: Sampled, n: int, beside: Beside, groups: np.ndarray, attempt: int
) -> Step:
    """One draw; the judges are asked about the given groups alone."""
    context, size, method, index = setup.context, setup.schedule.group_size, setup.method, sampled.index
    asked = [setup.records[i].prompt for i in index]
    prompts = [prompt for prompt in asked for _ in range(size)]
    anchors = [texts for texts in beside.anchors for _ in range(size)]
    rollout = sampled.rollout
    known, cut = fetch((rollout, sampled.truncated), context.mesh)
    responses, ended = read_responses(setup.tokenizer, known, setup.sampling)
    if setup.sampling.stop:
        mine = local_rows(context.mesh, len(prompts))
        rollout = Rollout(*put_batch(tuple(x[mine] for x in ended), context.mesh))
    rows, keys = rows_of(groups, size), row_keys(_key(setup, Stream.OPPONENTS, n, attempt), 0, len(index))[groups]
    moments = None if state.scores is None else Moments(*map(jnp.asarray, fetch(tuple(state.scores), context.mesh)))
    asks = functools.partial(rewards_of, setup.judges, method.opponents, method.reward, keys=keys, moments=moments)
    of = lambda texts, chosen: [texts[i] for i in chosen]  # noqa: E731
    rewarded = asks(of(prompts, rows), of(responses, rows), group_size=size, anchors=of(anchors, rows))
    greedy, cuts = None, rewarded.cut
    if beside.likeliest is not None:
        stands = of(beside.anchors, groups)
        likeliest = asks(of(asked, groups), of(beside.likeliest, groups), group_size=1, anchors=stands)
        greedy, cuts = np.repeat(likeliest.reward, size), cuts + likeliest.cut
    return Step(
        prompts=prompts,
        responses=responses,
        anchors=anchors,
        judged=rewarded.judged,
        reward=rewarded.reward,
        greedy=greedy,
        rollout=rollout,
        stopped=stop_reasons(ended, setup.sampling.stop_ids),
        truncated_prompts=len(prompts) // len(cut) * int(cut.sum()),
        cut_judgements=cuts,
        disagreement=rewarded.disagreement,
        longest=int(ended.mask.sum(1).max()),
        redrawn=len(groups) if attempt else 0,
    )


def prompts_to_read(asked: Sequence[Any], size: int, mesh: Mesh) -> tuple[list[Any], int]:
    """The prompts of a step as the policy reads them, and to how many rows each goes out: every prompt once for its
    whole group, or, where devices would have to share one, once for each response."""
    if whole_batch(len(asked), mesh) == len(asked):
        return list(asked), size
    return [prompt for prompt in asked for _ in range(size)], 1


def _redrawn(done: Step, again: Step, rows: np.ndarray, mesh: Mesh) -> Step:
    """A draw whose given rows come from another one, which was judged on these alone."""
    taken = np.isin(np.arange(len(done.responses)), rows)
    texts = [new if other else old for old, new, other in zip(done.responses, again.responses, taken, strict=True)]
    rollout = with_rows(done.rollout, again.rollout, put_batch(taken[local_rows(mesh, len(taken))], mesh))
    before, later = (Rewarded(x.reward, x.judged, x.cut_judgements, x.disagreement) for x in (done, again))
    rewarded, greedy = with_rewards(before, later, rows), done.greedy
    if greedy is not None and again.greedy is not None:
        greedy = greedy.copy()
        greedy[rows] = again.greedy
    return done._replace(
        responses=texts,
        judged=rewarded.judged,
        reward=rewarded.reward,
        greedy=greedy,
        rollout=rollout,
        stopped=np.where(taken, again.stopped, done.stopped),
        cut_judgements=rewarded.cut,
        disagreement=rewarded.disagreement,
        longest=max(done.longest, again.longest),
        redrawn=done.redrawn + again.redrawn,
    )
