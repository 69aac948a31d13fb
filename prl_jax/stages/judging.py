"""Judges on preference records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prl_jax.data.records import PreferenceRecord
from prl_jax.evaluation import judge_metrics, longer_first
from prl_jax.judges import Judge, Judged, judge_pairs


def judge_records(judge: Judge, records: Sequence[PreferenceRecord]) -> Judged:
    """Judges the pairs, the chosen response as response 1."""
    return judge_pairs(judge, [r.prompt for r in records], [r.chosen for r in records], [r.rejected for r in records])


def record_metrics(judged: Judged, records: Sequence[PreferenceRecord]) -> dict[str, Any]:
    """`judge_metrics` against what the records know: labels, ties, soft labels, lengths."""
    return judge_metrics(
        judged.p_12.astype(np.float64),
        judged.p_21.astype(np.float64),
        np.array([record.label for record in records]),
        soft=np.array([record.soft_label for record in records]),
        tie=np.array([record.tie for record in records]),
        longer=longer_first([r.chosen for r in records], [r.rejected for r in records]),
    )
