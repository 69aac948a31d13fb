"""One step of a policy that learns from its own samples: sample, judge, freeze, update."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prl_jax.losses import pairwise_rl_reward
from prl_jax.methods import Critic, Judgements, Opponents, Reward
from prl_jax.methods.regularisers import Mixture
from prl_jax.processes import fetch, greatest, local_rows, put_batch
from prl_jax.runs.pieces import check_finite
from prl_jax.sampling import StopReason, reason_shares
from prl_jax.stages.judging import imitations, judge_counters
from prl_jax.stages.online_ahead import Sampled
from prl_jax.stages.online_anchors import KeptAnchors
from prl_jax.stages.online_samples import Setup, Step, roll_out
from prl_jax.streams import Stream, stream_key
from prl_jax.text.chat import fit_prompt, prompt_text
from prl_jax.text.padding import pad_rows, static_length
from prl_jax.training.policy import Updates, prepare, run_updates
from prl_jax.training.redraws import flat_groups
from prl_jax.training.rollout import CriticContext, Experience
from prl_jax.training.state import PolicyState, refreshed, remember, scheduled, steer_kl, with_returns, with_scores

SAMPLES_A_STEP = 4  # rows of samples.jsonl


def iteration(
    setup: Setup,
    updates: Updates,
    state: PolicyState,
    index: np.ndarray,
    n: int,
    *,
    train_policy: bool,
    sampled: Sampled | None = None,
) -> tuple[PolicyState, dict[str, jax.Array | float], Step, Experience]:
    """One step: sample (unless that is done), judge, freeze, update."""
    method, schedule = setup.method, setup.schedule
    state = scheduled(state, n, setup.total, method)
    done = roll_out(setup, state, index, n, sampled)
    staleness = None if sampled is None else state.policy.step - sampled.updates
    check_finite(done.reward, f"{setup.context.name}: the judge's rewards at step {n}")
    kept = None if schedule.flat_groups == "keep" else ~flat_groups(done.reward, schedule.group_size)
    train_policy &= kept is None or bool(kept.any())
    context, reward = critic_context(setup, done), jnp.asarray(done.reward)
    differences = None
    if method.baseline.reads_differences:
        differences = method.reward.differences(done.judged[0]), done.judged[0].mask
    beside = dict(differences=differences, greedy=None if done.greedy is None else jnp.asarray(done.greedy))
    beside["kept"] = None if kept is None else jnp.asarray(np.repeat(kept, schedule.group_size))
    pieces = dict(method=method, schedule=schedule)
    reference = setup.reference if state.reference is None else state.reference
    experience, before = prepare(state, reference, done.rollout, context, reward, **beside, **pieces)
    if "return_deviation" in before:
        state = with_returns(state, before["return_deviation"])
    state = with_scores(state, done.judged[0].scores)
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
    if isinstance(setup.anchors, KeptAnchors):
        left = setup.anchors.learn(
            index, done.responses, done.stopped >= StopReason.ROOM, done.judged[0], schedule.group_size
        )
        metrics["anchors_replaced"] = jnp.asarray(left)
    if setup.reference_every:
        metrics["reference_age"] = jnp.asarray((n - 1) % setup.reference_every)
    if staleness is not None:
        metrics["staleness"] = staleness
    if state.entropy is not None:
        metrics["entropy_weight"] = jnp.copy(state.entropy)
    if kept is not None:
        metrics |= {"flat_groups": jnp.asarray(1 - kept.mean()), "redrawn": jnp.asarray(done.redrawn)}
    if done.disagreement is not None:
        metrics["judge_disagreement"] = jnp.asarray(done.disagreement)
    metrics |= {name: jnp.asarray(share) for name, share in reason_shares(done.stopped).items()}
    for judge in setup.judges:
        metrics |= {name: jnp.asarray(value) for name, value in imitations(judge, done.responses).items()}
        metrics |= judge_counters(judge)
    seen = judge_metrics(method.opponents, method.reward, done.judged)
    metrics |= {name: jnp.asarray(value) for name, value in seen.items()}
    return state, metrics, done, experience


def _followed(setup: Setup, updates: Updates, state: PolicyState, n: int) -> PolicyState:
    """The state after the updates of step `n`, once the models that stand by have followed the policy."""
    state = remember(refreshed(state, n, setup.reference_every), n, setup.method.opponents.every)
    if updates.drift is not None:
        reference, _ = updates.drift(state.reference, state.policy.model)
        state = state._replace(reference=reference)
    return state


def critic_context(setup: Setup, done: Step) -> CriticContext | None:
    """Returns what the critic reads before the response: the prompt, and before it the opponent that it met."""
    baseline, mesh = setup.method.baseline, setup.context.mesh
    if not isinstance(baseline, Critic):
        return None
    if not baseline.sees_opponent:
        return CriticContext(done.rollout.prompt, done.rollout.prompt_mask)
    tokenizer, card, met = setup.tokenizer, setup.card, np.asarray(done.judged[0].mask)
    marker = tokenizer.special("reference")
    lead = tokenizer.encode("Reference: ") if marker is None else [marker]
    rows = []
    for i in local_rows(mesh, len(done.prompts)):
        question, _ = fit_prompt(tokenizer, done.prompts[i], card.max_prompt)
        opponent = done.anchors[i][int(met[i].argmax())]
        rows.append([*lead, *tokenizer.encode(opponent)[: card.max_response], *question])
    longest = greatest(max(map(len, rows)))
    length = static_length(longest, len(lead) + card.max_response + card.max_prompt)
    padded = pad_rows(rows, length, pad_id=tokenizer.pad_id, side="left")
    return CriticContext(*put_batch((padded.tokens, padded.segments > 0), mesh))


def judge_metrics(
    opponents: Opponents, reward: Reward, judged: Sequence[Judgements]
) -> dict[str, jax.Array | np.floating[Any]]:
    """How the judges saw a step.

    Where pairs were judged: the win probability, and how often the two orders name different winners; two even verdicts
    agree, such as those on identical responses. Of several judges, the mean score of each.
    """
    first = judged[0]
    if first.z_ya is None or first.z_ay is None:
        named = zip(reward.judges, judged, strict=False)  # a judge alone is not named by the reward
        return {f"score_{Path(name).name}": one.scores.mean() for name, one in named if one.scores is not None}
    wins = pairwise_rl_reward(first.z_ya, first.z_ay, first.mask, space=first.merge)
    met = np.asarray(first.mask)
    found = {f"win_rate_{opponents.kind}": np.asarray(wins)[met.any(1)].mean()}
    if opponents.orders == "both":
        disagree = (np.sign(first.z_ya) != -np.sign(first.z_ay)) & met
        found["order_disagreement"] = disagree.sum() / met.sum()
    return found


def sample_rows(setup: Setup, n: int, done: Step, experience: Experience) -> list[dict[str, Any]]:
    """A few rows of the step as a person reads them."""
    frozen, method = experience.frozen, setup.method
    logp, held = fetch((frozen.logp_old.sum(1), frozen.logp_ref.sum(1)), setup.context.mesh)
    judged, met, rows = done.judged[0], np.asarray(done.judged[0].mask), []
    # What holds the policy may be a mixture with itself; where nothing but itself does, the reference was not asked.
    own = method.regulariser.previous if isinstance(method.regulariser, Mixture) else 0.0
    kl = None if own == 1 else (logp - held) / (1.0 - own)
    for i in range(min(SAMPLES_A_STEP, len(done.responses))):
        first_met = int(met[i].argmax()) if met.shape[1] else 0  # the first opponent; a response itself is none
        orders = {}
        # What was asked in one order has one probability.
        second = judged.z_ay if method.opponents.orders == "both" else None
        for name, z in (("p_12", judged.z_ya), ("p_21", second)):
            orders[name] = None if z is None else float(jax.nn.sigmoid(z[i, first_met]))
        anchor = done.anchors[i][first_met] if done.anchors[i] else None
        row = {"step": n, "prompt": prompt_text(done.prompts[i]), "response": done.responses[i], "anchor": anchor}
        rows.append(
            {
                **row,
                **orders,
                "reward": float(done.reward[i]),
                "logp": float(logp[i]),
                "kl": kl if kl is None else float(kl[i]),
            }
        )
    return rows
