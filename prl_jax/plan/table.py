"""A plan as text for a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from prl_jax.plan.advice import knobs, largest_consumer
from prl_jax.plan.hlo import KINDS
from prl_jax.plan.plan import Function, Plan

_BINARY = {"GiB": 2.0**30, "MiB": 2.0**20, "KiB": 2.0**10}
_DECIMAL = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}
_GIB = 2**30


class _Unit(NamedTuple):
    """Numbers of a table, all in one unit."""

    name: str
    size: float

    @classmethod
    def of(cls, numbers: Sequence[float], units: Mapping[str, float]) -> _Unit:
        """The largest unit of which the largest number is at least one."""
        largest = max(numbers, default=0.0)
        return cls(*next((unit for unit in units.items() if largest >= unit[1]), list(units.items())[-1]))

    def show(self, number: float) -> str:
        return f"{number / self.size:.2f}" if number else "-"


def as_text(plan: Plan, config: ConfigDict) -> str:
    """Memory, costs, collectives; then what does not fit, and what helps."""
    mesh = " ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    room = f" with {plan.chip.hbm / _GIB:.2f} GiB each" if plan.chip else ""
    kind = plan.chip.name if plan.chip else "CPU"
    lines = [f"{plan.topology}: {plan.devices} devices ({kind}){room}; mesh {mesh}", ""]
    lines += _memory_table(plan)
    compiled = [function for function in plan.functions if function.cost is not None]
    if compiled:
        lines += ["", *_cost_table(plan, compiled)]
        lines += ["", *_collectives_table(compiled)]
    for function in plan.functions:
        if function.fits is False:
            lines += ["", *_advice(plan, function, config)]
        lines += [
            f"{function.name}: gathers an array as large as a whole stack of parameters at {where}"
            for where in function.stack_gathers
        ]
        lines += [f"{function.name}: {warning}" for warning in function.warnings]
    return "\n".join(lines)


def as_json(plan: Plan, config: ConfigDict) -> dict[str, Any]:
    """Bytes, operations and seconds, unrounded."""
    return {
        "topology": plan.topology,
        "devices": plan.devices,
        "mesh": dict(plan.mesh),
        "hbm": plan.chip.hbm if plan.chip else None,
        "fits": plan.fits,
        "functions": {function.name: _function_json(plan, function, config) for function in plan.functions},
    }


def _function_json(plan: Plan, function: Function, config: ConfigDict) -> dict[str, Any]:
    found: dict[str, Any] = {
        "fits": function.fits,
        "flops": function.flops,
        "memory": function.memory._asdict(),
        "held": dict(function.held),
        "compile_seconds": round(function.compile_seconds, 3),
        "stack_gathers": list(function.stack_gathers),
        "warnings": list(function.warnings),
    }
    if function.cost is not None:
        kinds = function.cost.by_kind().items()
        found["bytes_moved"] = function.cost.moved
        found["collectives"] = {kind: {"count": count, "bytes_sent": sent} for kind, (count, sent) in kinds}
        found["loops_of_unknown_length"] = function.cost.open_loops
    if function.seconds is not None:
        found["roofline_seconds"] = {**function.seconds._asdict(), "step": function.seconds.step}
    if function.fits is False:
        name, size = largest_consumer(function)
        found |= {"refused": function.refused, "largest_consumer": {"name": name, "bytes": size}}
        found["knobs"] = knobs(plan, function, config)
    return found


def _memory_table(plan: Plan) -> list[str]:
    """Lays out the memory; what is not compiled has no temporary memory, and its peak is a lower bound."""
    unit = _Unit.of([function.memory.peak for function in plan.functions], _BINARY)
    rows = []
    for function in plan.functions:
        memory, known = function.memory, function.cost is not None or bool(function.refused)
        sizes = (memory.parameters, memory.optimizer, memory.judge, memory.cache, memory.rows)
        saved = unit.show(memory.activations) if function.cost is not None else "?"
        temporary = unit.show(memory.temporary) if known else "?"
        peak = f"{'' if known else '>'}{unit.show(memory.peak)}"
        fits = {True: "yes", False: "NO", None: "-"}[function.fits]
        rows.append([function.name, *map(unit.show, sizes), temporary, saved, peak, fits])
    header = [f"{unit.name} a device", "parameters", "optimizer", "judge", "cache", "rows"]
    return _table([*header, "temporary", "(activations)", "peak", "fits"], rows)


def _cost_table(plan: Plan, compiled: Sequence[Function]) -> list[str]:
    sent = [_sent(function) for function in compiled]
    moved = [function.cost.moved for function in compiled if function.cost is not None]
    flop, byte = _Unit.of([f.flops for f in compiled], _DECIMAL), _Unit.of([*moved, *sent], _DECIMAL)
    header = ["a call, a device", f"{flop.name}FLOP", f"{byte.name}B moved", f"{byte.name}B sent"]
    header += ["s compute", "s memory", "s network", "s at least"] if plan.chip else []
    rows = []
    for function, moves, sends in zip(compiled, moved, sent, strict=True):
        seconds = (*function.seconds, function.seconds.step) if function.seconds is not None else ()
        costs = [flop.show(function.flops), byte.show(moves), byte.show(sends)]
        rows.append([function.name, *costs, *(f"{second:.3g}" for second in seconds)])
    return _table(header, rows)


def _collectives_table(compiled: Sequence[Function]) -> list[str]:
    found = [(function.name, function.cost.by_kind()) for function in compiled if function.cost is not None]
    kinds = [kind for kind in KINDS if any(kind in by_kind for _, by_kind in found)]
    byte = _Unit.of([_sent(function) for function in compiled], _DECIMAL)
    cell = lambda entry: f"{entry[0]} x, {byte.show(entry[1])}" if entry else "-"  # noqa: E731
    rows = [[name, *(cell(by_kind.get(kind)) for kind in kinds)] for name, by_kind in found]
    return _table([f"number, {byte.name}B sent", *kinds], rows) if kinds else ["No collectives."]


def _sent(function: Function) -> float:
    assert function.cost is not None
    return sum(sent for _, sent in function.cost.by_kind().values())


def _advice(plan: Plan, function: Function, config: ConfigDict) -> list[str]:
    assert plan.chip is not None
    name, size = largest_consumer(function)
    peak, room = function.memory.peak / _GIB, plan.chip.hbm / _GIB
    lines = [
        f"{function.name} does not fit: {peak:.2f} of {room:.2f} GiB; the largest part is the {name}, "
        f"{size / _GIB:.2f} GiB."
    ]
    if function.refused:
        lines.append(f"  The compiler: {function.refused.splitlines()[0]}")
    return [*lines, "  What helps: " + "; ".join(knobs(plan, function, config)) + "."]


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return lines
