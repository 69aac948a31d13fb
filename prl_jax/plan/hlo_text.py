"""The text of a compiled program (XLA's HLO), read into instructions."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|\w*computations?)=\{?((?:%[\w.\-]+(?:, )?)+)")


class Shape(NamedTuple):
    """One array: element type, dimensions, and whether it lies in the device's main memory (a TPU has others)."""

    dtype: str
    dims: tuple[int, ...]
    in_main_memory: bool

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """The bytes of its elements, without what a layout adds to fill tiles."""
        bits = re.search(r"\d+", self.dtype)
        size = _BYTES[self.dtype] if self.dtype in _BYTES else int(bits[0]) / 8 if bits else 0
        return math.ceil(self.elements * size)


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name, opcode: of the instruction.
      shapes: of its result, several for a tuple.
      operands: names of instructions of the same computation.
      text: its attributes.
      is_root: whether it is the computation's result.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str
    is_root: bool

    @property
    def called(self) -> tuple[tuple[str, str], ...]:
        """`(attribute, computation)` of the computations that it runs."""
        names = ((kind, re.findall(r"%([\w.\-]+)", found)) for kind, found in _CALLED.findall(self.text))
        return tuple((kind, name) for kind, found in names for name in found)

    def attribute(self, name: str) -> str | None:
        """A number such as `channel_id=3`."""
        found = re.search(rf"\b{name}=(\d+)", self.text)
        return found[1] if found else None


class Computation(NamedTuple):
    """Instructions by name, in order."""

    name: str
    is_entry: bool
    instructions: Mapping[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.is_root)


def parse(text: str) -> dict[str, Computation]:
    """The computations of `compiled.as_text()`."""
    found: dict[str, Computation] = {}
    inside: dict[str, Instruction] | None = None
    for line in _lines(text):
        if line.startswith("}"):
            inside = None
        elif inside is None and (header := _COMPUTATION.match(line)):
            inside = {}
            found[header[2]] = Computation(header[2], bool(header[1]), inside)
        elif inside is not None and (match := _INSTRUCTION.match(line)):
            instruction = _instruction(match[2], match[3], bool(match[1]))
            inside[instruction.name] = instruction
    return found


def _lines(text: str) -> Iterator[str]:
    """Each instruction in one line: the attributes of a kernel may go over several, the last of which begins with a
    brace as the end of a computation does."""
    held = ""
    for line in text.splitlines():
        begins = _INSTRUCTION.match(line) or _COMPUTATION.match(line) or not line or re.match(r"\}(,|$)", line)
        if begins:
            yield held
            held = ""
        held += line
    yield held


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    text = re.sub(r"/\*.*?\*/", "", text)
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    shapes, remainder = text[:end], text[end:].lstrip()
    start = remainder.index("(")
    close = _closing(remainder, start)
    operands = tuple(re.findall(r"%([\w.\-]+)", remainder[start:close]))
    opcode, attributes = remainder[:start], remainder[close:]
    attributes = remainder[start:] if opcode in ("constant", "parameter") else attributes
    return Instruction(name, opcode, _shapes(shapes), operands, attributes, is_root)


def _closing(text: str, start: int) -> int:
    """The index behind the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"no closing parenthesis: {text[start : start + 80]!r}")


@functools.lru_cache(maxsize=4096)
def _shapes(text: str) -> tuple[Shape, ...]:
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        sizes = tuple(int(re.sub(r"\D", "", size)) for size in dims.split(",") if size)
        found.append(Shape(dtype, sizes, re.search(r"S\([1-9]", layout) is None))
    return tuple(found)
