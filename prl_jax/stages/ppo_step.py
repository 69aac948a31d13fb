"""One PPO iteration: sample, judge, freeze, update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prl_jax.artifacts.cards import ModelCard
from prl_jax.data.records import PromptRecord
from prl_jax.judges import Judge, ScalarJudge
from prl_jax.losses import pairwise_rl_reward
from prl_jax.models import Decoder
from prl_jax.processes import fetch, local_rows, put_batch
from prl_jax.runs.context import StageContext
from prl_jax.sampling import SamplingConfig, decode_responses, encode_prompts, generate, row_keys
from prl_jax.stages.judging import check_finite, imitations
from prl_jax.streams import Stream, stream_key
from prl_jax.text.chat import Prompt, fit_prompt, prompt_text
from prl_jax.text.padding import pad_rows
from prl_jax.text.tokenizer import Tokenizer
from prl_jax.training.opponents import Comparisons, compare
from prl_jax.training.ppo import CriticContext, PPOConfig, PPOState, Update, adapt_kl, prepare, run_update
from prl_jax.training.rollout import Experience
from prl_jax.types import Rollout

SAMPLES_A_STEP = 4  # rows of samples.jsonl


class Setup(NamedTuple):
    """What an iteration needs beside its state."""

    context: StageContext
    config: PPOConfig
    card: ModelCard
    tokenizer: Tokenizer
    sampling: SamplingConfig
    judge: Judge
    win_rate_judge: Judge
    records: Sequence[PromptRecord]
    anchors: Sequence[Sequence[str]]
    reference: Decoder


class Step(NamedTuple):
    """One batch of rollouts with what was thought of it.

    Attributes:
      cut_judgements: comparisons, or scores, for which the judge did not see all of prompt and responses.
    """

    prompts: list[Prompt]
    responses: list[str]
    anchors: list[Sequence[str]]
    comparisons: Comparisons | None
    score: np.ndarray
    rollout: Rollout
    truncated_prompts: int
    cut_judgements: int = 0


def iteration(
    setup: Setup, update: Update, state: PPOState, index: np.ndarray, n: int, *, train_policy: bool
) -> tuple[PPOState, dict[str, jax.Array], Step, Experience]:
    """One step: sample, judge, freeze, update."""
    done = roll_out(setup, state.policy.model, index, n)
    check_finite(np.asarray(done.score), f"{setup.context.name}: the judge's rewards at step {n}")
    experience, before = prepare(
        state,
        setup.reference,
        done.rollout,
        critic_context(setup, done),
        jnp.asarray(done.score),
        config=setup.config,
    )
    state, metrics = run_update(
        update,
        state,
        experience,
        stream_key(setup.context.key, Stream.SHUFFLING, n),
        setup.config,
        train_policy=train_policy,
    )
    state = adapt_kl(state, before["kl"], len(done.responses), setup.config)
    metrics = {**metrics, **before, "kl_coef": state.kl_coef, "reward": jnp.asarray(done.score.mean())}
    metrics["truncated_prompts"] = jnp.asarray(done.truncated_prompts)
    metrics["cut_judgements"] = jnp.asarray(done.cut_judgements)
    metrics |= {name: jnp.asarray(value) for name, value in imitations(setup.judge, done.responses).items()}
    if done.comparisons is not None:
        metrics |= _judge_metrics(setup.context.section.opponents, done.comparisons)
    return state, metrics, done, experience


def roll_out(setup: Setup, policy: Decoder, index: np.ndarray, n: int) -> Step:
    """Samples `group_size` responses to each prompt of the step and scores them."""
    section, context = setup.context.section, setup.context
    asked = [setup.records[i].prompt for i in index]
    prompts = [prompt for prompt in asked for _ in range(section.group_size)]
    anchors = [setup.anchors[i] for i in np.repeat(index, section.group_size)]
    own = [prompts[i] for i in local_rows(context.mesh, len(prompts))]
    encoded = put_batch(encode_prompts(setup.tokenizer, own, length=setup.card.max_prompt), context.mesh)
    keys = row_keys(stream_key(context.key, Stream.RESPONSES, n), 0, len(prompts))
    rollout = generate(policy, encoded.tokens, encoded.mask, keys, config=setup.sampling)
    known, cut = fetch((rollout, encoded.truncated), context.mesh)
    responses = decode_responses(setup.tokenizer, known, setup.sampling.stop_ids)
    if section.reward == "score":
        assert isinstance(setup.judge, ScalarJudge)
        scores, unseen = setup.judge.scored(prompts, responses)
        return Step(prompts, responses, anchors, None, scores, rollout, int(cut.sum()), int(unseen.sum()))
    comparisons = compare(
        setup.judge,
        section.opponents,
        prompts,
        responses,
        group_size=section.group_size,
        anchors=anchors,
        form=section.reward_form,
        keys=row_keys(stream_key(context.key, Stream.OPPONENTS, n), 0, len(index)),
        draws=section.opponent_draws,
    )
    reward, cuts = comparisons.reward, comparisons.cuts
    return Step(prompts, responses, anchors, comparisons, reward, rollout, int(cut.sum()), cuts)


def critic_context(setup: Setup, done: Step) -> CriticContext:
    """What the critic reads before the response: the prompt, or the first anchor and the prompt."""
    mesh = setup.context.mesh
    if not setup.context.section.critic_sees_anchor:
        return CriticContext(done.rollout.prompt, done.rollout.prompt_mask)
    tokenizer, card = setup.tokenizer, setup.card
    marker = tokenizer.special("reference")
    lead = tokenizer.encode("Reference: ") if marker is None else [marker]
    rows = []
    for i in local_rows(mesh, len(done.prompts)):
        question, _ = fit_prompt(tokenizer, done.prompts[i], card.max_prompt)
        rows.append([*lead, *tokenizer.encode(done.anchors[i][0])[: card.max_response], *question])
    length = len(lead) + card.max_response + card.max_prompt
    padded = pad_rows(rows, length, pad_id=tokenizer.pad_id, side="left")
    return CriticContext(*put_batch((padded.tokens, padded.segments > 0), mesh))


def _judge_metrics(opponents: str, comparisons: Comparisons) -> dict[str, jax.Array]:
    """How the judge saw the step: win probability, and how often the two orders name different winners.

    Two even verdicts agree, such as those on identical responses.
    """
    mask = comparisons.mask
    disagree = (np.sign(comparisons.z_ya) != -np.sign(comparisons.z_ay)) & mask
    logits = map(jnp.asarray, (comparisons.z_ya, comparisons.z_ay, mask))
    wins = pairwise_rl_reward(*logits, space=comparisons.merge).mean()
    return {f"win_rate_{opponents}": wins, "order_disagreement": jnp.asarray(disagree.sum() / mask.sum())}


def sample_rows(n: int, done: Step, experience: Experience, mesh: Mesh) -> list[dict[str, Any]]:
    """A few rows of the step as a person reads them."""
    logp, logp_ref = fetch((experience.logp_old.sum(1), experience.logp_ref.sum(1)), mesh)
    kl = logp - logp_ref
    rows = []
    judged = done.comparisons
    for i in range(min(SAMPLES_A_STEP, len(done.responses))):
        shown = 0 if judged is None else int(judged.mask[i].argmax())  # its first opponent; the own column has none
        rows.append(
            {
                "step": n,
                "prompt": prompt_text(done.prompts[i]),
                "response": done.responses[i],
                "anchor": done.anchors[i][0] if done.anchors[i] else None,
                "p_12": None if judged is None else float(jax.nn.sigmoid(judged.z_ya[i, shown])),
                "p_21": None if judged is None else float(jax.nn.sigmoid(judged.z_ay[i, shown])),
                "reward": float(done.score[i]),
                "logp": float(logp[i]),
                "kl": float(kl[i]),
            }
        )
    return rows
