"""The memory of a device while a function runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from prl_jax.costs.functions import Step
from prl_jax.costs.models import bytes_per_device, held_bytes
from prl_jax.plan.hlo_text import Computation
from prl_jax.plan.trips import trip_count


class Memory(NamedTuple):
    """Bytes of a device. All but `activations`, which are part of `temporary`, add up to `peak`.

    Attributes:
      parameters: of all models that the stage holds, the judge apart, whether the function reads them or not.
      optimizer: states of optimizers.
      judge: parameters of judges.
      cache: keys and values of decoding.
      rows: other arguments and results: tokens, masks, log-probabilities.
      temporary: what the function needs beside all that: gradients, activations, work space; 0 where it is not known.
      activations: kept from the forward to the backward pass, where layers run in a loop.
      peak: most at any time.
    """

    parameters: float = 0.0
    optimizer: float = 0.0
    judge: float = 0.0
    cache: float = 0.0
    rows: float = 0.0
    temporary: float = 0.0
    activations: float = 0.0
    peak: float = 0.0

    @property
    def known(self) -> float:
        """The sum without `temporary`, which the compiler finds."""
        return self.parameters + self.optimizer + self.judge + self.cache + self.rows


def memory_of(step: Step, stats: Any | None, *, on_cpu: bool = False, activations: float = 0.0) -> Memory:
    """The memory of a step; without the compiler's `stats` no temporary memory."""
    held = held_bytes(step.held)
    groups = {"optimizer": 0.0, "judge": 0.0, "parameters": 0.0}
    for what, size in held.items():
        groups["optimizer" if what.endswith("optimizer") else "judge" if what == "judge" else "parameters"] += size
    known = {id(leaf) for leaf in jax.tree.leaves((step.held, step.cache))}
    cache = bytes_per_device(step.cache)
    rows = bytes_per_device([leaf for leaf in jax.tree.leaves(step.arguments) if id(leaf) not in known])
    if stats is None:
        found = Memory(**groups, cache=cache, rows=rows)
        return found._replace(peak=found.known)
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    # A TPU's temporary arrays use the room of arguments that are donated; its peak knows. That of CPUs leaves them out.
    peak = stats.peak_memory_in_bytes - stats.argument_size_in_bytes - results
    temporary = stats.temp_size_in_bytes if on_cpu else max(peak, 0)
    read = {id(leaf) for leaf in jax.tree.leaves(step.arguments)}
    makes_cache = not any(id(leaf) in read for leaf in jax.tree.leaves(step.cache))
    rows += max(results - cache * makes_cache, 0.0)
    found = Memory(**groups, cache=cache, rows=rows, temporary=float(temporary), activations=activations)
    return found._replace(peak=found.known + found.temporary)


def activation_bytes(computations: Mapping[str, Computation]) -> float:
    """Bytes that the loops of the forward pass stack up for the backward pass."""
    total = 0.0
    for inside in computations.values():
        for loop in inside.instructions.values():
            name = re.search(r'op_name="([^"]*)"', loop.text)
            # The innermost transformation: a forward loop that the backward pass runs again is remat's.
            passes = re.findall(r"transpose\(jvp\(|jvp\(", name[1]) if name and loop.opcode == "while" else []
            if not passes or passes[-1] != "jvp(" or "rematted" in name[1]:
                continue
            trips = trip_count(computations, inside, loop)
            body = computations[dict(loop.called)["body"]]
            for index, (shape, result) in enumerate(zip(loop.shapes, body.root.operands, strict=False)):
                stacked = len(shape.dims) > 1 and shape.dims[0] == trips
                if stacked and not _unchanged(body, result, index):
                    total += shape.bytes
    return total


def _unchanged(body: Computation, name: str, index: int) -> bool:
    one = body.instructions[name]
    return one.opcode == "get-tuple-element" and one.attribute("index") == str(index)
