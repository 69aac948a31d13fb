"""A Bradley-Terry reward model: preference pairs -> a scalar judge."""

from __future__ import annotations

import functools
from typing import Any

from ml_collections import ConfigDict

from prl_jax.artifacts.cards import ModelCard
from prl_jax.config.declare import filled
from prl_jax.config.rules import RESULTS, Rules
from prl_jax.data.rows import encode_scalar_pair
from prl_jax.runs.context import StageContext
from prl_jax.runs.models import LoadedModels
from prl_jax.stages import preferences, supervised
from prl_jax.stages.kind import Kind
from prl_jax.stages.supervised_costs import fitting_costs, scored_pairs
from prl_jax.training.reward_model import bradley_terry_objective
from prl_jax.training.step import Objective


def declare(**values: Any) -> dict[str, Any]:
    """The section of a scalar reward model."""
    defaults = dict(
        kind="bradley_terry", max_prompt=32, max_response=32, label_smoothing=0.0, center=0.0, soft_labels=False
    )
    return filled({**supervised.shared_section(), **defaults}, values, "bradley_terry")


def planned_card(section: ConfigDict) -> ModelCard:
    """Returns the card that the stage's model will have, as far as a config tells."""
    return ModelCard("scalar_judge", {}, section.max_prompt, section.max_response)


def objective(section: ConfigDict, verdicts: tuple[int, int], packed: int) -> Objective:
    """Returns the objective that the section asks for; scores have no verdicts."""
    return bradley_terry_objective(label_smoothing=section.label_smoothing, center=section.center, packed=packed)


def run(context: StageContext) -> dict[str, float]:
    """Trains a scalar judge and returns the metrics of what it has come to."""
    section = context.section
    models = LoadedModels(context)
    encode = functools.partial(
        encode_scalar_pair, models.tokenizer, max_prompt=section.max_prompt, max_response=section.max_response
    )
    return preferences.train(context, planned_card(section), models, FIT, encode)


FIT = supervised.Fit(objective, scalar=True, pairs=True, judge=True)
KIND = Kind(
    name="bradley_terry",
    family="judge",
    declare=declare,
    rules=Rules(
        sources=preferences.SOURCES,
        choices={"result": RESULTS},
        at_least={**supervised.SIZES, **supervised.ROOM, "label_smoothing": 0, "center": 0},
        from_data=tuple(supervised.ROOM),
        **supervised.RULES,
    ),
    checks=supervised.CHECKS,
    run=run,
    reads=supervised.reads_itself,
    costs=fitting_costs(FIT, scored_pairs),
    writes="scalar_judge",
    card=planned_card,
)
