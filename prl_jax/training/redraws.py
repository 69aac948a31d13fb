"""Groups whose responses all earn the same say nothing about which is better: they are left out, or drawn again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from prl_jax.methods import Judgements
from prl_jax.training.compare import Rewarded
from prl_jax.types import Rollout

SPREAD = 1e-6  # rewards of a group that are no further apart are the same


def flat_groups(reward: Float[np.ndarray, "N"], group_size: int) -> Bool[np.ndarray, "B"]:
    """Which of the groups of `group_size` rows have no spread in their rewards."""
    groups = reward.reshape(-1, group_size)
    return groups.max(1) - groups.min(1) <= SPREAD


def rows_of(groups: Int[np.ndarray, "b"], group_size: int) -> Int[np.ndarray, "n"]:
    """The rows of groups, by their numbers."""
    return (groups[:, None] * group_size + np.arange(group_size)).ravel()


def with_rewards(rewarded: Rewarded, again: Rewarded, rows: Int[np.ndarray, "n"]) -> Rewarded:
    """Rewards and judgements of `N` rows, those of the given rows from another asking, which has these alone.

    Judgements that were cut add up; how far an ensemble disagrees is weighed by the rows of each asking.
    """
    pairs = zip(rewarded.judged, again.judged, strict=True)
    judged = tuple(_judged_again(old, new, rows) for old, new in pairs)
    disagreement, count = rewarded.disagreement, len(rewarded.reward)
    if disagreement is not None and again.disagreement is not None:
        disagreement = (count * disagreement + len(rows) * again.disagreement) / (count + len(rows))
    reward = _put(rewarded.reward, again.reward, rows)
    return Rewarded(reward, judged, rewarded.cut + again.cut, disagreement)


def _judged_again(judged: Judgements, again: Judgements, rows: Int[np.ndarray, "n"]) -> Judgements:
    parts = zip(judged, again, strict=True)
    put: list[Any] = [jnp.asarray(_put(old, new, rows)) if isinstance(old, jax.Array) else old for old, new in parts]
    return Judgements(*put)


def _put(values: Any, new: Any, rows: Int[np.ndarray, "n"]) -> np.ndarray:
    """A copy with other rows, which may have fewer columns: the remaining ones are 0."""
    values, new = np.array(values), np.asarray(new)
    values[rows] = 0
    values[(rows, *(slice(size) for size in new.shape[1:]))] = new
    return values


@jax.jit
def with_rows(old: Rollout, new: Rollout, taken: Bool[Array, "N"]) -> Rollout:
    """A rollout whose rows that are `taken` come from another one of the same prompts."""
    return jax.tree.map(lambda x, y: jnp.where(taken.reshape(-1, *(1,) * (x.ndim - 1)), y, x), old, new)
