"""The cost of a config on a slice of accelerators, asked of their compiler before one is booked."""

from __future__ import annotations

import hashlib
import math
import re
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from prl_jax.costs.functions import Step
from prl_jax.costs.models import bytes_per_device, held_bytes
from prl_jax.errors import UserError
from prl_jax.inputs.checks import check_config
from prl_jax.inputs.checks_of_data import check_inputs
from prl_jax.inputs.lengths import with_lengths
from prl_jax.inputs.measurements import Measurements
from prl_jax.plan.chips import Chip
from prl_jax.plan.flops import count_flops
from prl_jax.plan.functions import abstract_steps
from prl_jax.plan.hlo import Cost, analyse
from prl_jax.plan.hlo_text import parse
from prl_jax.plan.memory import Memory, activation_bytes, memory_of
from prl_jax.plan.quiet import said_to_stderr
from prl_jax.plan.topology import find_topology
from prl_jax.runs.context import StageContext
from prl_jax.runs.workdir import Workdir
from prl_jax.sharding import make_mesh

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Seconds(NamedTuple):
    """A roofline: what a call takes at least, were each part at its limit."""

    compute: float
    memory: float
    communication: float

    @property
    def step(self) -> float:
        """Seconds of a call in which the three overlap completely."""
        return max(self)


class Function(NamedTuple):
    """One function of the plan, per device and per call.

    Attributes:
      name: `stage/function`.
      flops: matrix products, an even share of all devices.
      memory: at the peak of the call, with all that its stage holds.
      held: bytes of what the stage holds, by what it is.
      cost: collectives and bytes of the compiled program; None where it was not compiled or does not fit.
      seconds: roofline; None on CPUs, and where `cost` is.
      stack_gathers: all-gathers that put all layers of a parameter together at once.
      fits: in the memory of a device; None where that is not known.
      refused: what the compiler said where the function does not fit.
      warnings: of the compiler, of arrays that it has to copy in whole to lay them out anew.
      compile_seconds: 0 where it was not compiled.
    """

    name: str
    flops: float
    memory: Memory
    held: Mapping[str, float]
    cost: Cost | None = None
    seconds: Seconds | None = None
    stack_gathers: tuple[str, ...] = ()
    fits: bool | None = None
    refused: str = ""
    warnings: tuple[str, ...] = ()
    compile_seconds: float = 0.0


class Plan(NamedTuple):
    """The cost of a config.

    Attributes:
      topology: its name.
      devices: how many.
      mesh: sizes of its axes.
      chip: limits of a device; None for CPUs.
      functions: in the order in which a run calls them first.
      config: with the lengths that were taken from the data.
    """

    topology: str
    devices: int
    mesh: Mapping[str, int]
    chip: Chip | None
    functions: tuple[Function, ...]
    config: ConfigDict

    @property
    def fits(self) -> bool:
        """Whether nothing is known not to fit."""
        return all(function.fits is not False for function in self.functions)

    def function(self, name: str) -> Function:
        """The function of that name; KeyError where there is none."""
        return {function.name: function for function in self.functions}[name]


def plan_config(
    config: ConfigDict,
    topology: str,
    *,
    functions: Collection[str] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Traces every function of a config and compiles it for the topology.

    Args:
      config: as a run takes it; model directories need no more than their config.json. Data and tokenizers that are
        there are checked as a run checks them; they have to be there where lengths are left to them.
      topology: `v5e:8x8`, `cpu:8`.
      functions: names of those to compile, `sft/train_step`; the others are only traced and lowered. None compiles all.
      tell: takes lines about the progress.

    Raises:
      UserError: there is no such topology, or the config cannot be cut over its devices.
    """
    check_config(config)
    found = find_topology(topology)
    mesh = make_mesh(**config.mesh.to_dict(), devices=found.devices)
    with tempfile.TemporaryDirectory() as folder:
        workdir = Workdir(Path(folder) / "run", config)
        surroundings = lambda config: StageContext(config.stages[0], config, workdir, mesh)  # noqa: E731
        measurements = Measurements()
        config = with_lengths(config, surroundings, measurements, tell=tell, absent=True)
        contexts = [StageContext(name, config, workdir, mesh) for name in config.stages]
        check_inputs(contexts, measurements, absent=True)
    devices, compiled = len(found.devices), dict[str, _Compiled]()
    with jax.set_mesh(mesh):
        steps = list(abstract_steps(config, mesh))
        _check_names(functions or (), steps)
        planned = []
        for step in steps:
            lowered = step.traced.lower()
            if functions is not None and step.name not in functions:
                planned.append(_uncompiled(step, devices, found.chip))
                continue
            key = hashlib.sha256(lowered.as_text().encode()).hexdigest()
            if key not in compiled:
                compiled[key] = _compile(step.name, lowered, tell)
            planned.append(_function(step, devices, found.chip, compiled[key]))
    return Plan(topology, devices, dict(mesh.shape), found.chip, tuple(planned), config)


def _check_names(names: Collection[str], steps: Sequence[Step]) -> None:
    known = [step.name for step in steps]
    if unknown := sorted(set(names) - set(known)):
        raise UserError(f"--functions: no {unknown[0]!r} in this config; it has {', '.join(known)}")


class _Compiled(NamedTuple):
    """The program that a compiler made of a function, or its error, its warnings, and how long it took."""

    executable: jax.stages.Compiled | None
    refused: str
    warnings: tuple[str, ...]
    seconds: float


def _compile(name: str, lowered: jax.stages.Lowered, tell: Callable[[str], None]) -> _Compiled:
    tell(f"{name}: compiling")
    start, executable, refused = time.monotonic(), None, ""
    with said_to_stderr() as said:
        try:
            executable = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            refused = str(error)
    seconds = time.monotonic() - start
    tell(f"{name}: compiled in {seconds:.0f} s" if executable else f"{name}: does not fit, {seconds:.0f} s")
    warnings = tuple(line.split("] ", 1)[-1] for line in said() if "Involuntary full remat" in line)
    return _Compiled(executable, refused, warnings, seconds)


def _uncompiled(step: Step, devices: int, chip: Chip | None) -> Function:
    """Returns what is known without a compiler, which is enough to tell that some functions do not fit."""
    memory, flops = memory_of(step, None), count_flops(step.traced.jaxpr) / devices
    fits = False if chip is not None and memory.known > chip.hbm else None
    return Function(step.name, flops, memory, held_bytes(step.held), fits=fits)


def _function(step: Step, devices: int, chip: Chip | None, compiled: _Compiled) -> Function:
    function = _uncompiled(step, devices, chip)._replace(
        warnings=compiled.warnings, compile_seconds=compiled.seconds, refused=compiled.refused
    )
    if compiled.executable is None:
        temporary = max(_needed(compiled.refused) - bytes_per_device(step.arguments), 0.0)
        memory = function.memory._replace(temporary=temporary, peak=function.memory.known + temporary)
        return function._replace(memory=memory, fits=False)
    text = compiled.executable.as_text()
    cost, stats = analyse(text, devices), compiled.executable.memory_analysis()
    memory = memory_of(step, stats, on_cpu=chip is None, activations=activation_bytes(parse(text)))
    function = function._replace(memory=memory, cost=cost, stack_gathers=stack_gathers(cost, step.held))
    if chip is None:
        return function
    sent = sum(one.times * one.sent for one in cost.collectives)
    roofline = Seconds(function.flops / chip.flops, cost.moved / chip.bandwidth, sent / chip.interconnect)
    return function._replace(seconds=roofline, fits=memory.peak <= chip.hbm)


def _needed(refused: str) -> float:
    """Bytes that a function needs with its arguments, as the compiler says it where there are fewer.

    "total memory required for HLO temporaries (21.31G) exceeds available HBM (15.75G)" counts arguments too.
    """
    sizes = re.findall(r"(?:Used |\()([\d.]+)([KMGT]?)", refused)
    return max((float(size) * _UNITS[unit] for size, unit in sizes), default=0.0)


def stack_gathers(cost: Cost, parameters: Any) -> tuple[str, ...]:
    """Where a program puts all layers of a parameter together at once, along some or all axes that it is cut along.

    Parameters whose first of three or more axes is that of the layers count; the others are small, or no stacks.
    """
    stacks = set()
    for leaf in jax.tree.leaves(parameters):
        if leaf.ndim < 3 or leaf.shape[0] == 1:
            continue
        cuts = [size // part for size, part in zip(leaf.shape, leaf.sharding.shard_shape(leaf.shape), strict=True)]
        sizes = {leaf.size}
        for parts in cuts:
            sizes |= {size // parts for size in sizes}
        sizes.discard(leaf.size // math.prod(cuts))  # what a device has anyway
        stacks |= {(leaf.shape[0], size) for size in sizes}
    return tuple(
        one.where
        for one in cost.collectives
        if one.kind == "all-gather"
        and any((layers, shape.elements) in stacks for shape in one.full_shapes for layers in shape.dims)
    )
