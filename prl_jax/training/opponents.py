"""Who a response is compared with, and the reward that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from prl_jax.errors import UserError
from prl_jax.judges import Judge, judge_pairs
from prl_jax.losses import pairwise_rl_reward
from prl_jax.text.chat import Prompt

OPPONENTS = ("anchor", "peer", "group")


class Comparisons(NamedTuple):
    """Each of `N` responses against up to `M` opponents.

    Attributes:
      reward: `[N]` float32.
      z_ya, z_ay: `[N, M]` float32 logits of "slot 1 wins", the response in slot 1 and in slot 2.
      mask: `[N, M]` bool, the opponents that there are.
    """

    reward: Float[np.ndarray, "N"]
    z_ya: Float[np.ndarray, "N M"]
    z_ay: Float[np.ndarray, "N M"]
    mask: Bool[np.ndarray, "N M"]


def compare(
    judge: Judge,
    kind: str,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    group_size: int,
    anchors: Sequence[Sequence[str]],
    form: str = "id",
) -> Comparisons:
    """Rewards `[N]` by comparison, both orders of every pair.

    Args:
      judge: whom to ask; identical responses are even without asking.
      kind: "anchor" (each of the prompt's anchors), "peer" (the neighbour in the group: 0 with 1, 2 with 3 ...) or
        "group" (every other member of the group).
      prompts, responses: `N` rows; the responses to one prompt stand together, `group_size` of them.
      group_size: samples a prompt.
      anchors: the anchors of each row's prompt, at least one where `kind` is "anchor".
      form: how a win probability becomes a reward, see `pairwise_rl_reward`.
    """
    count = len(responses)
    if kind == "anchor":
        width = max(len(row) for row in anchors)
        pairs = [(i, j, text) for i, row in enumerate(anchors) for j, text in enumerate(row)]
        if min(len(row) for row in anchors) == 0:
            raise UserError("opponents 'anchor': a prompt has no anchor; run an anchors stage over the same prompts")
        rows, columns, others = zip(*pairs, strict=True)
        mirrored = False
    elif kind in ("peer", "group"):
        step = 2 if kind == "peer" else group_size
        if group_size < 2 or group_size % step:
            raise UserError(
                f"opponents {kind!r}: group_size={group_size}, expected a multiple of 2 ('group': at least 2)"
            )
        width, mirrored = step, True
        local = [(a, b) for s in range(0, group_size, step) for a in range(s, s + step) for b in range(a + 1, s + step)]
        rows = [g + a for g in range(0, count, group_size) for a, _ in local]
        partners = [g + b for g in range(0, count, group_size) for _, b in local]
        columns, others = [b % step for b in partners], [responses[b] for b in partners]
    else:
        raise UserError(f"opponents={kind!r}, expected one of {OPPONENTS}")
    judged = judge_pairs(judge, [prompts[i] for i in rows], [responses[i] for i in rows], others)
    z_ya, z_ay = np.zeros((count, width), np.float32), np.zeros((count, width), np.float32)
    mask = np.zeros((count, width), bool)
    rows, columns = np.asarray(rows), np.asarray(columns)
    z_ya[rows, columns], z_ay[rows, columns], mask[rows, columns] = judged.z_12, judged.z_21, True
    if mirrored:  # one judgement of a pair, in both orders, serves both of its members
        partners, own = np.asarray(partners), rows % group_size % width
        z_ya[partners, own], z_ay[partners, own], mask[partners, own] = judged.z_21, judged.z_12, True
    reward = np.asarray(pairwise_rl_reward(*map(jnp.asarray, (z_ya, z_ay, mask)), f=form), np.float32)
    return Comparisons(reward, z_ya, z_ay, mask)
