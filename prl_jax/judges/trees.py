"""Comparisons that begin alike, as rows that are read once: trees, whose stem several rows share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prl_jax.models.attention import BRANCHES
from prl_jax.text.chat import Prompt
from prl_jax.text.judging import JudgeRow
from prl_jax.text.padding import pad_rows
from prl_jax.types import TokenRows

MOST = 4  # branches of a tree: with more of them its attention, which is over whole rows, takes what reading less saves


def trees(prompts: Sequence[Prompt], slot_1: Sequence[str]) -> list[list[int]]:
    """Which rows share a tree: those with one prompt and one response in slot 1; those that are left alone by that,
    with one prompt.

    Args:
      prompts, slot_1: what each of `N` rows begins with.

    Returns:
      The numbers of the rows of each tree, at most `MOST`; every row is in one.
    """
    alike: dict[Prompt, dict[str, list[int]]] = {}
    for row, (prompt, text) in enumerate(zip(prompts, slot_1, strict=True)):
        alike.setdefault(prompt, {}).setdefault(text, []).append(row)
    found: list[list[int]] = []
    for groups in alike.values():
        several = [rows for rows in groups.values() if len(rows) > 1]
        alone = [rows[0] for rows in groups.values() if len(rows) == 1]
        for rows in [*several, *([alone] if alone else [])]:
            found += [part.tolist() for part in np.array_split(rows, -(-len(rows) // MOST))]
    return found


def joined(rows: Sequence[JudgeRow]) -> tuple[list[int], list[int], list[int]]:
    """One tree as a row: its tokens, the position that each has in its own row, and segments (`attention.BRANCHES`)."""
    stem = common(rows)
    ids, positions = rows[0].ids[:stem], rows[0].positions[:stem]
    segments = [BRANCHES] * stem
    for branch, row in enumerate(rows, start=1):
        ids, positions = ids + row.ids[stem:], positions + row.positions[stem:]
        segments += [BRANCHES + branch] * (len(row.ids) - stem)
    return ids, positions, segments


def common(rows: Sequence[JudgeRow]) -> int:
    """Tokens that all rows begin with, in the same positions; at least the last one of each is its own."""
    count = min(len(row.ids) for row in rows) - 1
    both = np.array([(row.ids[:count], row.positions[:count]) for row in rows])
    differ = np.any(both != both[:1], axis=(0, 1))
    return int(np.argmax(differ)) if differ.any() else count


def tree_rows(grown: Sequence[Sequence[JudgeRow]], length: int, *, pad_id: int) -> TokenRows:
    """Trees as `[N, length]` numpy arrays, right-padded with `pad_id`."""
    ids, positions, segments = zip(*map(joined, grown), strict=True)
    rows = pad_rows(ids, length, pad_id=pad_id, positions=positions)
    numbers: Any = np.zeros((len(ids), length), np.int32)
    for row, of_row in zip(numbers, segments, strict=True):
        row[: len(of_row)] = of_row
    return rows._replace(segments=numbers)
