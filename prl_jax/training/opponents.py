"""Who a response is compared with, and the reward that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from prl_jax.errors import UserError
from prl_jax.judges import Judge, judge_pairs
from prl_jax.losses import opponents, pairwise_rl_reward
from prl_jax.losses.pairwise_ppo import OPPONENTS
from prl_jax.text.chat import Prompt


class Comparisons(NamedTuple):
    """Each of `N` responses against up to `M` opponents.

    Attributes:
      reward: `[N]` float32.
      z_ya, z_ay: `[N, M]` float32 logits of "slot 1 wins", the response in slot 1 and in slot 2.
      mask: `[N, M]` bool, the opponents that there are.
      merge: how the judge merges the two orders, see `Judged`.
      cuts: comparisons of which the judge did not see all.
    """

    reward: Float[np.ndarray, "N"]
    z_ya: Float[np.ndarray, "N M"]
    z_ay: Float[np.ndarray, "N M"]
    mask: Bool[np.ndarray, "N M"]
    merge: str
    cuts: int = 0


def compare(
    judge: Judge,
    kind: str,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    group_size: int,
    anchors: Sequence[Sequence[str]],
    form: str = "id",
    keys: Key[Array, "B"] | None = None,
    draws: int = 1,
) -> Comparisons:
    """Rewards `[N]` by comparison, both orders of every pair.

    Args:
      judge: whom to ask; identical responses are even without asking.
      kind: "anchor" (each of the prompt's anchors), "pool" (some of them, drawn anew with each key), "peer" (the
        neighbour in the group: 0 with 1, 2 with 3 ...) or "group" (every other member of the group).
      prompts, responses: `N` rows; the responses to one prompt stand together, `group_size` of them.
      group_size: samples a prompt.
      anchors: the anchors of each row's prompt, at least one where `kind` is "anchor" or "pool".
      form: how a win probability becomes a reward, see `pairwise_rl_reward`.
      keys, draws: for "pool", a key for each of the `N / group_size` prompts, and how many anchors are drawn.
    """
    if kind not in OPPONENTS:
        raise UserError(f"opponents={kind!r}, expected one of {OPPONENTS}")
    count, mirrored = len(responses), kind in ("peer", "group")
    if mirrored and (group_size < 2 or (kind == "peer" and group_size % 2)):
        raise UserError(f"opponents {kind!r}: group_size={group_size}, expected a multiple of 2 ('group': at least 2)")
    if not mirrored and min(len(row) for row in anchors) == 0:
        raise UserError(f"opponents {kind!r}: a prompt has no anchor; run an anchors stage over the same prompts")
    groups = [responses[start : start + group_size] for start in range(0, count, group_size)]
    candidates = [group for group in groups for _ in group] if mirrored else anchors
    width = max(len(row) for row in candidates)
    there = np.arange(width) < np.array([len(row) for row in candidates])[:, None]
    mask = opponents(kind, jnp.asarray(there).reshape(-1, group_size, width), keys=keys, draws=draws)
    mask = np.asarray(mask).reshape(count, width)
    own = np.arange(count) % group_size  # a row's place in its group
    # One judgement of a pair, in both orders, serves both of its members.
    rows, columns = np.nonzero(mask & (np.arange(width) > own[:, None]) if mirrored else mask)
    pairs = [(int(i), int(j)) for i, j in zip(rows, columns, strict=True)]
    others = [candidates[i][j] for i, j in pairs]
    judged = judge_pairs(judge, [prompts[i] for i, _ in pairs], [responses[i] for i, _ in pairs], others)
    z_ya, z_ay = np.zeros((count, width), np.float32), np.zeros((count, width), np.float32)
    z_ya[rows, columns], z_ay[rows, columns] = judged.z_12, judged.z_21
    if mirrored:
        partners = rows - own[rows] + columns
        z_ya[partners, own[rows]], z_ay[partners, own[rows]] = judged.z_21, judged.z_12
    reward = pairwise_rl_reward(*map(jnp.asarray, (z_ya, z_ay, mask)), space=judged.merge, f=form)
    return Comparisons(np.asarray(reward, np.float32), z_ya, z_ay, mask, judged.merge, judged.cuts)
