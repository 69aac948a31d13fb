"""Judges on preference records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from prl_jax.data.records import PreferenceRecord
from prl_jax.evaluation import judge_metrics, longer_first
from prl_jax.judges import CountingJudge, EnsembleJudge, GenerativeJudge, Judge, Judged, RemoteJudge, judge_pairs


def judge_records(judge: Judge, records: Sequence[PreferenceRecord]) -> Judged:
    """Judges the pairs, the chosen response as response 1."""
    return judge_pairs(judge, [r.prompt for r in records], [r.chosen for r in records], [r.rejected for r in records])


def record_metrics(judged: Judged, records: Sequence[PreferenceRecord]) -> dict[str, Any]:
    """The metrics of judgements, see `pair_metrics`."""
    return pair_metrics(judged.p_12.astype(np.float64), judged.p_21.astype(np.float64), judged.p_first, records)


def pair_metrics(
    p_12: Float[np.ndarray, "N"],
    p_21: Float[np.ndarray, "N"],
    p_first: Float[np.ndarray, "N"],
    records: Sequence[PreferenceRecord],
) -> dict[str, Any]:
    """`judge_metrics` against what the records know: labels, ties, soft labels, lengths."""
    return judge_metrics(
        p_12,
        p_21,
        np.array([record.label for record in records]),
        p_first=p_first,
        soft=np.array([record.soft_label for record in records]),
        tie=np.array([record.tie for record in records]),
        longer=longer_first([r.chosen for r in records], [r.rejected for r in records]),
    )


def imitations(judge: Judge, responses: Sequence[str]) -> dict[str, float]:
    """The share of responses that hold what would be a part of a generative judge's frame, if the judge did not keep
    contents apart from it: a policy that learns to write these tries to forge the judge's question."""
    frames = [one.template for one in _asked(judge) if isinstance(one, GenerativeJudge | RemoteJudge)]
    if not frames:
        return {}
    return {"frame_imitations": float(np.mean([any(one.imitated_by(text) for one in frames) for text in responses]))}


def _asked(judge: Judge) -> list[Judge]:
    """The judge, or the members of an ensemble, and theirs."""
    return [one for member in judge.members for one in _asked(member)] if isinstance(judge, EnsembleJudge) else [judge]


def judge_counters(judge: Judge) -> dict[str, float]:
    """The numbers of a judge that counts, as metrics: since it was loaded, thus not of an attempt before this one."""
    counts = judge.counters() if isinstance(judge, CountingJudge) else {}
    return {f"judge_{name}": float(count) for name, count in counts.items()}
