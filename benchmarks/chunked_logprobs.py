"""What do log-probabilities in chunks save, and what do they cost? Forward and backward against the naive computation.

    .venv/bin/python benchmarks/chunked_logprobs.py --out benchmarks/results/chunked_logprobs.json

For each vocabulary and both functions (log-probabilities with entropy, cross-entropy) prints one JSON line: memory, as
XLA plans it and as a process of its own needs it; times, taken in turn (naive, chunked, naive, ...) in one process; the
largest differences. "Naive" is `log_softmax` of the whole `[B, T, V]` logits. Times depend on what else the machine
does; the ratio is of medians within the run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import write_result

from prl_jax.losses import chunked_cross_entropy, chunked_logprobs


class Shape(NamedTuple):
    """Sizes of one measurement. The naive computation holds several arrays of rows x length x vocab floats."""

    vocab: int
    width: int
    rows: int
    length: int


# The wide one shows what computing the logits twice costs where matmuls are most of the work.
SHAPES = (Shape(4096, 128, 8, 512), Shape(32768, 128, 8, 256), Shape(151936, 128, 8, 128), Shape(32768, 1024, 8, 64))
FUNCTIONS = ("logprobs", "cross_entropy")
VARIANTS = ("naive", "chunked")


def inputs(shape: Shape) -> tuple[jax.Array, ...]:
    """Hidden states, embedding, targets, mask and the weights with which the outputs are summed."""
    vocab, width, rows, length = shape
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    arrays = (
        normal(rows, length, width),
        normal(width, vocab) / np.sqrt(np.float32(width)),
        rng.integers(0, vocab, (rows, length), np.int32),
        np.arange(length) < rng.integers(length // 2, length + 1, (rows, 1)),
        normal(2, rows, length),
    )
    return tuple(map(jnp.asarray, arrays))


def naive_logprobs(hidden: jax.Array, out_embed: jax.Array, targets: jax.Array, mask: jax.Array) -> tuple:
    """Log-probabilities and entropies from all logits at once."""
    log_probs = jax.nn.log_softmax(hidden @ out_embed)
    logp = jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, -1)
    return jnp.where(mask, logp, 0.0), jnp.where(mask, entropy, 0.0)


def program(function: str, variant: str, arrays: tuple[jax.Array, ...]) -> jax.stages.Compiled:
    """Inputs -> outputs and the gradients to hidden states and embedding, compiled."""

    def logprobs(hidden, out_embed, targets, mask, weights):
        compute = naive_logprobs if variant == "naive" else chunked_logprobs
        outputs = compute(hidden, out_embed, targets, mask)
        return sum(jnp.sum(w * x) for w, x in zip(weights, outputs, strict=True)), outputs

    def cross_entropy(hidden, out_embed, targets, mask, weights):
        if variant == "chunked":
            out = chunked_cross_entropy(hidden, out_embed, targets, mask)
            return out.value, (out.value, out.aux["entropy"][0] / out.aux["entropy"][1])
        logp, entropy = naive_logprobs(hidden, out_embed, targets, mask)
        loss = -jnp.sum(logp) / jnp.sum(mask)
        return loss, (loss, jnp.sum(jax.lax.stop_gradient(entropy)) / jnp.sum(mask))

    total = {"logprobs": logprobs, "cross_entropy": cross_entropy}[function]

    def with_gradients(*arrays):
        (_, outputs), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(*arrays)
        return outputs, gradients

    return jax.jit(with_gradients).lower(*arrays).compile()


def memory(function: str, variant: str, shape: Shape) -> dict[str, int | None]:
    """Bytes of temporary arrays by XLA's plan, and growth of this process's peak over what it held before the call."""
    arrays = inputs(shape)
    compiled = program(function, variant, arrays)
    planned = compiled.memory_analysis().temp_size_in_bytes
    if jax.default_backend() != "cpu" or not sys.platform.startswith("linux"):
        return {"planned": planned, "measured": None}
    # Linux: 5 resets the peak to what is held now.
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    jax.block_until_ready(compiled(*arrays))
    return {"planned": planned, "measured": status_bytes("VmHWM") - before}


def status_bytes(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def times_and_differences(function: str, shape: Shape, repeats: int) -> dict[str, Any]:
    """Seconds of both variants, called in turn, and the largest differences between their results."""
    arrays = inputs(shape)
    compiled = {variant: program(function, variant, arrays) for variant in VARIANTS}
    results = [jax.device_get(compiled[variant](*arrays)) for variant in VARIANTS]
    (naive, naive_gradients), (chunked, gradients) = results
    seconds = {variant: [] for variant in VARIANTS}
    for _ in range(repeats):
        for variant in VARIANTS:
            start = time.perf_counter()
            jax.block_until_ready(compiled[variant](*arrays))
            seconds[variant].append(time.perf_counter() - start)
    return {
        "seconds": seconds,
        "values": max(float(np.max(np.abs(a - b))) for a, b in zip(naive, chunked, strict=True)),
        "gradients": max(
            float(np.max(np.abs(a - b)) / np.max(np.abs(a))) for a, b in zip(naive_gradients, gradients, strict=True)
        ),
    }


def fresh(function: Callable[..., dict], *args: str | int | Shape) -> dict:
    """Calls the function in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def measure(function: str, shape: Shape, repeats: int) -> dict[str, Any]:
    """One line of the table."""
    memories = {variant: fresh(memory, function, variant, shape) for variant in VARIANTS}
    timed = fresh(times_and_differences, function, shape, repeats)
    medians = {variant: statistics.median(timed["seconds"][variant]) for variant in VARIANTS}
    megabytes = {
        f"{kind}_mb": {v: memories[v][kind] and round(memories[v][kind] / 1e6, 1) for v in VARIANTS}
        for kind in ("planned", "measured")
    }
    return {
        "function": function,
        **shape._asdict(),
        **megabytes,
        "planned_ratio": round(memories["naive"]["planned"] / memories["chunked"]["planned"], 2),
        "median_seconds": {variant: round(x, 3) for variant, x in medians.items()},
        "time_ratio": round(medians["naive"] / medians["chunked"], 2),
        "seconds": {variant: [round(x, 3) for x in xs] for variant, xs in timed["seconds"].items()},
        "max_difference": timed["values"],
        "max_relative_difference_of_gradients": timed["gradients"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for shape in SHAPES:
        for function in FUNCTIONS:
            rows.append(measure(function, shape, args.repeats))
            print(json.dumps(rows[-1]), flush=True)
    write_result(args.out, rows)


if __name__ == "__main__":
    main()
