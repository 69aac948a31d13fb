"""Judges asked about responses: one by one, or against their opponents, and the reward that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from prl_jax.errors import UserError
from prl_jax.judges import Judge, Judged, Scored, ScoringJudge, judge_pairs
from prl_jax.methods import Judgements, Opponents, Reward
from prl_jax.text.chat import Prompt


class Rewarded(NamedTuple):
    """The rewards of a step.

    Attributes:
      reward: `[N]` float32.
      judged: the judgements behind them.
      cut: how many of these the judge's rows did not hold whole.
      disagreement: the mean standard deviation of the members of an ensemble; None of a judge without members.
    """

    reward: Float[np.ndarray, "N"]
    judged: Judgements
    cut: int
    disagreement: float | None = None


def rewards_of(
    judge: Judge,
    opponents: Opponents,
    reward: Reward,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    group_size: int,
    anchors: Sequence[Sequence[str]],
    keys: Key[Array, "B"],
) -> Rewarded:
    """Asks a judge what a reward needs to know.

    Args:
      judge: whom to ask; it has `scores` where the reward asks for them. Identical responses are even without asking.
      opponents, reward: pieces of a method.
      prompts, responses: `N` rows; the responses to one prompt stand together, `group_size` of them.
      group_size: samples a prompt.
      anchors: the anchors of each row's prompt, at least one where opponents are anchors.
      keys: a key for each of the `N / group_size` prompts.
    """
    mask, candidates = whom(opponents, responses, group_size=group_size, anchors=anchors, keys=keys)
    if reward.asks == "pairs":
        mirrored = opponents.candidates == "group"
        z_ya, z_ay, answers = _compared(judge, prompts, responses, mask, candidates, mirrored, group_size)
        judged = Judgements(jnp.asarray(mask), jnp.asarray(z_ya), jnp.asarray(z_ay), merge=judge.merge)
    else:
        scores, others, answers = _scored(judge, prompts, responses, mask, candidates)
        judged = Judgements(jnp.asarray(mask), scores=jnp.asarray(scores), opponent_scores=jnp.asarray(others))
    cuts = 0 if answers.cut is None else int(answers.cut.sum())
    disagreement = None if answers.deviation is None else float(answers.deviation.mean())
    return Rewarded(np.asarray(reward(judged), np.float32), judged, cuts, disagreement)


def whom(
    opponents: Opponents,
    responses: Sequence[str],
    *,
    group_size: int,
    anchors: Sequence[Sequence[str]],
    keys: Key[Array, "B"],
) -> tuple[Bool[np.ndarray, "N M"], list[Sequence[str]]]:
    """Whom each of `N` responses meets, of up to `M` candidates, and the texts of the candidates of each row."""
    count = len(responses)
    groups = [responses[start : start + group_size] for start in range(0, count, group_size)]
    candidates: list[Sequence[str]] = [()] * count
    if opponents.candidates == "group":
        candidates = [group for group in groups for _ in group]
    elif opponents.candidates == "anchors":
        candidates = list(anchors)
        if min(len(row) for row in anchors) == 0:
            raise UserError("a prompt has no anchor; run an anchors stage over the same prompts")
    width = max(len(row) for row in candidates)
    exists = np.arange(width) < np.array([len(row) for row in candidates])[:, None]
    mask = opponents.mask(jnp.asarray(exists).reshape(len(groups), group_size, width), keys)
    return np.asarray(mask).reshape(count, width), candidates


def _compared(
    judge: Judge,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    mask: Bool[np.ndarray, "N M"],
    candidates: Sequence[Sequence[str]],
    mirrored: bool,
    group_size: int,
) -> tuple[Float[np.ndarray, "N M"], Float[np.ndarray, "N M"], Judged]:
    """Logits of both orders, and the judgements of the pairs that they come from.

    Within a group one judgement of a pair, in both orders, serves both of its members.
    """
    count, width = mask.shape
    place = np.arange(count) % group_size
    rows, columns = np.nonzero(mask & (np.arange(width) > place[:, None]) if mirrored else mask)
    pairs = [*zip(rows.tolist(), columns.tolist(), strict=True)]
    others = [candidates[i][j] for i, j in pairs]
    judged = judge_pairs(judge, [prompts[i] for i, _ in pairs], [responses[i] for i, _ in pairs], others)
    z_ya, z_ay = np.zeros((count, width), np.float32), np.zeros((count, width), np.float32)
    z_ya[rows, columns], z_ay[rows, columns] = judged.z_12, judged.z_21
    if mirrored:
        partners = rows - place[rows] + columns
        z_ya[partners, place[rows]], z_ay[partners, place[rows]] = judged.z_21, judged.z_12
    return z_ya, z_ay, judged


def _scored(
    judge: Judge,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    mask: Bool[np.ndarray, "N M"],
    candidates: Sequence[Sequence[str]],
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N M"], Scored]:
    """Scores of the responses and of their opponents, and the answers that they come from.

    The same text after the same prompt is scored once.
    """
    if not isinstance(judge, ScoringJudge):
        raise UserError(f"{type(judge).__name__} compares pairs and has no scores; the reward needs a judge that has")
    rows, columns = np.nonzero(mask)
    asked = [*zip(prompts, responses, strict=True)]
    asked += [(prompts[i], candidates[i][j]) for i, j in zip(rows.tolist(), columns.tolist(), strict=True)]
    different = list(dict.fromkeys(asked))
    answers = judge.scored(*map(list, zip(*different, strict=True)))
    found = dict(zip(different, answers.scores.tolist(), strict=True))
    others = np.zeros(mask.shape, np.float32)
    others[rows, columns] = [found[one] for one in asked[len(responses) :]]
    return np.array([found[one] for one in asked[: len(responses)]], np.float32), others, answers
