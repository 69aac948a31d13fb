"""The models and functions of direct preference learning, estimated before they run."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from prl_jax.artifacts.cards import trained_length
from prl_jax.costs.functions import Step
from prl_jax.costs.models import AbstractModels, Held
from prl_jax.costs.work import Call, Estimate, flops
from prl_jax.judges.likelihood import frozen_log_probs
from prl_jax.processes import whole_batch
from prl_jax.stages.direct_section import loss_in
from prl_jax.stages.kind import Costs
from prl_jax.stages.supervised import Fit
from prl_jax.stages.supervised_costs import demonstrations, fitting_costs
from prl_jax.types import DirectPairs


def direct_costs(fit: Fit) -> Costs:
    """Returns the costs of asking the references, one after the other, and then of fitting the policy."""
    fitting = fitting_costs(fit, abstract_pairs, every_token=True)
    return Costs(
        functools.partial(_functions, fitting),
        functools.partial(_held, fitting),
        functools.partial(_calls, fitting),
        fitting.smaller,
    )


def responses(models: AbstractModels, name: str) -> int:
    """Responses of a pair that the stage reads."""
    return 3 if loss_in(models.config[name]).statistic == "mismatched" else 2


def abstract_pairs(models: AbstractModels, name: str, size: int, length: int) -> DirectPairs:
    """A batch of the stage."""
    rows = functools.partial(demonstrations, models, name, size, length)
    number = functools.partial(models.rows, dtype=jnp.float32)
    pairs = DirectPairs(rows(), rows(), number(size, 2), number(size), number(size, 2), number(size), number(size))
    if responses(models, name) == 2:
        return pairs
    return pairs._replace(mismatched=rows(), reference_mismatched=number(size))


def _asked(models: AbstractModels, name: str) -> Iterator[tuple[str, Any]]:
    """The references that are asked, as the stage holds them."""
    section = models.config[name]
    for reference in () if section.precomputed else section.references:
        yield reference, models.policy(reference).model


def _functions(fitting: Costs, models: AbstractModels, name: str) -> Iterator[Step]:
    section, length = models.config[name], trained_length(models.card(name))
    size = whole_batch(responses(models, name) * section.batch_size, models.mesh)
    for number, (_, model) in enumerate(_asked(models, name), 1):
        arguments = (model, demonstrations(models, name, size, length))
        called = f"reference_{number}" if len(section.references) > 1 else "reference"
        yield Step(name, called, frozen_log_probs.trace(*arguments), arguments, {"reference": model})
    yield from fitting.functions(models, name)


def _held(fitting: Costs, models: AbstractModels, name: str) -> Iterator[Held]:
    for _, model in _asked(models, name):
        yield {"reference": model}
    yield from fitting.held(models, name)


def _calls(fitting: Costs, estimate: Estimate, name: str) -> Iterator[Call]:
    section, length = estimate.config[name], trained_length(estimate.models.card(name))
    size = responses(estimate.models, name) * section.batch_size
    records = sum(estimate.examples(name, source) for source in ("data", "validation"))
    for _, model in _asked(estimate.models, name):
        decoder = model.config
        work, moved = size * flops(decoder, length, length), estimate.moved(decoder, size, length)
        temporary = estimate.forward(decoder, estimate.shard(size), length, length)
        yield Call("reference", temporary, work, -(-records // section.batch_size), moved=moved)
    yield from fitting.calls(estimate, name)
