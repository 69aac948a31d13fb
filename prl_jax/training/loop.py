"""The loop that every trained stage runs through. All it does to the outside goes through callbacks."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax

from prl_jax.errors import Stopped, UserError
from prl_jax.processes import waits

State = TypeVar("State")

_VITAL = ("loss", "grad_norm", "critic_grad_norm")


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Durations in steps.

    Attributes:
      total: the last step.
      log_every: metrics are written at its multiples, and at the last step.
      save_every: likewise for checkpoints; 0 saves the last step only, and improvements.
      evaluate_every: likewise for evaluations, and once before the first step; 0 never evaluates.
      at_most: metric -> how large it may become; the run ends where it is larger.
    """

    total: int
    log_every: int = 10
    save_every: int = 0
    evaluate_every: int = 0
    at_most: Mapping[str, float] = dataclasses.field(default_factory=dict)


def due(step: int, every: int, total: int) -> bool:
    """Whether something that happens every `every` steps, and at the last one, happens after `step`."""
    return step == total or (every > 0 and step % every == 0)


def run_loop(
    name: str,
    state: State,
    first: int,
    config: LoopConfig,
    *,
    step: Callable[[State, int], tuple[State, Mapping[str, Any]]],
    on_step: Callable[[int, Mapping[str, float]], None],
    write: Callable[[int, Mapping[str, float]], None],
    save: Callable[[int, State], None],
    evaluate: Callable[[State, int], Mapping[str, float]] | None = None,
    improved: Callable[[int, Mapping[str, float]], bool] | None = None,
    timed: Callable[[int, float, float], None] | None = None,
    stop: Callable[[int], bool] | None = None,
) -> State:
    """Runs steps `first + 1 .. config.total`, and lets host and devices work at the same time.

    The metrics of a step are read once the next one has been handed to the devices, so that these do not wait for what
    the host does with numbers. Where the state of a step is to be evaluated, saved or returned, its metrics are read
    first, and no further step is begun before that is done. A step that broke is therefore noticed one step late at
    most, and always before its state, or one that was made from it, is evaluated or saved.

    Args:
      name: for messages.
      state, first: where to start, and how many steps it has behind it.
      step: `(state, n) -> (state, metrics)`, n being the number of the step that it does; metrics are 0-d arrays, or
        numbers. The next step may take the state's buffers (donation): no metric is an array of the state.
      on_step: called with each step's metrics, for progress.
      write: called with the metrics that are kept.
      save: called with a state to keep. No state gets here whose metrics, or those of a step before it, are not finite.
      evaluate: extra metrics of a state at some steps; they join the kept ones.
      improved: told each evaluation after a step; whether its state is to be kept for it.
      timed: called at each logged step with the seconds that it took, from the end of the step before (or, after a
        pause, from its own start) until its metrics were there; and with the seconds that this process itself was at
        work, preparing what it hands to the devices: neither they nor other processes were waited for.
      stop: asked after each step, which may not have ended yet, whether the run is to end here.

    Raises:
      UserError: a loss or gradient norm was not finite, or a metric is larger than it may be. The last good checkpoint
        is left as it is.
      Stopped: `stop` said so before the last step, and the state was given to `save`.
    """
    if first == 0 and evaluate is not None and config.evaluate_every:
        write(0, evaluate(state, 0))
    reader = _Reader(name, config, on_step=on_step, write=write, timed=timed)
    for n in range(first + 1, config.total + 1):
        start = time.perf_counter()
        reader.look()
        try:
            with waits() as waited:
                state, metrics = step(state, n)
        except Exception:
            reader.finish()  # a step that broke can be why this one fails, and is to be named
            raise
        own = time.perf_counter() - start - sum(waited)
        reader.finish()
        reader.take(_Dispatched(n, metrics, start, own))
        keep = due(n, config.save_every, config.total)
        if evaluate is not None and config.evaluate_every > 0 and due(n, config.evaluate_every, config.total):
            values = reader.read()
            evaluated = evaluate(state, n)
            keep |= improved is not None and improved(n, {**values, **evaluated})
            reader.finish(evaluated)
        stopping = stop is not None and stop(n)
        if stopping or keep:
            reader.finish()
            save(n, state)
        if stopping and n < config.total:
            raise Stopped(f"{name} is saved at step {n} of {config.total}")
    return state


class _Dispatched(NamedTuple):
    """A step that was handed to the devices: its metrics, when that began, and the seconds that it took the process."""

    n: int
    metrics: Mapping[str, Any]
    start: float
    own: float


class _Reader:
    """Holds the newest step until its metrics are read, checked and passed on."""

    def __init__(self, name: str, config: LoopConfig, *, on_step: Any, write: Any, timed: Any):
        self._name, self._config = name, config
        self._on_step, self._write, self._timed = on_step, write, timed
        self._held: _Dispatched | None = None
        self._values: dict[str, float] | None = None
        self._seen: float | None = None  # when the step that is held was seen to have ended
        self._ended = -math.inf  # when the newest step that was read had
        self._seconds = 0.0

    def take(self, dispatched: _Dispatched) -> None:
        """Holds a step; the one before is finished."""
        self._held, self._values, self._seen = dispatched, None, None

    def look(self) -> None:
        """Notes the time if the step that is held has ended already, so that the next one is not counted to it."""
        arrays: list[Any] = (
            [x for x in self._held.metrics.values() if isinstance(x, jax.Array)] if self._held else []
        )  # `is_ready` stands in no stub of jax
        if arrays and all(x.is_ready() for x in arrays):
            self._seen = time.perf_counter()

    def read(self) -> dict[str, float]:
        """The metrics of the step that is held, once its devices have them. Raises `UserError` where it broke."""
        assert self._held is not None
        if self._values is None:
            self._values = _sound(self._name, self._held.n, self._held.metrics, self._config.at_most)
            end = time.perf_counter() if self._seen is None else self._seen
            self._seconds, self._ended = end - max(self._held.start, self._ended), end
        return self._values

    def finish(self, evaluated: Mapping[str, float] | None = None) -> None:
        """Passes on the metrics of the step that is held, if there is one, and what an evaluation adds to them."""
        if self._held is None:
            return
        n, own = self._held.n, self._held.own
        values = {**self.read(), **(evaluated or {})}
        self._held = None
        self._on_step(n, values)
        logged = due(n, self._config.log_every, self._config.total)
        if logged or evaluated is not None:
            self._write(n, values)
        if logged and self._timed is not None:
            self._timed(n, self._seconds, own)


def _sound(name: str, n: int, metrics: Mapping[str, Any], at_most: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a step as numbers, once its devices have them."""
    values = {key: float(value) for key, value in jax.device_get(dict(metrics)).items()}
    bad = sorted(key for key in _VITAL if not math.isfinite(values.get(key, 0.0)))
    found = f"{' and '.join(bad)} not finite" if bad else ""
    found = found or ", ".join(f"{k}={values[k]:g} above {x:g}" for k, x in at_most.items() if values.get(k, 0.0) > x)
    if found:
        raise UserError(
            f"{name}: {found} at step {n} ({_show(values)}); stopped, the last good checkpoint is kept; lower the "
            "learning rate or look at the data of this step"
        )
    return values


def _show(values: Mapping[str, float]) -> str:
    return ", ".join(f"{key}={values[key]:.4g}" for key in _VITAL if key in values)
