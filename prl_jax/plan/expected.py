"""The lines that a run prints before its first stage: the memory that each takes of the devices, and its time."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prl_jax.config.rules import MIX, parts_of, value_at, whole_of
from prl_jax.costs.models import AbstractModels
from prl_jax.data.gold import make_arguments
from prl_jax.data.sources import mixed_rows
from prl_jax.errors import UserError, naming
from prl_jax.inputs.measurements import Measurements
from prl_jax.models.attention import choose
from prl_jax.plan.knobs import helpful_keys
from prl_jax.plan.work import Work, expected_work
from prl_jax.processes import is_leader, least
from prl_jax.runs.context import OF_STAGE, StageContext, gold_arguments
from prl_jax.stages import KINDS
from prl_jax.stages.kind import Checking
from prl_jax.stages.pairs_section import most_pairs

# Share of the rate of a large matrix product that whole steps reach, at best and at worst; measured on the CPU, where
# the experiments of this repository came to 0.25 to 0.5.
_BEST, _WORST = 0.7, 0.2
_COMPILE = {"cpu": 15.0}  # seconds a function, where it is not in the cache
_COMPILE_ELSEWHERE = 30.0
# Python, the libraries, the compiler and compiled programs share a CPU's memory with the arrays; measured.
_PROCESS = 2.0**30


class Rates(NamedTuple):
    """The speed of a device: operations and bytes a second."""

    flops: float
    bytes: float


def announce(contexts: Sequence[StageContext], measurements: Measurements, tell: Callable[[str], None]) -> None:
    """Tells what each of the stages to come takes; `measurements` has their sources.

    Raises:
      UserError: the models of a stage alone are more than a device has.
    """
    if not contexts:
        return
    config, mesh = contexts[0].config, contexts[0].mesh
    names = [context.name for context in contexts]
    work = [one for one in expected_work(config, mesh, _counter(contexts, measurements)) if one.stage in names]
    room = least(memory_of_device(mesh))
    for one in work:
        held = sum(one.held.values())
        if room and held > room:
            what = max(one.held, key=lambda key: one.held[key])
            raise UserError(
                f"{one.stage}: its models and optimizers take {amount(held)} of each device, which has {amount(room)}; "
                + helps(helpful_keys(config, f"{one.stage}/", what, mesh.shape))
            )
    work = [one for one in work if one.calls]
    if not (work and is_leader()):
        return
    rates, total = measured_rates(config.model.dtype), np.zeros(2)
    for line in _other_backends(config, mesh):
        tell(line)
    tell(_header(mesh, room))
    for one in work:
        seconds = np.array(expected_seconds(one, rates, mesh))
        total += seconds
        tell(f"{one.stage:<16} {_memory(one)}; {span(*seconds)}")
    tell(f"{'together':<16} {span(*total)}")
    for one in work:
        if room and one.peak > room and one.largest is not None:
            name = f"{one.stage}/{one.largest.function}"
            keys = helpful_keys(config, name, "temporary memory", mesh.shape)
            tell(f"prl: warning: {name} may not fit: about {amount(one.peak)} of {amount(room)}; {helps(keys)}")


def _header(mesh: Mesh, room: float) -> str:
    found = [f"{amount(room)} are free"] if room else []
    if mesh.devices.flat[0].platform == "cpu":
        found.append(f"the process and its compiled programs take about {amount(_PROCESS)} more")
    more = f" ({'; '.join(found)})" if found else ""
    return f"Expected memory of each device, within a factor of two, and time, with compilation if not cached{more}:"


def expected_seconds(work: Work, rates: Rates, mesh: Mesh) -> tuple[float, float]:
    """Seconds of a stage, at least and at most, about; compilation, which a cache may spare, is in the latter."""
    platform = mesh.devices.flat[0].platform
    devices = 1 if platform == "cpu" else mesh.size  # those of a CPU share its cores
    once = sum(work.held.values()) / rates.bytes  # the parameters are read for each token that is decoded
    low = high = 0.0
    for call in work.calls:
        waiting = once * (call.sequential if call.function == "decode" else 0)
        computing, moving = call.flops / (rates.flops * devices), call.moved / (rates.bytes * devices)
        low += call.calls * max(computing / _BEST, 0.1 * waiting, 0.3 * moving)
        high += call.calls * (computing / _WORST + waiting + moving)
    return low, high + len({call.function for call in work.calls}) * _COMPILE.get(platform, _COMPILE_ELSEWHERE)


@functools.cache
def measured_rates(dtype: str) -> Rates:
    """A large matrix product, and a softmax as in attention, timed on one device of this process."""
    device = jax.local_devices()[0]
    with jax.default_device(device):
        size = 1024 if device.platform == "cpu" else 8192
        square = jnp.ones((size, size), dtype)
        flops = 2.0 * size**3 / _fastest(jax.jit(jnp.matmul), square, square)
        scores = jnp.ones((2**13, 2**10), jnp.float32)
        return Rates(flops, 2 * 4.0 * scores.size / _fastest(jax.jit(jax.nn.softmax), scores))


def _fastest(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return max(min(seconds), 1e-9)


def memory_of_device(mesh: Mesh) -> float:
    """Bytes that a device of this process has for a run; 0 where that is not known."""
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    if not local:
        return 0.0
    if local[0].platform != "cpu":
        stats = local[0].memory_stats() or {}
        return float(stats.get("bytes_limit", 0))
    return available_memory() / len(local)


def available_memory() -> float:
    """Bytes of the machine's memory that a process can still get; 0 where that is not known."""
    try:
        found = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), found)
    except (OSError, ValueError):
        return 0.0
    try:  # a container may have less than the machine
        limit, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current"))
        found = min(found, int(limit) - int(used)) if limit != "max" else found
    except (OSError, ValueError):
        pass
    return float(max(found, 0))


def _other_backends(config: ConfigDict, mesh: Mesh) -> list[str]:
    """Why attention of long rows is not computed as the config wants it, each reason once."""
    models, here = AbstractModels(config, mesh, Checking(config, KINDS).card), mesh.devices.flat[0].platform
    trained = [models.trained_config(name) for name in config.stages if "lora" in config[name]]
    cases = [decoder.attending(2**20)._replace(platform=here, sequence=mesh.shape["sequence"]) for decoder in trained]
    reasons = (choose(decoder.attention, case)[1] for decoder, case in zip(trained, cases, strict=True))
    return list(dict.fromkeys(f"model.attention: {reason}" for reason in reasons if reason))


def _counter(contexts: Sequence[StageContext], measurements: Measurements) -> Callable[[str, str], int]:
    """How many records a source has, by its stage and key; built-in ones are not made for that."""
    named = {context.name: context for context in contexts}
    first = contexts[0]

    @functools.cache
    def count(stage: str, key: str) -> int:
        section = first.config[stage]
        source, what = value_at(section, key), KINDS[section.kind].rules.sources[whole_of(key)]
        if source.kind == MIX:
            sizes = [count(stage, part) for part in parts_of(section, key)]
            with naming(f"{stage}.{key}"):
                return int(mixed_rows(sizes, [part.weight for part in source[MIX].values()]).sum())
        if source.kind == OF_STAGE and not first.pairs_file(source).is_file():
            rows = count(source.path, "prompts") * most_pairs(first.config[source.path])
        elif source.kind == "gold":
            rows = make_arguments(gold_arguments(first.config)).rows(what, source.split)
        else:
            return len(measurements.records(named[stage], key, what)) if stage in named else 1
        rows = min(rows, source.limit + source.skip) if source.limit else rows
        return max(rows - source.skip, 1)

    return count


def _memory(work: Work) -> str:
    optimizer = sum(size for what, size in work.held.items() if what.endswith("optimizer"))
    temporary = work.largest.temporary if work.largest else 0.0
    parts = {"models": sum(work.held.values()) - optimizer, "optimizer": optimizer, "activations": temporary}
    named = ", ".join(f"{what} {amount(size)}" for what, size in parts.items() if size)
    return f"about {amount(work.peak)} ({named})"


def amount(size: float) -> str:
    """`3.2e9 -> "3.0 GiB"`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{max(size / 2**20, 0.1):.{0 if size >= 2**24 else 1}f} MiB"


def span(low: float, high: float) -> str:
    """A span of time as people say it."""
    units = {"days": 86400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
    name, unit = next(((name, unit) for name, unit in units.items() if high >= 2 * unit), ("seconds", 1.0))
    least, most = (f"{value / unit:.1f}" if value / unit < 2 else f"{value / unit:.0f}" for value in (low, high))
    return f"{least} to {most} {name}" if float(least) else f"up to {most} {name}"


def helps(keys: Sequence[str]) -> str:
    return "what helps: " + ("; ".join(keys) or "a smaller model, or more devices")
