"""SFT: demonstrations -> a policy."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from prl_jax.artifacts.models import SAMPLES_SHOWN
from prl_jax.config.declare import filled
from prl_jax.config.rules import RESULTS, Rules
from prl_jax.data.rows import TRAIN_ON, encode_sft
from prl_jax.data.sources import Records
from prl_jax.processes import shared
from prl_jax.runs.context import StageContext
from prl_jax.runs.models import LoadedModels, origin_of
from prl_jax.stages import supervised
from prl_jax.stages.kind import Kind, Reads
from prl_jax.stages.shown import shown_samples
from prl_jax.stages.spent import by_records
from prl_jax.stages.supervised_costs import demonstrations, fitting_costs
from prl_jax.training.sft import sft_objective


def declare(**values: Any) -> dict[str, Any]:
    """The section of a stage of supervised fine-tuning."""
    defaults = dict(
        kind="sft",
        max_prompt=32,
        max_response=32,
        train_on="last",  # what counts of a conversation: its last response, or "all" turns of the assistant
    )
    return filled({**supervised.shared_section(), **defaults}, values, "sft")


def run(context: StageContext) -> dict[str, float]:
    """Trains and returns the metrics of what it has come to."""
    section = context.section
    models = LoadedModels(context)
    tokenizer = models.tokenizer
    card = dataclasses.replace(supervised.policy_card(section), **origin_of(context))
    validation, _ = _to_imitate(context.records(section.validation, "sft"))
    records, skipped = _to_imitate(context.records(section.data, "sft"))
    visible = [record.prompt for record in validation[:SAMPLES_SHOWN]]
    task = supervised.Supervised(
        card=card,
        models=models,
        fit=FIT,
        verdicts=(0, 0),
        records=records,
        validation=validation,
        encode=functools.partial(
            encode_sft,
            tokenizer,
            max_prompt=section.max_prompt,
            max_response=section.max_response,
            train_on=section.train_on,
        ),
        sample=shown_samples(context, card, tokenizer, visible),
        counters={"undecided_pairs_skipped": skipped},
    )
    return supervised.train(context, task)


def _to_imitate(records: Records) -> tuple[Records, int]:
    """The demonstrations without those from pairs that have no better response, and how many those are."""
    better = shared(lambda i: records[i].better, len(records)).astype(bool)
    return records.take(np.flatnonzero(better)), int((~better).sum())


FIT = supervised.Fit(objective=lambda section, verdicts, packed: sft_objective(packed))
KIND = Kind(
    name="sft",
    family="policy",
    declare=declare,
    rules=Rules(
        sources={"data": "sft", "validation": "sft"},
        choices={"train_on": TRAIN_ON, "result": RESULTS},
        at_least={**supervised.SIZES, **supervised.ROOM},
        from_data=tuple(supervised.ROOM),
        **supervised.RULES,
    ),
    checks=supervised.CHECKS,
    run=run,
    reads=lambda name, section, key: iter([Reads(name, train_on=section.train_on)]),
    costs=fitting_costs(FIT, demonstrations, every_token=True),
    spent=lambda context, check: by_records(context, "sft", 1),
    writes="policy",
    card=supervised.policy_card,
)
