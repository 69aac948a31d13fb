"""The signs of a stage while it trains: metrics, samples, times of steps, progress, a profile."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from prl_jax.errors import UserError
from prl_jax.evaluation import Watch
from prl_jax.file_names import PROFILE_DIR, SAMPLES_FILE, TIMINGS_FILE
from prl_jax.metrics import JsonlLog, MetricsWriter, read_metrics
from prl_jax.processes import is_leader
from prl_jax.progress import Progress
from prl_jax.runs.context import StageContext

Step = Callable[[Any, int], tuple[Any, Any]]


class Telemetry(NamedTuple):
    """Where a stage writes, in the first process; `write`, `timed` and `profiled` are for `run_loop`."""

    metrics: MetricsWriter
    write: Callable[[int, Mapping[str, float]], None]
    samples: JsonlLog
    progress: Progress
    timed: Callable[[int, float, float], None]
    profiled: Callable[[Step], Step]


@contextlib.contextmanager
def telemetry(context: StageContext, *, first: int, total: int) -> Iterator[Telemetry]:
    """Opens the files of a stage that continues after step `first` (0: starts anew) and has `total` steps."""
    resume, leads = first or None, is_leader()

    def log(name: str) -> JsonlLog:
        return JsonlLog(context.directory / name, resume_step=resume, silent=not leads)

    with (
        MetricsWriter(context.directory, resume_step=resume, silent=not leads) as metrics,
        log(SAMPLES_FILE) as samples,
        log(TIMINGS_FILE) as timings,
        context.progress(total) as progress,
        _profiler(profile_steps(context.config.profile.steps), context.directory / PROFILE_DIR) as profiled,
    ):

        def timed(n: int, seconds: float, own: float) -> None:
            timings.write([{"step": n, **spread(seconds, own)}])

        write = _writer(context.name, metrics, progress, first) if leads else metrics.write
        yield Telemetry(metrics, write, samples, progress, timed, profiled)


def _writer(
    name: str, metrics: MetricsWriter, progress: Progress, first: int
) -> Callable[[int, Mapping[str, float]], None]:
    """Writes metrics, those that compare a step of a policy with the first one included, and says on standard error
    when one of them has left its range. `warnings` counts those that are outside."""
    watch = Watch(read_metrics(metrics.path) if first else ())

    def write(n: int, values: Mapping[str, float]) -> None:
        values = {**values, **watch.derived(values)}
        for sentence in watch.see({"step": n, **values}):
            progress.clear()
            print(f"{name:<16} warning: {sentence}", file=sys.stderr)
        metrics.write(n, {**values, "warnings": watch.outside} if "length_drift" in values else values)

    return write


def spread(seconds: float, own: float) -> dict[str, float]:
    """The time of one step: `seconds`, and in several processes those of all.

    Processes wait for each other inside a step. Who makes them wait shows in `own`: the seconds in which a process
    waited for no device (`run_loop`). `slowest` is the process with the most of them.
    """
    if jax.process_count() == 1:
        return {"seconds": round(seconds, 6)}
    whole, parts = multihost_utils.process_allgather(np.array([seconds, own], np.float32)).reshape(-1, 2).T.tolist()
    values = {"seconds_min": min(whole), "seconds_mean": sum(whole) / len(whole), "seconds_max": max(whole)}
    values |= {"own_min": min(parts), "own_mean": sum(parts) / len(parts), "own_max": max(parts)}
    return {**{name: round(value, 6) for name, value in values.items()}, "slowest": parts.index(max(parts))}


def profile_steps(text: str) -> range:
    """`"10-12" -> range(10, 13)`, `"10" -> range(10, 11)`, `"" -> range(0)`."""
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"profile.steps={text!r}, expected steps from 1 on, such as '10-12' or '10', or '' for none")
    return range(first, last + 1)


@contextlib.contextmanager
def _profiler(steps: range, directory: Path) -> Iterator[Callable[[Step], Step]]:
    """A wrapper for a step function that traces some steps, in the first process."""
    tracing = False

    def end() -> None:
        nonlocal tracing
        tracing = False
        jax.profiler.stop_trace()
        print(f"prl: profile of steps {steps[0]}-{steps[-1]}: {directory}", file=sys.stderr)

    def profiled(step: Step) -> Step:
        def run(state: Any, n: int) -> tuple[Any, Any]:
            nonlocal tracing
            if not tracing and n in steps:
                jax.profiler.start_trace(str(directory))
                tracing = True
            with jax.profiler.StepTraceAnnotation("step", step_num=n):
                out = step(state, n)
            if tracing and n + 1 not in steps:
                jax.block_until_ready(out)
                end()
            return out

        return run if steps and is_leader() else step

    try:
        yield profiled
    finally:
        if tracing:  # the stage has no more steps
            end()
