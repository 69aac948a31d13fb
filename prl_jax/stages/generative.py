"""A generative reward model: preference pairs -> a judge that reads both responses and says which is better."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from ml_collections import ConfigDict

from prl_jax.artifacts.cards import ModelCard
from prl_jax.config.declare import filled
from prl_jax.config.rules import RESULTS, Rules
from prl_jax.data.rows import encode_generative_pair
from prl_jax.judges.generative import trained_merge
from prl_jax.losses.preference import FORMS, SPACES
from prl_jax.runs.context import StageContext
from prl_jax.runs.models import LoadedModels
from prl_jax.stages import preferences, supervised
from prl_jax.stages.kind import Kind
from prl_jax.stages.supervised_costs import compared_pairs, fitting_costs
from prl_jax.text.chat import Turn
from prl_jax.text.judging import NAMES, JudgeTemplate, encode_judge_row, verdict_ids
from prl_jax.text.tokenizer import Tokenizer
from prl_jax.training.reward_model import generative_objective
from prl_jax.training.step import Objective


def declare(**values: Any) -> dict[str, Any]:
    """The section of a generative pairwise reward model."""
    defaults = dict(
        kind="generative",
        max_length=64,
        template="compact-v1",
        verdicts=("Y", "N"),
        shared_positions=False,
        form="antisymmetric",
        # How the two orders become one answer wherever the judge is asked: the mean of their probabilities
        # ("probability"), of their logits ("logit"), or what the form fits ("auto": logits for antisymmetric).
        merge="auto",
        w_ce=0.05,
        w_cons=0.0,
        soft_labels=False,
    )
    return filled({**supervised.shared_section(), **defaults}, values, "generative")


def template_of(section: ConfigDict) -> JudgeTemplate:
    """How the judge is asked."""
    return JudgeTemplate(section.template, tuple(section.verdicts), section.shared_positions)


def check_words(section: ConfigDict, tokenizer: Tokenizer) -> None:
    """Verdicts are single tokens, and the template's own tokens leave room in a row."""
    template = template_of(section)
    verdict_ids(tokenizer, template)
    encode_judge_row(tokenizer, template, (Turn("user", ""),), "", "", max_length=section.max_length)


def planned_card(section: ConfigDict) -> ModelCard:
    """Returns the card that the stage's model will have, as far as a config tells."""
    merge = trained_merge(section.form) if section.merge == "auto" else section.merge
    return ModelCard("generative_judge", {}, section.max_length, 1, dataclasses.asdict(template_of(section)), merge)


def objective(section: ConfigDict, verdicts: tuple[int, int], packed: int) -> Objective:
    """Returns the objective that the section asks for; `verdicts` are the tokens of its words."""
    return generative_objective(verdicts, form=section.form, w_ce=section.w_ce, w_cons=section.w_cons, packed=packed)


def run(context: StageContext) -> dict[str, float]:
    """Trains a generative pairwise judge and returns the metrics of what it has come to."""
    section = context.section
    models, template = LoadedModels(context), template_of(section)
    encode = functools.partial(encode_generative_pair, models.tokenizer, template, max_length=section.max_length)
    return preferences.train(context, planned_card(section), models, FIT, encode)


FIT = supervised.Fit(objective, pairs=True, judge=True)
KIND = Kind(
    name="generative",
    family="judge",
    declare=declare,
    rules=Rules(
        sources=preferences.SOURCES,
        choices={"template": NAMES, "form": FORMS, "merge": ("auto", *SPACES), "result": RESULTS},
        at_least={**supervised.SIZES, "max_length": 1, "w_ce": 0, "w_cons": 0},
        from_data=("max_length",),
        **supervised.RULES,
    ),
    checks=supervised.CHECKS,
    run=run,
    reads=supervised.reads_itself,
    words=check_words,
    costs=fitting_costs(FIT, compared_pairs),
    writes="generative_judge",
    card=planned_card,
)
