"""Reward models: preference pairs -> a judge, scalar or generative."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import ModelCard
from prl_jax.artifacts.models import SAMPLES_SHOWN, make_judge
from prl_jax.data.records import PreferenceRecord
from prl_jax.data.rows import encode_generative_pair, encode_scalar_pair
from prl_jax.data.sources import Records
from prl_jax.models import ScalarModel
from prl_jax.processes import shared
from prl_jax.runs.context import StageContext, initial_decoder, stage_tokenizer
from prl_jax.sharding import replicated
from prl_jax.stages import supervised
from prl_jax.stages.judging import judge_records
from prl_jax.text.chat import prompt_text
from prl_jax.text.judging import JudgeTemplate, verdict_ids
from prl_jax.training.reward_model import bradley_terry_objective, generative_objective
from prl_jax.training.step import Objective
from prl_jax.types import PreferenceBatch

_PLAIN, _TIE, _IDENTICAL = range(3)  # kinds of pairs


def run_bradley_terry(context: StageContext) -> dict[str, float]:
    """Trains a scalar judge and returns the metrics of what it has come to."""
    section = context.section
    tokenizer = stage_tokenizer(context)
    decoder, origin = initial_decoder(context, tokenizer)
    model = ScalarModel(decoder)
    model.scalar = jax.device_put(model.scalar, replicated(context.mesh))
    fields = dataclasses.asdict(decoder.config)
    card = ModelCard("scalar_judge", fields, section.max_prompt, section.max_response, **origin)
    encode = functools.partial(
        encode_scalar_pair, tokenizer, max_prompt=section.max_prompt, max_response=section.max_response
    )
    return _train(context, card, tokenizer, model, stage_objective(section), encode)


def run_generative(context: StageContext) -> dict[str, float]:
    """Trains a generative pairwise judge and returns the metrics of what it has come to."""
    section = context.section
    tokenizer = stage_tokenizer(context)
    template = JudgeTemplate(section.template, tuple(section.verdicts), section.shared_positions)
    verdicts = verdict_ids(tokenizer, template)
    decoder, origin = initial_decoder(context, tokenizer)
    fields, asked = dataclasses.asdict(decoder.config), dataclasses.asdict(template)
    card = ModelCard("generative_judge", fields, section.max_length, 1, asked, **origin)
    encode = functools.partial(encode_generative_pair, tokenizer, template, max_length=section.max_length)
    return _train(context, card, tokenizer, decoder, stage_objective(section, verdicts), encode)


def stage_objective(section: ConfigDict, verdicts: tuple[int, int] = (0, 1)) -> Objective:
    """What a reward model's section asks to be fitted; a generative one has verdict tokens."""
    if section.kind == "generative":
        return generative_objective(verdicts, form=section.form, w_ce=section.w_ce, w_cons=section.w_cons)
    return bradley_terry_objective(label_smoothing=section.label_smoothing, center=section.center)


def _train(
    context: StageContext,
    card: ModelCard,
    tokenizer: Any,
    model: nnx.Module,
    objective: Objective,
    encode: Callable[[PreferenceRecord], tuple[PreferenceBatch, bool]],
) -> dict[str, float]:
    section = context.section
    records, skipped, ties = _different(context.records(section.data, "preference"))
    validation, _, _ = _different(context.records(section.validation, "preference"))

    def soft(record: PreferenceRecord) -> tuple[PreferenceBatch, bool]:
        row, truncated = encode(record)
        return row._replace(label=np.asarray(record.soft_label, np.float32)), truncated

    shown = validation[:SAMPLES_SHOWN]

    def sample(model: Any) -> list[dict[str, Any]]:
        judged = judge_records(make_judge(card, model, tokenizer, context.mesh, batch_size=2 * len(shown)), shown)
        rows = zip(shown, judged.p_12.tolist(), judged.p_21.tolist(), strict=True)
        return [
            {"prompt": prompt_text(r.prompt), "response": r.chosen, "anchor": r.rejected, "p_12": a, "p_21": b}
            for r, a, b in rows
        ]

    task = supervised.Supervised(
        card=card,
        tokenizer=tokenizer,
        model=model,
        objective=objective,
        records=records,
        validation=validation,
        encode=soft if section.soft_labels else encode,
        sample=sample,
        counters={"identical_pairs_skipped": skipped, "ties": ties},
    )
    return supervised.train(context, task)


def _different(records: Records) -> tuple[Records, int, int]:
    """The pairs whose responses differ, how many others there are, and how many of the former are ties."""

    def kind(i: int) -> int:
        record = records[i]
        return _IDENTICAL if record.chosen == record.rejected else _TIE if record.tie else _PLAIN

    kinds = shared(kind, len(records))
    different = kinds != _IDENTICAL
    return records.take(np.flatnonzero(different)), int((~different).sum()), int((kinds == _TIE).sum())
