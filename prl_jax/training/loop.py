"""The loop that every trained stage runs through. All it does to the outside goes through callbacks."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

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
    """

    total: int
    log_every: int = 10
    save_every: int = 0
    evaluate_every: int = 0


def due(step: int, every: int, total: int) -> bool:
    """Whether something that happens every `every` steps, and at the last one, happens after `step`."""
    return step == total or (every > 0 and step % every == 0)


def run_loop(
    name: str,
    state: State,
    first: int,
    config: LoopConfig,
    *,
    step: Callable[[State, int], tuple[State, Mapping[str, jax.Array]]],
    on_step: Callable[[int, Mapping[str, float]], None],
    write: Callable[[int, Mapping[str, float]], None],
    save: Callable[[int, State], None],
    evaluate: Callable[[State, int], Mapping[str, float]] | None = None,
    improved: Callable[[int, Mapping[str, float]], bool] | None = None,
    timed: Callable[[int, float, float], None] | None = None,
    stop: Callable[[int], bool] | None = None,
) -> State:
    """Runs steps `first + 1 .. config.total`.

    Args:
      name: for messages.
      state, first: where to start, and how many steps it has behind it.
      step: `(state, n) -> (state, metrics)`, n being the number of the step that it does.
      on_step: called with each step's metrics, for progress.
      write: called with the metrics that are kept.
      save: called with a state to keep. No state whose metrics are not finite ever gets here.
      evaluate: extra metrics of a state at some steps; they join the kept ones.
      improved: told each evaluation after a step; whether its state is to be kept for it.
      timed: called at each logged step with the seconds that it took, and with those of them in which this process
        itself was at work, preparing what it hands to the devices: neither they nor other processes were waited for.
      stop: asked after each step whether the run is to end here.

    Raises:
      UserError: a loss or gradient norm was not finite. The last good checkpoint is left as it is.
      Stopped: `stop` said so before the last step, and the state was given to `save`.
    """
    if first == 0 and evaluate is not None and config.evaluate_every:
        write(0, evaluate(state, 0))
    for n in range(first + 1, config.total + 1):
        start = time.perf_counter()
        with waits() as waited:
            state, metrics = step(state, n)
        own = time.perf_counter() - start - sum(waited)
        values = _finite(name, n, metrics)
        end = time.perf_counter()
        keep = due(n, config.save_every, config.total)
        evaluating = config.evaluate_every > 0 and due(n, config.evaluate_every, config.total)
        evaluation = evaluate(state, n) if evaluate is not None and evaluating else None
        if evaluation is not None:
            values |= evaluation
            keep |= improved is not None and improved(n, values)
        on_step(n, values)
        logged = due(n, config.log_every, config.total)
        if evaluation is not None or logged:
            write(n, values)
        if logged and timed is not None:
            timed(n, end - start, own)
        stopping = stop is not None and stop(n)
        if stopping or keep:
            save(n, state)
        if stopping and n < config.total:
            raise Stopped(f"{name} is saved at step {n} of {config.total}")
    return state


def _finite(name: str, n: int, metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    """The metrics of a step as numbers, once its devices have them."""
    values = {key: float(value) for key, value in jax.device_get(dict(metrics)).items()}
    bad = sorted(key for key in _VITAL if not math.isfinite(values.get(key, 0.0)))
    if bad:
        raise UserError(
            f"{name}: {' and '.join(bad)} not finite at step {n} ({_show(values)}); stopped, the last good "
            "checkpoint is kept; lower the learning rate or look at the data of this step"
        )
    return values


def _show(values: Mapping[str, float]) -> str:
    return ", ".join(f"{key}={values[key]:.4g}" for key in _VITAL if key in values)
