"""The work of a compiled program on one device: its collectives, and the bytes that it reads and writes.

XLA's own cost analysis counts the body of a loop once. Here everything counts as often as it runs.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from prl_jax.plan.hlo_text import Computation, Instruction, Shape, parse
from prl_jax.plan.trips import trip_count

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Names for what is already there: no data moves.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota"),
    *("after-all", "partition-id", "replica-id", "opt-barrier", "add-dependency", "domain"),
}


class Collective(NamedTuple):
    """A collective of the program.

    Attributes:
      kind: one of `KINDS`.
      times: how often it runs.
      full_shapes: of what it puts together; of an all-gather the whole array.
      sent: bytes that a device sends each time, by the algorithm that sends least (a ring).
      where: the name that the traced function gives it.
    """

    kind: str
    times: int
    full_shapes: tuple[Shape, ...]
    sent: float
    where: str


class Cost(NamedTuple):
    """The cost of one call, on one device.

    Attributes:
      collectives: one entry for each in the program.
      moved: bytes read from and written to main memory.
      open_loops: loops whose trip count could not be told; they count once.
    """

    collectives: tuple[Collective, ...]
    moved: float
    open_loops: int

    def by_kind(self) -> dict[str, tuple[int, float]]:
        """`kind -> (how many run, bytes sent)`."""
        out: dict[str, tuple[int, float]] = {}
        for one in self.collectives:
            count, sent = out.get(one.kind, (0, 0.0))
            out[one.kind] = count + one.times, sent + one.times * one.sent
        return out


def analyse(text: str, devices: int) -> Cost:
    """Reads `compiled.as_text()` of a program for that many devices."""
    computations = parse(text)
    times, hosts, open_loops = _times(computations)
    return Cost(
        tuple(_collectives(computations, times, hosts, devices)),
        sum((times[name] * _moved(computations, computations[name]) for name in times if hosts[name] == name), 0.0),
        open_loops,
    )


def _times(computations: Mapping[str, Computation]) -> tuple[dict[str, int], dict[str, str], int]:
    """How often each computation runs, the one that a fused one is part of (others: itself), and open loops."""
    times: dict[str, int] = collections.Counter()
    hosts: dict[str, str] = {}
    open_loops = 0
    entry = next(c.name for c in computations.values() if c.is_entry)
    # Callers come behind what they call in the text, so going back each computation is complete when it is reached.
    times[entry], hosts[entry] = 1, entry
    for name in reversed(computations):
        if name not in times:
            continue
        for instruction in computations[name].instructions.values():
            trips = 1
            if instruction.opcode == "while":
                known = trip_count(computations, computations[name], instruction)
                open_loops += known is None
                trips = known or 1
            for kind, called in instruction.called:
                if kind == "to_apply" and instruction.opcode != "call":
                    continue  # what a reduction does to two elements
                times[called] += times[name] * trips
                fused = kind == "calls"
                hosts[called] = hosts[name] if fused else called
    return dict(times), hosts, open_loops


def _collectives(
    computations: Mapping[str, Computation], times: Mapping[str, int], hosts: Mapping[str, str], devices: int
) -> Iterator[Collective]:
    """Each once. A TPU spreads one over several fusions, in loops even, which overlap it with other work: the first
    of them starts it, the channel tells the others."""
    found = [
        (name, one)
        for name in times
        for one in computations[name].instructions.values()
        if one.opcode.removesuffix("-start") in KINDS
    ]
    starts = {name for name, _ in found if _starts(computations[name])}
    spread = {one.attribute("channel_id") for name, one in found if name in starts}
    seen = set()
    for name, one in found:
        channel, kind = one.attribute("channel_id"), one.opcode.removesuffix("-start")
        key = (hosts[name], kind, channel or one.name)
        if key in seen or (hosts[name] != name and channel in spread and name not in starts):
            continue
        seen.add(key)
        group, inside = _group_size(one, devices), computations[name]
        operands = [shape for operand in one.operands for shape in inside.instructions[operand].shapes]
        if group > 1:
            kind = "reduce-scatter" if _scatters(inside, one, hosts[name] != name) else kind
            yield _collective(kind, times[name], operands, group, one)


def _starts(fused: Computation) -> bool:
    return any('"AsyncCollectiveStart"' in one.text for one in fused.instructions.values())


def _scatters(inside: Computation, one: Instruction, is_fused: bool) -> bool:
    """Whether this is how a TPU's compiler writes a reduce-scatter: in one fusion an all-reduce and a slice of it."""
    users = [other for other in inside.instructions.values() if one.name in other.operands]
    return is_fused and one.opcode == "all-reduce" and [user.opcode for user in users] == ["dynamic-slice"]


def _collective(kind: str, times: int, operands: list[Shape], group: int, one: Instruction) -> Collective:
    held = sum(shape.bytes for shape in operands)
    share = (group - 1) / group
    sent = {
        "all-gather": float(held * (group - 1)),
        "all-reduce": 2 * held * share,
        "reduce-scatter": held * share,
        "all-to-all": held * share,
        "collective-permute": float(held),
    }[kind]
    name = re.search(r'op_name="([^"]*)"', one.text)
    return Collective(kind, times, _results(one), sent, name[1] if name else one.name)


def _results(one: Instruction) -> tuple[Shape, ...]:
    """Returns the results of an instruction; the start of an asynchronous one names operands and counters too."""
    if one.opcode == "all-gather-start":
        return one.shapes[len(one.shapes) // 2 :]
    if one.opcode in ("collective-permute-start", "slice-start"):
        return one.shapes[1:2]
    return one.shapes[:1] if one.opcode == "copy-start" else one.shapes


def _group_size(one: Instruction, devices: int) -> int:
    """Devices that take part together."""
    if "source_target_pairs=" in one.text:
        pairs = re.findall(r"\{(\d+),(\d+)\}", one.text.split("source_target_pairs=")[1].split("}}")[0] + "}")
        return 2 if any(a != b for a, b in pairs) else 1
    groups = one.text.split("replica_groups=")[-1] if "replica_groups=" in one.text else ""
    if match := re.match(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}", groups):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        size = 1
        for axis in re.findall(r"'(\w+)'", match[2]):
            size *= int(sizes[axis])
        return size
    if match := re.match(r"\[(\d+),(\d+)\]<=", groups):
        return int(match[2])
    if match := re.match(r"\{\{([\d,]+)\}", groups):
        return len(match[1].split(","))
    return devices


def _moved(computations: Mapping[str, Computation], inside: Computation) -> float:
    """Bytes that one run of a computation reads and writes."""
    total = 0.0
    for one in inside.instructions.values():
        if one.opcode in _FREE or one.opcode.endswith("-done"):
            continue
        if one.opcode == "fusion":
            total += _moved_by_fusion(computations, inside, one)
        elif one.opcode in ("dynamic-slice", "slice", "gather"):
            total += 2 * _main(one.shapes)
        elif one.opcode == "slice-start":
            (result,), (source, *_) = _results(one), inside.instructions[one.operands[0]].shapes
            total += result.bytes * (result.in_main_memory + source.in_main_memory)
        elif one.opcode in ("dynamic-update-slice", "scatter"):
            updates = one.operands[1:2] if one.opcode == "dynamic-update-slice" else one.operands[2:]
            total += 2 * sum(_main(inside.instructions[name].shapes) for name in updates)
        else:
            total += _main(_results(one)) + sum(_main(inside.instructions[name].shapes) for name in one.operands)
    return total


def _moved_by_fusion(computations: Mapping[str, Computation], inside: Computation, one: Instruction) -> float:
    """A fusion reads of an operand that it slices the slice alone, and updates an operand in place."""
    fused = computations[dict(one.called)["calls"]].instructions
    users = collections.defaultdict(list)
    for instruction in fused.values():
        for operand in instruction.operands:
            users[operand].append(instruction)
    total = 0.0
    for instruction in fused.values():
        if instruction.opcode != "parameter":
            continue
        number = re.match(r"\((\d+)", instruction.text)
        place = inside.instructions[one.operands[int(number[1])]] if number else instruction
        if _main(place.shapes):
            total += _read(instruction, users)
    root = next(i for i in fused.values() if i.is_root)
    results = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for result, shape in zip(results, one.shapes, strict=False):
        if shape.in_main_memory:
            total += _written(result, shape, fused)
    return total


def _read(value: Instruction, users: Mapping[str, list[Instruction]]) -> float:
    """Bytes of a fusion's parameter that are read."""
    total = 0.0
    for user in users[value.name]:
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == value.name:
            total += sum(shape.bytes for shape in user.shapes)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
            continue
        elif user.opcode in ("bitcast", "get-tuple-element"):
            total += _read(user, users)
        elif user.opcode in ("tuple", "custom-call") or user.opcode in KINDS:
            continue  # handed on: part of a collective that is spread over several fusions
        else:
            return float(sum(shape.bytes for shape in value.shapes))
    return min(total, float(sum(shape.bytes for shape in value.shapes)))


def _written(result: Instruction, shape: Shape, fused: Mapping[str, Instruction]) -> float:
    while result.opcode in ("bitcast", "copy") and result.operands:
        result = fused[result.operands[0]]
    if result.opcode == "dynamic-update-slice":
        return 2.0 * sum(s.bytes for s in fused[result.operands[1]].shapes)
    if result.opcode in ("parameter", "custom-call", "get-tuple-element") or result.opcode in KINDS:
        return 0.0
    return float(shape.bytes)


def _main(shapes: tuple[Shape, ...]) -> float:
    return float(sum(shape.bytes for shape in shapes if shape.in_main_memory))
