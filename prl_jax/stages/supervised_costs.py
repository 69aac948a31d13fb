"""The models and functions of SFT and reward models, estimated before they run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import trained_length
from prl_jax.config.durations import to_steps
from prl_jax.costs.functions import Step
from prl_jax.costs.models import EXAMPLES, AbstractModels, Held
from prl_jax.costs.work import Call, Estimate, flops, passes
from prl_jax.sharding import batch_parts
from prl_jax.stages.kind import Costs
from prl_jax.stages.supervised import Fit, Fitted, construct, updates
from prl_jax.training.step import make_train_step, make_validation
from prl_jax.types import ComparedPairs, ScoredPairs, SFTBatch, TokenRows

Batch = Callable[[AbstractModels, str, int, int], Any]
"""`(models, stage, rows, tokens of a row) -> an abstract batch`."""


def fitting_costs(fit: Fit, batch: Batch, *, every_token: bool = False) -> Costs:
    """Returns the costs of fitting a model.

    Args:
      fit: what is fitted.
      batch: what a step is given.
      every_token: whether the loss reads logits at every token of a row, and not at one of them.
    """
    return Costs(
        functools.partial(_functions, fit, batch),
        functools.partial(_held, fit),
        functools.partial(_calls, fit, every_token),
        _smaller,
    )


def demonstrations(models: AbstractModels, name: str, size: int, length: int) -> SFTBatch:
    """A batch of SFT."""
    rows = models.rows
    return SFTBatch(models.token_rows(size, length), rows(size, length), rows(size, length, dtype=bool))


def scored_pairs(models: AbstractModels, name: str, size: int, length: int) -> ScoredPairs:
    """A batch of a scalar judge."""
    return ScoredPairs(*_pairs(models, size, length))


def compared_pairs(models: AbstractModels, name: str, size: int, length: int) -> ComparedPairs:
    """A batch of a generative judge."""
    return ComparedPairs(*_pairs(models, size, length))


def _pairs(models: AbstractModels, size: int, length: int) -> tuple[TokenRows, TokenRows, Any, Any]:
    weight = models.rows(size, dtype=jnp.float32)
    return models.token_rows(size, length), models.token_rows(size, length), weight, weight


def _functions(fit: Fit, batch: Batch, models: AbstractModels, name: str) -> Iterator[Step]:
    section = models.config[name]
    built = construct(models, name, EXAMPLES, fit)
    rows = batch(models, name, section.batch_size, trained_length(models.card(name)))
    objective = fit.objective(section, models.tokens(name).verdicts, 0)
    dropout = jax.random.key(0) if section.lora.dropout else None
    step = make_train_step(objective, built.optimizer, section.accumulate, dropout=dropout)
    yield Step(name, "train_step", step.trace(built.state, rows), (built.state, rows), _holding(built))
    arguments = (built.state.model, rows)
    yield Step(name, "validation", make_validation(objective).trace(*arguments), arguments, _holding(built))


def _held(fit: Fit, models: AbstractModels, name: str) -> Iterator[Held]:
    yield _holding(construct(models, name, EXAMPLES, fit))


def _holding(built: Fitted) -> Held:
    state = built.state
    return {"parameters": state.model, "optimizer": (state.opt_state, state.step)}


def _calls(fit: Fit, every_token: bool, estimate: Estimate, name: str) -> Iterator[Call]:
    section, length = estimate.config[name], trained_length(estimate.models.card(name))
    reads, logits = 2 if fit.pairs else 1, length if every_token else 1
    decoder, size = estimate.models.trained_config(name), section.batch_size
    steps = updates(section, name, estimate.examples(name, "data"))
    every = to_steps(section.evaluate_every, key=f"{name}.evaluate_every", total=steps)
    micro = reads * estimate.shard(size, section.accumulate)
    trained = estimate.trained(decoder) * (2 if section.accumulate > 1 else 1)
    row, moved = flops(decoder, length, logits), estimate.moved(decoder, size * reads, length)
    yield Call(
        "train_step",
        trained + estimate.training(decoder, micro, length, logits),
        size * reads * row * passes(decoder),
        steps,
        moved=moved * passes(decoder),
    )
    tested = math.ceil(estimate.examples(name, "validation") / size) * (1 + steps // every if every else 1)
    temporary = estimate.forward(decoder, reads * estimate.shard(size), length, logits)
    yield Call("validation", temporary, size * reads * row, tested, moved=moved)


def _smaller(section: ConfigDict, stage: str, function: str, mesh: Mapping[str, int]) -> list[str]:
    # A microbatch of one row a device is as small as it gets.
    more = function == "train_step" and section.batch_size > batch_parts(mesh) * section.accumulate
    return [*([f"{stage}.accumulate up"] if more else []), f"{stage}.batch_size down"]
