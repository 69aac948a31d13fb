"""What the files that a run reads tell of it before it starts. What its config tells is in checks.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from prl_jax.data.gold import parse
from prl_jax.errors import UserError, naming
from prl_jax.processes import shared
from prl_jax.stages.context import StageContext, stage_tokenizer
from prl_jax.stages.layout import check_layout
from prl_jax.stages.rules import GOLD, RULES, value_at
from prl_jax.text.chat import Turn, prompt_text
from prl_jax.text.judging import JudgeTemplate, encode_judge_row, verdict_ids
from prl_jax.text.tokenizer import Tokenizer


def check_inputs(contexts: Sequence[StageContext], tokenizer: Tokenizer | None) -> None:
    """Raises `UserError` for what the stages will not be able to use: their data, their batches on the mesh, their
    verdict words. `tokenizer` is that of the models that are made from scratch, if there are any."""
    checked: set[tuple[Any, ...]] = set()
    for context in contexts:
        section, rules = context.section, RULES[context.section.kind]
        for key, what in rules.sources.items():
            if key not in rules.unused(section):
                with naming(f"{context.name}.{key}"):
                    _check_source(context, key, what, checked)
        check_layout(context.config, context.name, context.mesh)
        if section.kind == "generative":
            with naming(context.name):
                _check_template(section, stage_tokenizer(context, tokenizer))


def _check_source(context: StageContext, key: str, what: str, checked: set[tuple[Any, ...]]) -> None:
    """Reads a source to the end, unless that has been done for another stage; each process reads a part.

    Built-in data are made when the stage runs; nothing is wrong with them.
    """
    section, source = context.section, value_at(context.section, key)
    if source.kind == "gold":
        return
    judge = "evaluation.judge" if key == "evaluation.prompts" else "judge"
    judged = what == "prompt" and section.kind in ("ppo", "evaluation") and value_at(section, judge) == GOLD
    answered = what == "prompt" and section.kind == "anchors" and section.choice == "reference"
    name = (*source.items(), what, judged, answered)
    if name in checked:
        return
    records = context.records(source, what)

    def check(i: int) -> None:
        record = records[i]
        if judged:
            parse(prompt_text(record.prompt))
        if answered and record.reference is None:
            raise UserError(f"prompt {record.id!r} has no reference answer; use choice='best_of_n' or another source")

    def fails(i: int) -> bool:
        try:
            check(i)
        except UserError:
            return True
        return False

    for first in np.flatnonzero(shared(fails, len(records)))[:1]:
        check(int(first))  # the same error in every process
    checked.add(name)


def _check_template(section: ConfigDict, tokenizer: Tokenizer) -> None:
    """Verdicts are single tokens, and the template's own tokens leave room in a row."""
    template = JudgeTemplate(section.template, tuple(section.verdicts), section.shared_positions)
    verdict_ids(tokenizer, template)
    encode_judge_row(tokenizer, template, (Turn("user", ""),), "", "", max_length=section.max_length)
