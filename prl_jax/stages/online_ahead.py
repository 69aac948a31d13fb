"""Responses that nobody has judged yet, and those of the next step that are sampled while this one is learned from."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from prl_jax.processes import fetch, local_rows, put_batch
from prl_jax.types import Rollout


class Sampled(NamedTuple):
    """Responses to the prompts of a step.

    Attributes:
      index: the records of the prompts.
      rollout: a row for each response.
      truncated: `[n]`, of which prompts contents were cut; each stands here once for all of its responses, or for each.
      updates: int32 scalar, how many updates the policy had behind it.
    """

    index: Int[np.ndarray, "B"]
    rollout: Rollout
    truncated: Bool[Array, "n"]
    updates: Int[Array, ""] | Int[np.ndarray, ""]


class Ahead:
    """The responses of the next step, where there are any yet.

    They are a position of the stage, as that of its data is: the policy that sampled them is gone when a run goes on
    from a checkpoint.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._sampled: Sampled | None = None

    def put(self, sampled: Sampled) -> None:
        """Keeps responses for the next step."""
        self._sampled = sampled

    def take(self) -> Sampled | None:
        """Returns what was put, once; None where nothing was."""
        sampled, self._sampled = self._sampled, None
        return sampled

    def get_state(self) -> dict[str, str]:
        """The arrays, each as the text of a NumPy file, in base 64; empty where there are none."""
        if self._sampled is None:
            return {}
        index, rollout, truncated, updates = self._sampled
        rollout, truncated, updates = fetch((rollout, truncated, updates), self._mesh)
        arrays = dict(rollout._asdict(), index=index, prompts_truncated=truncated, updates=updates)
        return {name: _text(np.asarray(array)) for name, array in arrays.items()}

    def set_state(self, state: Mapping[str, str]) -> None:
        """Takes what `get_state` gave."""
        if not state:
            self._sampled = None
            return
        arrays: dict[str, Any] = {name: _array(text) for name, text in state.items()}
        index, updates = arrays.pop("index"), arrays.pop("updates")
        rows = {name: array[local_rows(self._mesh, len(array))] for name, array in arrays.items()}
        rows = put_batch(rows, self._mesh)
        truncated = rows.pop("prompts_truncated")
        self._sampled = Sampled(index, Rollout(**rows), truncated, updates)


def _text(array: np.ndarray) -> str:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _array(text: str) -> np.ndarray:
    return np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)
