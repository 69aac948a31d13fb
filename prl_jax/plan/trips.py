"""How often the loops of a compiled program run: what the compiler states, or what the loop's condition tells."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping

from prl_jax.plan.hlo_text import Computation, Instruction


def trip_count(computations: Mapping[str, Computation], inside: Computation, loop: Instruction) -> int | None:
    """How often a while loop runs, at most where it may end early; None where that can't be told."""
    stated = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text)
    if stated:
        return int(stated[1])
    condition, body = (computations[dict(loop.called)[name]] for name in ("condition", "body"))
    init = inside.instructions[loop.operands[0]]
    bounds = []
    for index, offset, limit in _limits(computations, condition, condition.root.name, ()):
        first = _constant(inside, init.operands[index]) if init.opcode == "tuple" else None
        step = _step(computations, body, index)
        if step is not None:
            bounds.append(max(-(-(limit - offset - (first or 0)) // step), 0))
    return min(bounds, default=None)


def _step(computations: Mapping[str, Computation], body: Computation, index: int) -> int | None:
    """Returns what a run of a loop's body adds to an element of its state; several where a compiler unrolled it."""
    if body.root.opcode != "tuple":
        return None
    found = _counter(computations, body, body.root.operands[index], ())
    return found[1] if found is not None and found[0] == index and found[1] > 0 else None


def _limits(
    computations: Mapping[str, Computation], inside: Computation, name: str, arguments: tuple
) -> Iterator[tuple[int, int, int]]:
    """`(i, offset, limit)` for each `state[i] + offset < limit` that a condition asks for."""
    one = inside.instructions[name]
    if one.opcode in ("and", "bitcast", "copy"):
        for operand in one.operands:
            yield from _limits(computations, inside, operand, arguments)
    elif one.opcode == "fusion":
        fused, passed = _fused(computations, inside, one, arguments)
        yield from _limits(computations, fused, fused.root.name, passed)
    elif one.opcode == "compare":
        direction = re.search(r"direction=(\w+)", one.text)
        left, right = (_counter(computations, inside, operand, arguments) for operand in one.operands)
        if direction and direction[1] in ("GT", "GE"):
            left, right = right, left
        if direction and direction[1] in ("LT", "GT", "NE", "LE", "GE") and left and right and right[0] is None:
            if left[0] is not None:
                yield left[0], left[1], right[1] + (direction[1] in ("LE", "GE"))


def _fused(
    computations: Mapping[str, Computation], inside: Computation, fusion: Instruction, arguments: tuple
) -> tuple[Computation, tuple]:
    """The computation of a fusion, and what its parameters are, to be found out when they are met: what else goes into
    a fusion may depend on hundreds of others."""
    passed = tuple(functools.partial(_counter, computations, inside, name, arguments) for name in fusion.operands)
    return computations[dict(fusion.called)["calls"]], passed


def _counter(
    computations: Mapping[str, Computation], inside: Computation, name: str, arguments: tuple
) -> tuple[int | None, int] | None:
    """An element of the loop's state plus a number, `(index, number)`; `(None, number)` for a constant."""
    one, again = inside.instructions[name], functools.partial(_counter, computations)
    if one.opcode == "parameter":
        number = int(re.match(r"\d+", one.text.lstrip("(") or "0")[0]) if arguments else None
        return arguments[number]() if number is not None and number < len(arguments) else None
    if one.opcode == "get-tuple-element":
        index, source = int(one.attribute("index") or -1), inside.instructions[one.operands[0]]
        if source.opcode == "fusion":
            fused, passed = _fused(computations, inside, source, arguments)
            return again(fused, fused.root.operands[index], passed) if fused.root.opcode == "tuple" else None
        return (index, 0) if source.opcode == "parameter" and index >= 0 else None
    if one.opcode == "fusion":
        fused, passed = _fused(computations, inside, one, arguments)
        return again(fused, fused.root.name, passed)
    if one.opcode in ("copy", "bitcast", "convert", "reshape"):
        return again(inside, one.operands[0], arguments)
    if one.opcode == "add":
        parts = [again(inside, operand, arguments) for operand in one.operands]
        if None in parts or all(part[0] is not None for part in parts):
            return None
        return next((part[0] for part in parts if part[0] is not None), None), sum(part[1] for part in parts)
    value = _constant(inside, name)
    return None if value is None else (None, value)


def _constant(inside: Computation, name: str) -> int | None:
    one = inside.instructions[name]
    if one.opcode in ("copy", "bitcast", "convert", "reshape") and one.operands:
        return _constant(inside, one.operands[0])
    match = re.match(r"\((-?\d+)\)", one.text) if one.opcode == "constant" else None
    return int(match[1]) if match else None
