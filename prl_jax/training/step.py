"""The one generic train step: loss terms in, updated parameters and averaged metrics out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, Shaped

from prl_jax.models import LOGICAL_AXES, combine, split, with_dropout
from prl_jax.sharding import constrain, constrain_tree, parts
from prl_jax.training.state import JitUpdate, TrainState
from prl_jax.types import LossOutput

_TINY = 1e-30

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Several loss terms over one batch.

    Attributes:
      terms: `(model, batch) -> {name: LossOutput}`; with a `statistic`, its value is a third argument.
      denominators: `batch -> {name: float32}`, the denominators that `terms` will give, from the masks alone, so that
        they are known for the whole batch before the first backward pass.
      weights: factor of each term in the loss.
      reads: how many rows the model reads for a row of the batch; all first ones, then all second ones.
      unit: neighbouring rows of the batch that `terms` has to see together, in whatever microbatch.
      statistic: `(model, batch) -> (sum, count)`, whose ratio over the whole batch the terms need to know beforehand,
        of the model as it is before the update and without gradient; None where they need nothing.
    """

    terms: Callable[..., dict[str, LossOutput]]
    denominators: Callable[[Any], dict[str, jax.Array]]
    weights: Mapping[str, float | jax.Array]
    reads: int = 1
    unit: int = 1
    statistic: Callable[[Any, Any], tuple[jax.Array, jax.Array]] | None = None


def gradients(
    objective: Objective, model: Any, batch: Any, accumulate: int = 1, *, dropout: PRNGKeyArray | None = None
) -> tuple[Any, Metrics]:
    """Gradient of `sum_k w_k sum_k / D_k` with the denominators `D_k` of the whole batch, and the batch's metrics.

    With `accumulate` > 1 the batch is cut into that many microbatches, one after the other; sums add and nothing is
    averaged twice, so the result is the same for every value, whether it divides the batch or not. The gradient is that
    of what is trained of the model (`models.split`). With a key, adapters drop inputs as their config says, of each row
    of the batch others.
    """
    totals, known = objective.denominators(batch), _known(objective, model, batch, accumulate)
    model, frozen = split(model)

    def loss(model, part, index):
        whole = combine(model, frozen)
        if dropout is not None:
            whole = with_dropout(whole, _row_keys(dropout, index, objective.reads))
        terms = objective.terms(whole, part, *known)
        scaled = [objective.weights[k] * terms[k].sum / jnp.maximum(totals[k], _TINY) for k in objective.weights]
        sums = {k: (terms[k].sum, terms[k].denominator) for k in objective.weights}
        for term in terms.values():
            sums |= term.aux
        return sum(scaled), sums

    def step(model, part, index):
        value, grads = jax.value_and_grad(loss, has_aux=True)(model, part, index)
        return value, constrain_tree(grads, LOGICAL_AXES)

    index = jnp.arange(len(jax.tree.leaves(batch)[0]))
    if accumulate == 1:
        (value, sums), grads = step(model, batch, index)
    else:
        cut = jax.tree.map(lambda x: microbatches(x, accumulate, objective.unit), (batch, index))
        first = jax.eval_shape(step, model, *jax.tree.map(lambda x: x[0], cut))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)

        def add(total, part_and_index):
            return jax.tree.map(jnp.add, total, step(model, *part_and_index)), None

        ((value, sums), grads), _ = jax.lax.scan(add, zeros, cut)
    metrics = {name: total / jnp.maximum(count, _TINY) for name, (total, count) in sums.items()}
    # Every term is a metric under its name, their weighted sum is "loss".
    return grads, {**metrics, "loss": value}


def _known(objective: Objective, model: Any, batch: Any, accumulate: int = 1) -> tuple[Float[Array, ""], ...]:
    """Returns what the terms need to know of the whole batch: their further arguments."""
    if objective.statistic is None:
        return ()
    cut = jax.tree.map(lambda x: microbatches(x, accumulate, objective.unit), batch)
    total, count = jax.tree.map(jnp.sum, jax.lax.map(functools.partial(objective.statistic, model), cut))
    return (jax.lax.stop_gradient(total / jnp.maximum(count, _TINY)),)


def _row_keys(key: PRNGKeyArray, index: Int[Array, "M"], reads: int) -> Key[Array, "R"]:
    """A key for each row that the model reads, from the numbers of the batch's rows."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jnp.concatenate([fold(jax.random.fold_in(key, i), index) for i in range(reads)])


def microbatches(x: Shaped[Array, "B ..."], count: int, unit: int = 1) -> Shaped[Array, "N M ..."]:
    """Cuts rows into `count` parts of one size without moving them.

    Rows stay together in units of neighbours; part i has the units i, i + count, ... of every device. Where they are
    too few, zeros take their place, which all masks and weights leave out.
    """
    shards, units = parts("batch"), x.shape[0] // unit
    shards = shards if units % shards == 0 else 1
    held, shape = units // shards, (unit, *x.shape[1:])
    size = -(-held // count)
    x = x.reshape(shards, held, *shape)
    x = jnp.pad(x, [(0, 0), (0, size * count - held)] + [(0, 0)] * len(shape))
    x = jnp.moveaxis(x.reshape(shards, size, count, *shape), 2, 0)
    return constrain(x.reshape(count, shards * size * unit, *shape[1:]), None, "batch", *(None,) * (len(shape) - 1))


def apply_gradients(
    state: TrainState, grads: Any, optimizer: optax.GradientTransformation
) -> tuple[TrainState, jax.Array]:
    """One optimizer update; returns the gradient's global norm before clipping too."""
    trained, frozen = split(state.model)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    return TrainState(combine(trained, frozen), opt_state, state.step + 1), optax.tree.norm(grads)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    *,
    dropout: PRNGKeyArray | None = None,
) -> JitUpdate:
    """A jitted `(state, batch) -> (state, metrics)` that donates the state.

    With a key, the adapters' dropout is on; each step draws anew.
    """

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = None if dropout is None else jax.random.fold_in(dropout, state.step)
        grads, metrics = gradients(objective, state.model, batch, accumulate, dropout=key)
        state, norm = apply_gradients(state, grads, optimizer)
        return state, {**metrics, "grad_norm": norm}

    return JitUpdate(train_step)


def make_validation(objective: Objective) -> Any:
    """A jitted `(model, batch) -> {name: (sum, denominator)}` of every term and metric of an objective."""

    @jax.jit
    def validation(model: Any, batch: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        sums: dict[str, tuple[jax.Array, jax.Array]] = {}
        known = _known(objective, model, batch)
        for name, term in objective.terms(model, batch, *known).items():
            sums |= {name: (term.sum, term.denominator), **term.aux}
        return sums

    return validation
