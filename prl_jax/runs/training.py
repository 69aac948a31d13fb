"""The work of a training stage beside its steps: checkpoints, metrics, samples, progress, stopping, continuing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

from prl_jax.artifacts.cards import ModelCard
from prl_jax.artifacts.models import save_card
from prl_jax.checkpoint import Checkpoints
from prl_jax.file_names import CHECKPOINTS_DIR
from prl_jax.metrics import JsonlLog
from prl_jax.processes import is_leader
from prl_jax.runs.best import BestSoFar
from prl_jax.runs.context import StageContext
from prl_jax.runs.telemetry import telemetry
from prl_jax.text.tokenizer import Tokenizer
from prl_jax.training.loop import LoopConfig, run_loop
from prl_jax.training.state import released

State = TypeVar("State")


@runtime_checkable
class Position(Protocol):
    """Something that a stage goes on from where it was, such as the iterator of its data."""

    def get_state(self) -> Any:
        """Returns the place where it is, as JSON holds it."""

    def set_state(self, state: Any) -> None:
        """Continues from such a place."""


class Count:
    """A number that goes on where it was: a `Position`. It may be an array, which is waited for where it is saved."""

    def __init__(self) -> None:
        self.value: np.int32 | jax.Array = np.int32(0)

    def get_state(self) -> int:
        """The number."""
        return int(self.value)

    def set_state(self, state: int) -> None:
        """Takes the number of a checkpoint."""
        self.value = np.int32(state)


@dataclasses.dataclass(frozen=True)
class Training(Generic[State]):
    """A stage's training, as data.

    Attributes:
      card, tokenizer: of the model directory.
      state: before the first step.
      parts: state -> the model, and a pytree of what else its checkpoints hold.
      whole: `(state, model, what else) -> state`, from a checkpoint; of the state it takes what is not saved.
      loop: durations.
      positions: what else a checkpoint remembers, by the names that it has there.
      best: which evaluation is the best one.
      step: `(state, n, samples) -> (state, metrics)`; it may write rows of samples.
      evaluate: `(state, n, samples) -> metrics`, likewise.
      progress_metrics: metrics that the progress line has.
      repeated: numbers that every line of metrics has.
    """

    card: ModelCard
    tokenizer: Tokenizer
    state: State
    parts: Callable[[State], tuple[Any, Any]]
    whole: Callable[[State, Any, Any], State]
    loop: LoopConfig
    positions: Mapping[str, Position]
    best: BestSoFar
    step: Callable[[State, int, JsonlLog], tuple[State, Mapping[str, Any]]]
    evaluate: Callable[[State, int, JsonlLog], Mapping[str, float]]
    progress_metrics: Sequence[str]
    repeated: Callable[[], Mapping[str, float]] = dict


def train_stage(context: StageContext, training: Training[State]) -> dict[str, float]:
    """Trains, from the last checkpoint if there is one; returns the metrics of what the stage has come to."""
    best, loop = training.best, training.loop
    save_card(context.directory, training.card, training.tokenizer)
    with Checkpoints(context.directory / CHECKPOINTS_DIR) as checkpoints:
        state, first = start(training, checkpoints)
        with telemetry(context, first=first, total=loop.total) as log, context.stop.after_steps():

            def step(state: State, n: int) -> tuple[State, Mapping[str, Any]]:
                after = training.step(state, n, log.samples)
                context.stop.done()
                return after

            def save(n: int, state: State) -> None:
                log.metrics.flush()
                model, train = training.parts(state)
                data = {name: position.get_state() for name, position in training.positions.items()}
                checkpoints.save(n, model=model, train=train, data={**data, "best": best.state()}, best=best.step)

            run_loop(
                context.name,
                state,
                first,
                loop,
                step=log.profiled(step),
                on_step=lambda n, values: log.progress.update(
                    n, {key: values[key] for key in training.progress_metrics if key in values}
                ),
                write=lambda n, values: log.write(n, {**values, **training.repeated()}),
                save=save,
                evaluate=lambda state, n: training.evaluate(state, n, log.samples),
                improved=best.improved,
                timed=log.timed,
                stop=lambda n: context.stop(),
            )
        checkpoints.finish(best.step)
    return best.result(log.metrics.path) if is_leader() else {}


def start(training: Training[State], checkpoints: Checkpoints) -> tuple[State, int]:
    """The state to start from, and the steps behind it. A stage that continues frees its first state before it reads
    another."""
    state = training.state
    if checkpoints.latest() is None:
        return state, 0
    state = released(state)
    model, train = training.parts(state)
    saved = checkpoints.restore(model=model, train=train)
    for name, position in training.positions.items():
        position.set_state(saved.data[name])
    training.best.restore(saved.data["best"], checkpoints)
    return training.whole(state, saved.model, saved.train), saved.step
