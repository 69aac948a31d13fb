"""Signs of policies while they learned: metrics that left their range, how responses ended, and what was cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from prl_jax.evaluation import Watch
from prl_jax.reporting.inputs import REWARDED, RunFiles, StageFiles, number
from prl_jax.reporting.names import arm_name
from prl_jax.reporting.tables import DASH, Column, Table, table_of, text

# Panels of the figure of what a policy optimised and what it got: title, y label, metric -> legend.
TRUTH_PANELS = (
    ("What it optimised", "mean reward", {"reward": "reward"}),
    ("What it got", "mean exact reward", {"exact_reward": "exact reward"}),
    (
        "How often its judge was right",
        "share of comparisons",
        {"judge_accuracy": "all", "judge_accuracy/content": "contents differ", "judge_accuracy/form": "form alone"},
    ),
    ("Calibration of its judge", "ECE", {"judge_ece": "ECE"}),
)
_LATEST = 10  # rows of metrics that tell how a policy ended


def warnings(run: RunFiles) -> list[str]:
    """A sentence about each metric of a policy that left its range, with the steps."""
    found = [(arm_name(run, stage.name), Watch(stage.metrics).sentences()) for stage in run.of_role(REWARDED)]
    return [f"{name}: {sentence}" for name, sentences in found for sentence in sentences]


def watched_table(run: RunFiles) -> Table:
    """How the responses of each policy ended, and what was cut, in the mean of its last `_LATEST` rows of metrics."""
    rows = [{"name": arm_name(run, stage.name), **_latest(stage)} for stage in run.of_role(REWARDED)]
    return table_of(_COLUMNS, [row for row in rows if len(row) > 1])


def _latest(stage: StageFiles) -> dict[str, float]:
    """Metric -> the mean of its last values."""
    keys = dict.fromkeys(key for row in stage.metrics for key in row if key in _MEASURED)
    values = {key: [value for row in stage.metrics if (value := number(row, key)) is not None] for key in keys}
    return {key: float(np.mean(found[-_LATEST:])) for key, found in values.items() if found}


def _share(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: DASH if (value := number(row, key)) is None else f"{100 * value:.1f} %"


def _mean(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: DASH if (value := number(row, key)) is None else f"{value:.1f}"


_SHARES = {
    "stop_reasons/stop_token": "ended by a stop token",
    "stop_reasons/stop_string": "by a stop text",
    "stop_reasons/room": "out of room",
    "stop_reasons/repetition": "repeated itself",
    "identical_to_opponent": "identical to the opponent",
    "judge_saturation": "judge certain",
    "frame_imitations": "marks of the template",
}
_COUNTS = {"truncated_prompts": "prompts cut, a step", "cut_judgements": "comparisons cut, a step"}
_MEASURED = {*_SHARES, *_COUNTS}
_COLUMNS = (
    Column("arm", text("name"), numeric=False),
    *(Column(title, _share(key)) for key, title in _SHARES.items()),
    *(Column(title, _mean(key)) for key, title in _COUNTS.items()),
)
