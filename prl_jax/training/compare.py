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
from prl_jax.methods.rewards import Moments
from prl_jax.text.chat import Prompt


class Rewarded(NamedTuple):
    """The rewards of a step.

    Attributes:
      reward: `[N]` float32.
      judged: the judgements behind them, of each judge.
      cut: how many of these the judges' rows did not hold whole.
      disagreement: the mean standard deviation of the members of ensembles; None of judges without members.
    """

    reward: Float[np.ndarray, "N"]
    judged: tuple[Judgements, ...]
    cut: int
    disagreement: float | None = None


def rewards_of(
    judges: Sequence[Judge],
    opponents: Opponents,
    reward: Reward,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    group_size: int,
    anchors: Sequence[Sequence[str]],
    keys: Key[Array, "B"],
    moments: Moments | None = None,
) -> Rewarded:
    """Asks judges what a reward needs to know.

    Args:
      judges: whom to ask, one or as many as the reward names; they have `scores` where the reward asks for them.
        Identical responses are even without asking.
      opponents, reward: pieces of a method.
      prompts, responses: `N` rows; the responses to one prompt stand together, `group_size` of them.
      group_size: samples a prompt.
      anchors: the texts that stand for each row's prompt, at least one where opponents are not of the group.
      keys: a key for each of the `N / group_size` prompts.
      moments: of the scores of the steps before, for rewards that normalise by them.
    """
    mask, candidates = whom(opponents, responses, group_size=group_size, anchors=anchors, keys=keys)
    rows = Rows(prompts, responses, candidates, mask)
    if reward.asks == "pairs":
        grouped = jnp.asarray(mask).reshape(-1, group_size, mask.shape[1])
        first, second = (np.asarray(slot).reshape(mask.shape) for slot in opponents.slots(grouped, keys))
        within = group_size if opponents.candidates == "group" else 0
        answers = [_compared(judge, rows, first, second, within) for judge in judges]
        answers = [(one._replace(merge=reward.merged(one.merge)), parts) for one, parts in answers]
    else:
        answers = [_scored(judge, rows) for judge in judges]
    judged, asked = (
        tuple(one._replace(moments=moments) for one, _ in answers),
        [part for _, parts in answers for part in parts],
    )
    cuts = sum(int(part.cut.sum()) for part in asked if part.cut is not None)
    deviations = [part.deviation for part in asked if part.deviation is not None and len(part.deviation)]
    disagreement = float(np.concatenate(deviations).mean()) if deviations else None
    return Rewarded(np.asarray(reward(*judged), np.float32), judged, cuts, disagreement)


class Rows(NamedTuple):
    """`N` responses, the texts of up to `M` candidates of each, and `[N, M]` bool, which of these it meets."""

    prompts: Sequence[Prompt]
    responses: Sequence[str]
    candidates: Sequence[Sequence[str]]
    mask: Bool[np.ndarray, "N M"]


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
    elif opponents.candidates != "none":
        candidates = list(anchors)
        if min(len(row) for row in anchors) == 0:
            raise UserError("a prompt has no anchor; run an anchors stage over the same prompts")
    width = max(len(row) for row in candidates)
    exists = np.arange(width) < np.array([len(row) for row in candidates])[:, None]
    mask = opponents.mask(jnp.asarray(exists).reshape(len(groups), group_size, width), keys)
    return np.asarray(mask).reshape(count, width), candidates


def _compared(
    judge: Judge, rows: Rows, first: Bool[np.ndarray, "N M"], second: Bool[np.ndarray, "N M"], within: int
) -> tuple[Judgements, list[Judged]]:
    """Logits of both orders, and the answers that they come from.

    Args:
      judge: whom to ask.
      rows: the comparisons.
      first, second: the orders in which each is judged, with the response in slot 1 and in slot 2.
      within: the size of groups whose members meet each other; one judgement of a pair, in an order, then serves both
        of its members. 0 where they meet others.
    """
    count, width = rows.mask.shape
    place = np.arange(count) % (within or 1)
    if within:
        first = first | _mirrored(second, within)
        both = first & _mirrored(first, within)
        single, second = first & ~both, np.zeros_like(second)
        both = both & (np.arange(width) > place[:, None])
    else:
        both = first & second
        single, second = first & ~both, second & ~both
    z_ya, z_ay, answers = np.zeros((count, width), np.float32), np.zeros((count, width), np.float32), []
    # Asked in both orders; in one, the response in slot 1; in one, the candidate in slot 1.
    for asked, one_order, exchanged in ((both, False, False), (single, True, False), (second, True, True)):
        i, j = np.nonzero(asked)
        if not len(i) and one_order:
            continue
        mine = [rows.responses[n] for n in i.tolist()]
        others = [rows.candidates[n][m] for n, m in zip(i.tolist(), j.tolist(), strict=True)]
        slots = (others, mine) if exchanged else (mine, others)
        judged = judge_pairs(judge, [rows.prompts[n] for n in i.tolist()], *slots, one_order=one_order)
        z_ya[i, j], z_ay[i, j] = (judged.z_21, judged.z_12) if exchanged else (judged.z_12, judged.z_21)
        answers.append(judged)
        if within:
            partners = i - place[i] + j
            z_ya[partners, place[i]], z_ay[partners, place[i]] = z_ay[i, j], z_ya[i, j]
    return Judgements(*map(jnp.asarray, (rows.mask, z_ya, z_ay)), merge=judge.merge), answers


def _mirrored(pairs: Bool[np.ndarray, "N G"], size: int) -> Bool[np.ndarray, "N G"]:
    """`[N, G]`, whether the other member has what a pair has."""
    return pairs.reshape(-1, size, size).swapaxes(1, 2).reshape(pairs.shape)


def _scored(judge: Judge, rows: Rows) -> tuple[Judgements, list[Scored]]:
    """Scores of the responses and of their opponents, and the answers that they come from.

    The same text after the same prompt is scored once.
    """
    if not isinstance(judge, ScoringJudge):
        raise UserError(f"{type(judge).__name__} compares pairs and has no scores; the reward needs a judge that has")
    i, j = np.nonzero(rows.mask)
    asked = [*zip(rows.prompts, rows.responses, strict=True)]
    asked += [(rows.prompts[n], rows.candidates[n][m]) for n, m in zip(i.tolist(), j.tolist(), strict=True)]
    different = list(dict.fromkeys(asked))
    answers = judge.scored(*map(list, zip(*different, strict=True)))
    found = dict(zip(different, answers.scores.tolist(), strict=True))
    scores, others = np.zeros(len(rows.responses), np.float32), np.zeros(rows.mask.shape, np.float32)
    scores[:] = [found[one] for one in asked[: len(scores)]]
    others[i, j] = [found[one] for one in asked[len(scores) :]]
    judged = Judgements(jnp.asarray(rows.mask), scores=jnp.asarray(scores), opponent_scores=jnp.asarray(others))
    return judged, [answers]
