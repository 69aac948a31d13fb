"""The best evaluation so far, for stages that give on the parameters of that step (`result="best"`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prl_jax.checkpoint import Checkpoints
from prl_jax.metrics import latest_metrics
from prl_jax.processes import as_leader


class BestSoFar:
    """Which evaluation was the best one, as part of what a checkpoint holds.

    Args:
      result: "best" or "last"; with "last" no evaluation is ever the best one.
      metric: what evaluations are compared by; one that is not finite is never the best.
      larger: whether more of it is better.
    """

    def __init__(self, result: str, metric: str, *, larger: bool):
        self._on, self._metric, self._sign = result == "best", metric, 1.0 if larger else -1.0
        self.step: int | None = None
        self._value = 0.0

    def improved(self, n: int, values: Mapping[str, float]) -> bool:
        """Whether step `n` has the best evaluation so far; of equal ones the first is."""
        if not self._on:
            return False
        value = values[self._metric]
        better = math.isfinite(value) and (self.step is None or self._sign * (value - self._value) > 0)
        # Processes of different machines may differ in the last bit, but either all of them save or none does.
        if as_leader(better):
            self.step, self._value = n, value
        return self.step == n

    def state(self) -> dict[str, Any]:
        """The state that `restore` takes, fit for JSON."""
        return {"step": self.step, "value": self._value}

    def restore(self, state: Mapping[str, Any], checkpoints: Checkpoints) -> None:
        """Goes on from a checkpoint's record. The checkpoint of its best step may have made room for that of a better
        one, which is damaged since; its step will come again, so that nothing has to be remembered of the old one."""
        if state["step"] is not None and checkpoints.holds(state["step"]):
            self.step, self._value = state["step"], state["value"]

    def result(self, metrics: Path) -> dict[str, float]:
        """The newest metrics of a stage, as they were at the step whose parameters it gives on."""
        found = latest_metrics(metrics, until=self.step)
        return found if self.step is None else {**found, "best_step": float(self.step)}
