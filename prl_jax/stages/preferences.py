"""The part that both reward models share: pairs of responses in, a judge out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np

from prl_jax.artifacts.cards import ModelCard
from prl_jax.artifacts.models import SAMPLES_SHOWN, make_judge
from prl_jax.data.records import PreferenceRecord
from prl_jax.data.sources import Records
from prl_jax.processes import shared
from prl_jax.runs.context import StageContext
from prl_jax.runs.models import LoadedModels, origin_of
from prl_jax.stages import supervised
from prl_jax.stages.judging import judge_records
from prl_jax.text.chat import prompt_text
from prl_jax.text.judging import verdict_ids
from prl_jax.types import ComparedPairs, ScoredPairs

SOURCES = MappingProxyType({"data": "preference", "validation": "preference"})
_PLAIN, _TIE, _IDENTICAL = range(3)  # kinds of pairs


def train(
    context: StageContext,
    card: ModelCard,
    models: LoadedModels,
    fit: supervised.Fit,
    encode: Callable[[PreferenceRecord], tuple[ScoredPairs | ComparedPairs, bool]],
) -> dict[str, float]:
    """Fits a judge to the pairs of a stage and returns the metrics of what it has come to."""
    section = context.section
    card = dataclasses.replace(card, **origin_of(context))
    verdicts = (0, 0) if card.asks is None else verdict_ids(models.tokenizer, card.asks)
    records, skipped, ties = different(context.records(section.data, "preference"))
    validation, _, _ = different(context.records(section.validation, "preference"))

    def soft(record: PreferenceRecord) -> tuple[ScoredPairs | ComparedPairs, bool]:
        row, truncated = encode(record)
        return row._replace(label=np.asarray(record.soft_label, np.float32)), truncated

    visible = validation[:SAMPLES_SHOWN]

    def sample(model: Any) -> list[dict[str, Any]]:
        judged = judge_records(
            make_judge(card, model, models.tokenizer, context.mesh, batch_size=2 * len(visible)), visible
        )
        rows = zip(visible, judged.p_12.tolist(), judged.p_21.tolist(), strict=True)
        return [
            {"prompt": prompt_text(r.prompt), "response": r.chosen, "anchor": r.rejected, "p_12": a, "p_21": b}
            for r, a, b in rows
        ]

    task = supervised.Supervised(
        card=card,
        models=models,
        fit=fit,
        verdicts=verdicts,
        records=records,
        validation=validation,
        encode=soft if section.soft_labels else encode,
        sample=sample,
        counters={"identical_pairs_skipped": skipped, "ties": ties},
    )
    return supervised.train(context, task)


def different(records: Records) -> tuple[Records, int, int]:
    """The pairs whose responses differ, how many others there are, and how many of the former are ties."""

    def kind(i: int) -> int:
        record = records[i]
        return _IDENTICAL if record.chosen == record.rejected else _TIE if record.tie else _PLAIN

    kinds = shared(kind, len(records))
    different = kinds != _IDENTICAL
    return records.take(np.flatnonzero(different)), int((~different).sum()), int((kinds == _TIE).sum())
