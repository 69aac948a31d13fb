"""How do time and memory grow with what a config asks for: rows, length, parameters, group size, opponents?

    .venv/bin/python benchmarks/cost_model.py --out benchmarks/results

Each sweep changes one number of a model of size S (`workload_shapes.py`) and times the function that `prl run` calls;
memory is what the compiled function needs beside its arguments. The arithmetic is the number of operations, counted
off the function (`prl_jax/plan/flops.py`): where time grows as it does, nothing else is in the way. Writes
`cost_model.json`, `cost_model.md` and `cost_model.svg` to --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from common import write_result
from matplotlib.figure import Figure
from overoptimisation_figure import STYLE
from workload_shapes import OPTIMIZER, SIZES, Size
from workload_steps import World

from prl_jax.judges.generative import judge_rows
from prl_jax.models import LOGICAL_AXES
from prl_jax.optim import make_optimizer
from prl_jax.plan.flops import count_flops
from prl_jax.processes import put_batch
from prl_jax.sampling import SamplingConfig, generate, row_keys
from prl_jax.training.sft import SFT
from prl_jax.training.state import create_state
from prl_jax.training.step import gradients
from prl_jax.types import SFTBatch

PROMPTS, RESPONSE = 8, 32


class Work(NamedTuple):
    """A jitted function, and what it is called with."""

    function: Any
    arguments: tuple[Any, ...]


def training(world: World, rows: int, length: int) -> Work:
    """The gradient of SFT."""
    tokens = world.rows(rows, length)
    batch = SFTBatch(tokens, np.asarray(tokens.tokens), np.ones((rows, length), bool))
    state = create_state(world.decoder(0), make_optimizer(**OPTIMIZER), world.mesh, LOGICAL_AXES)
    return Work(jax.jit(lambda model, batch: gradients(SFT, model, batch)), (state.model, put_batch(batch, world.mesh)))


def sampling(world: World, group: int) -> Work:
    """A group of responses to each prompt."""
    length = world.size.prompt
    prompts = put_batch((world.inputs.tokens(PROMPTS, length), np.ones((PROMPTS, length), bool)), world.mesh)
    keys = row_keys(jax.random.key(0), 0, PROMPTS * group)
    config = SamplingConfig(RESPONSE, (world.size.vocab + 1,), 0)  # no token ends a response
    call = jax.jit(lambda model, prompt, mask, keys: generate(model, prompt, mask, keys, config=config, group=group))
    return Work(call, (world.decoder(0), *prompts, keys))


def judging(world: World, opponents: int) -> Work:
    """Two responses to each prompt against some opponents, in both orders."""
    rows = put_batch(world.rows(2 * 2 * PROMPTS * opponents, world.size.judge_length), world.mesh)
    return Work(jax.jit(lambda model, rows: judge_rows(model, rows, verdicts=(3, 4))), (world.decoder(0), rows))


SMALL = SIZES["S"]._replace(prompt=64, response=RESPONSE)
SWEEPS: dict[str, tuple[tuple[int, ...], Callable[[int], Work]]] = {
    "rows of a batch": ((4, 8, 16, 32, 64), lambda n: training(World(SMALL), n, 128)),
    "tokens of a row": ((64, 128, 256, 512, 1024, 2048), lambda n: training(World(SMALL), 4, n)),
    "width of the model": ((64, 128, 256, 512), lambda n: training(World(wide(n)), 8, 128)),
    "responses to a prompt": ((1, 2, 4, 8, 16), lambda n: sampling(World(SMALL), n)),
    "opponents of a response": ((1, 2, 4, 8), lambda n: judging(World(SMALL), n)),
}


def wide(width: int) -> Size:
    return SMALL._replace(width=width, mlp_width=8 * width // 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--points", type=int, default=0, help="of each sweep, the first ones; 0 for all")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (values, work) in SWEEPS.items():
        for value in values[: args.points or None]:
            rows.append({"sweep": name, "value": value, **measured(work(value), args.rounds)})
            print(json.dumps(rows[-1]), flush=True)
    slopes = list(growth(rows))
    write_result(args.out / "cost_model.json", rows, growth=slopes)
    (args.out / "cost_model.md").write_text(page(slopes))
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "cost_model"}):
        figure_of(rows).savefig(args.out / "cost_model.svg", format="svg", metadata={"Date": None})


def measured(work: Work, rounds: int) -> dict[str, Any]:
    """The median of some calls, after one that compiles."""
    traced = work.function.trace(*work.arguments)
    compiled = traced.lower().compile()
    jax.block_until_ready(compiled(*work.arguments))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*work.arguments))
        seconds.append(time.perf_counter() - start)
    memory = compiled.memory_analysis().temp_size_in_bytes
    return {"seconds": statistics.median(seconds), "flops": count_flops(traced.jaxpr), "temporary_bytes": memory}


def growth(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """How many times as much the last point of a sweep takes as the first one."""
    for name in dict.fromkeys(row["sweep"] for row in rows):
        first, *_, last = [row for row in rows if row["sweep"] == name]
        times = {key: last[key] / first[key] for key in ("value", "flops", "seconds", "temporary_bytes")}
        yield {"sweep": name, "from": first["value"], "to": last["value"], **times}


def page(slopes: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = ["| what grows | from | to | operations | seconds | memory |", "| --- | --- | --- | --- | --- | --- |"]
    for row in slopes:
        factors = " | ".join(f"{row[key]:.1f}x" for key in ("flops", "seconds", "temporary_bytes"))
        lines.append(f"| {row['sweep']} | {row['from']} | {row['to']} | {factors} |")
    return "\n".join(lines) + "\n"


def figure_of(rows: list[dict[str, Any]]) -> Figure:
    """Seconds on top, memory below, a column for each sweep; the line is the arithmetic, through the largest point."""
    names = list(dict.fromkeys(row["sweep"] for row in rows))
    figure = Figure(figsize=(3 * len(names), 5), layout="constrained")
    panels = figure.subplots(2, len(names), sharex="col")
    for column, name in enumerate(names):
        points = [row for row in rows if row["sweep"] == name]
        values = [row["value"] for row in points]
        seconds, flops, memory = ([row[key] for row in points] for key in ("seconds", "flops", "temporary_bytes"))
        top, bottom = panels[0][column], panels[1][column]
        top.plot(values, [one * seconds[-1] / flops[-1] for one in flops], color="#9ca3af", label="operations")
        top.plot(values, seconds, "o", color="#2563eb", label="measured")
        bottom.plot(values, [one / 2**20 for one in memory], "o-", color="#ea580c")
        top.set(title=name, xscale="log", yscale="log", ylabel="seconds" if not column else "")
        bottom.set(xscale="log", yscale="log", ylabel="temporary memory, MiB" if not column else "")
        bottom.set_xticks(values, [str(value) for value in values])
        bottom.minorticks_off()
    panels[0][0].legend()
    return figure


if __name__ == "__main__":
    main()
