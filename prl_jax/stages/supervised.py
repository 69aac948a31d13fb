"""The part that SFT, reward models and direct losses share: batches in, a trained model out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import ModelCard, trained_length
from prl_jax.config.declare import lora, optimizer, source
from prl_jax.config.durations import to_steps
from prl_jax.config.rules import NONE
from prl_jax.data.pipeline import batch_iterator, batch_numbers
from prl_jax.data.rows import stack_rows
from prl_jax.errors import UserError
from prl_jax.metrics import JsonlLog
from prl_jax.models import DecoderConfig
from prl_jax.processes import batch_rows, local_rows, put_batch
from prl_jax.runs.best import BestSoFar
from prl_jax.runs.context import StageContext
from prl_jax.runs.models import LoadedModels, Models, stage_optimizer
from prl_jax.runs.training import Count, Training, train_stage
from prl_jax.stages.kind import Checking, Reads, check_lora
from prl_jax.stages.packing import packed_rows
from prl_jax.streams import Stream, stream_key
from prl_jax.training.loop import LoopConfig
from prl_jax.training.state import TrainState
from prl_jax.training.step import Objective, make_train_step, make_validation

SIZES = {"batch_size": 1, "accumulate": 1}
ROOM = {"max_prompt": 2, "max_response": 2}
RULES: Mapping[str, Any] = MappingProxyType(
    dict(
        stages={"init_from": ("policy", "judge", NONE)},
        lengths=("duration",),
        durations=("optimizer.warmup", "log_every", "save_every", "evaluate_every"),
        optimizers=("optimizer",),
        models=("init_from",),
        batches={"data": "batch_size"},
        evaluates="evaluate_every",
    )
)


def shared_section() -> dict[str, Any]:
    """The keys that SFT and reward models share."""
    return dict(
        # A stage, or the directory of one or of a Hugging Face model, whose decoder to start from; "": from scratch.
        init_from="",
        lora=lora(),
        data=source(),
        validation=source(split="validation", limit=512),
        duration="2 epochs",
        batch_size=128,
        accumulate=1,
        # Several short records share a row, where that spares a quarter of all rows or more; the numbers stay the same.
        pack=True,
        optimizer=optimizer(),
        log_every="10 steps",
        save_every="25%",
        evaluate_every="25%",
        result="last",  # the parameters of the last step, or of that with the "best" evaluation: the least loss
    )


def check_context(check: Checking, name: str) -> None:
    """Raises `UserError` for a stage whose rows are longer than its model's context. A length of 0 is found later."""
    section = check.config[name]
    keys = [key for key in ("max_length", "max_prompt", "max_response") if key in section]
    said = " and ".join(f"{name}.{key}={section[key]}" for key in keys)
    check.fits_context(name, sum(section[key] for key in keys), said)


def check_accumulation(check: Checking, name: str) -> None:
    """Raises `UserError` for microbatches of less than a row."""
    section = check.config[name]
    if section.accumulate > section.batch_size:
        raise UserError(f"{name}.accumulate={section.accumulate}, expected at most batch_size={section.batch_size}")


def check_adapters(check: Checking, name: str) -> None:
    """Raises `UserError` for adapters that cannot be made, or that have no model to adapt."""
    if check_lora(check.config[name], name) and not check.config[name].init_from:
        raise UserError(f"{name}.lora: adapters need a model to adapt; name one in {name}.init_from")


def reads_itself(name: str, section: ConfigDict, key: str) -> Iterator[Reads]:
    """Who reads the records of a source: the model that the stage trains."""
    yield Reads(name)


CHECKS = (check_context, check_accumulation, check_adapters)


class Fit(NamedTuple):
    """The differences between the stages that fit a model to records.

    Attributes:
      objective: `(section, tokens of both verdicts, packed) -> what is fitted`; `packed` is how many rows the model
        reads those of a microbatch in, 0 for as they are.
      scalar: whether the model is a decoder with a scalar head.
      pairs: whether a row of a batch is a pair, of which the model reads both responses.
      judge: whether the model becomes a judge.
    """

    objective: Callable[[ConfigDict, tuple[int, int], int], Objective]
    scalar: bool = False
    pairs: bool = False
    judge: bool = False


class Fitted(NamedTuple):
    """A model to fit, before its first update, and its optimizer."""

    state: TrainState
    optimizer: optax.GradientTransformation


def policy_card(section: ConfigDict) -> ModelCard:
    """Returns the card that a stage's policy will have, as far as a config tells."""
    return ModelCard("policy", {}, section.max_prompt, section.max_response)


def updates(section: ConfigDict, name: str, examples: int) -> int:
    """Updates of a stage with so many records."""
    return to_steps(section.duration, key=f"{name}.duration", batch_size=section.batch_size, examples=examples)


def construct(models: Models, name: str, examples: int, fit: Fit) -> Fitted:
    """All that a stage holds on the devices: what is trained, real or abstract."""
    section = models.config[name]
    tx = stage_optimizer(section.optimizer, updates(section, name, examples), key=f"{name}.optimizer")
    decoder = models.trainable(name, judge=fit.judge)
    return Fitted(models.state(models.scalar(decoder) if fit.scalar else decoder, tx), tx)


@dataclasses.dataclass(frozen=True)
class Supervised:
    """A model to fit.

    Attributes:
      card: describes it, but for its decoder.
      models: where it comes from.
      fit: what is fitted.
      verdicts: tokens of a generative judge's two verdicts; any of another model.
      records, validation: data.
      encode: record -> one row and whether it was truncated.
      sample: model -> a few rows of `samples.jsonl`, without their step.
      counters: numbers that every line of metrics repeats, such as pairs that were skipped.
    """

    card: ModelCard
    models: LoadedModels
    fit: Fit
    verdicts: tuple[int, int]
    records: Sequence[Any]
    validation: Sequence[Any]
    encode: Callable[[Any], tuple[Any, bool]]
    sample: Callable[[Any], list[dict[str, Any]]]
    counters: Mapping[str, int]


def train(context: StageContext, task: Supervised) -> dict[str, float]:
    """Fits the model, from the last checkpoint if there is one; returns the metrics of what it has come to."""
    section, name, size = context.section, context.name, context.section.batch_size
    total = updates(section, name, len(task.records))
    steps = lambda key: to_steps(section[key], key=f"{name}.{key}", total=total)  # noqa: E731
    first, optimizer = construct(task.models, name, len(task.records), task.fit)
    decoder = first.model.decoder if task.fit.scalar else first.model
    iterator = batch_iterator(
        task.records,
        lambda r: _with_flag(task.encode(r)),
        batch_size=size,
        seed=context.data_seed,
        rows=local_rows(context.mesh, size).tolist(),
    )
    dropout = stream_key(context.key, Stream.DROPOUT) if section.lora.dropout else None
    batches = lambda: batch_numbers(len(task.records), batch_size=size, seed=context.data_seed, batches=total)  # noqa: E731
    objective, share = _packing(context, task, decoder.config, task.records, batches, section.accumulate)
    train_step = make_train_step(objective, optimizer, section.accumulate, dropout=dropout)
    validate, truncated = _validation(context, task, decoder.config), Count()
    packing = {"packed_rows": share} if share < 1 else {}

    def step(state: TrainState, n: int, samples: JsonlLog) -> tuple[TrainState, Mapping[str, jax.Array]]:
        batch, cut = put_batch(next(iterator), context.mesh)
        truncated.value = _counted(truncated.value, cut)
        state, metrics = train_step(state, batch)
        return state, {**metrics, "truncated_rows": truncated.value}

    def evaluate(state: TrainState, n: int, samples: JsonlLog) -> dict[str, float]:
        samples.write([{"step": n, **row} for row in task.sample(state.model)])
        return validate(state) | ({} if n else {"truncated_rows": 0})

    training = Training(
        card=dataclasses.replace(task.card, decoder=dataclasses.asdict(decoder.config)),
        tokenizer=task.models.tokenizer,
        state=first,
        parts=lambda state: (state.model, (state.opt_state, state.step)),
        whole=lambda state, model, train: TrainState(model, *train),
        loop=LoopConfig(total, steps("log_every"), steps("save_every"), steps("evaluate_every")),
        positions={"iterator": iterator, "truncated": truncated},
        best=BestSoFar(section.result, "validation_loss", larger=False),
        step=step,
        evaluate=evaluate,
        progress_metrics=("loss", "accuracy", "validation_loss", "validation_accuracy"),
        repeated=lambda: {**task.counters, **packing, **context.counters},
    )
    return train_stage(context, training)


def _packing(
    context: StageContext,
    task: Supervised,
    decoder: DecoderConfig,
    records: Sequence[Any],
    batches: Callable[[], Int[np.ndarray, "K B"]],
    accumulate: int = 1,
) -> tuple[Objective, float]:
    """The objective over batches of records, whose rows it may pack, and the share of rows that is left then."""
    objective = lambda packed: task.fit.objective(context.section, task.verdicts, packed)  # noqa: E731
    sizes = dict(length=trained_length(task.card), reads=objective(0).reads, accumulate=accumulate)
    packed, share = packed_rows(context, decoder, records, task.encode, batches, **sizes)
    return objective(packed), share


@jax.jit
def _counted(before: Int[Array, ""], flags: Bool[Array, "B"]) -> Int[Array, ""]:
    """How many rows were cut, those of one more batch included; on the devices, so that nobody waits for them."""
    return before + flags.sum(dtype=jnp.int32)


def _with_flag(encoded: tuple[Any, bool]) -> tuple[Any, np.ndarray]:
    row, truncated = encoded
    return row, np.asarray(truncated)


def _validation(
    context: StageContext, task: Supervised, decoder: DecoderConfig
) -> Callable[[TrainState], dict[str, float]]:
    """Loss and metrics on all validation rows; rows that fill the last batch carry no weight."""
    size, count = context.section.batch_size, len(task.validation)
    indices = list(batch_rows(count, size, context.mesh))
    batches = [stack_rows([task.encode(task.validation[i])[0] for i in index]) for index in indices]
    local = local_rows(context.mesh, size)
    fill = [start + local < count for start in range(0, count, size)]
    batches = [_weighted(batch, keep) for batch, keep in zip(batches, fill, strict=True)]
    numbers = np.minimum(np.arange(len(indices) * size), count - 1).reshape(-1, size)  # as `batch_rows` has them
    objective, _ = _packing(context, task, decoder, task.validation, lambda: numbers)
    sums = make_validation(objective)

    def validate(state: TrainState) -> dict[str, float]:
        parts = [jax.device_get(sums(state.model, put_batch(batch, context.mesh))) for batch in batches]
        totals = {k: np.sum([np.asarray(part[k]) for part in parts], axis=0) for k in parts[0]}
        means = {k: float(total / max(count, 1e-30)) for k, (total, count) in totals.items()}
        loss = sum(weight * means[k] for k, weight in objective.weights.items())
        kept = {k: v for k, v in means.items() if k not in objective.weights}
        return {"validation_loss": float(loss), **{f"validation_{k}": v for k, v in kept.items()}}

    return validate


def _weighted(batch: Any, keep: np.ndarray) -> Any:
    """A batch without the rows that are not kept, by its weight or its mask."""
    if hasattr(batch, "weight"):
        return batch._replace(weight=batch.weight * keep)
    return batch._replace(mask=batch.mask & keep[:, None])
