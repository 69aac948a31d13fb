"""Headers of GGUF files, the format of llama.cpp: what they say of a model, and where its tensors lie.

Format (github.com/ggml-org/ggml, docs/gguf.md), little-endian: the magic "GGUF", a version, numbers of tensors and of
pairs of metadata; the pairs; name, shape, type and offset of each tensor; the tensors' bytes, each at a multiple of the
alignment. The `gguf` library maps a file into memory and believes its sizes; here a header is read with bounds, so that
a damaged or hostile one costs neither memory nor time.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from prl_jax.errors import UserError, quoted

SUFFIX = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)  # the first has other sizes; no program writes it any more
# Many times what the largest vocabularies and models take.
MAX_HEADER, MAX_PAIRS, MAX_TENSORS, MAX_NAME, MAX_AXES = 64 * 2**20, 4096, 65_536, 1024, 4
_STRING, _ARRAY = 8, 9
_NUMBERS: Mapping[int, tuple[str, str]] = MappingProxyType(  # type of a value -> its code in `struct` and in numpy
    {
        **{0: ("<B", "u1"), 1: ("<b", "i1"), 2: ("<H", "<u2"), 3: ("<h", "<i2"), 4: ("<I", "<u4"), 5: ("<i", "<i4")},
        **{6: ("<f", "<f4"), 7: ("<?", "?"), 10: ("<Q", "<u8"), 11: ("<q", "<i8"), 12: ("<d", "<f8")},
    }
)
_FLOAT32 = 6


class Stored(NamedTuple):
    """Where a tensor lies.

    Attributes:
      kind: name of its type, such as "F32" or "Q4_K".
      shape: rows first, the reverse of the file's order.
      start: its first byte, counted from the beginning of the file.
      row: bytes of one row, which is the last axis.
    """

    kind: str
    shape: tuple[int, ...]
    start: int
    row: int


class Header(NamedTuple):
    """The header of a GGUF file.

    Attributes:
      path: of the file.
      metadata: numbers, strings, lists of strings and arrays of numbers, by key. A float32 is the shortest decimal that
        it stands for.
      tensors: by name.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]


def is_gguf(path: Path | str) -> bool:
    """Whether a path names a GGUF file rather than a model directory; nothing need be there."""
    return str(path).lower().endswith(SUFFIX) and not os.path.isdir(path)


def read_header(path: Path | str) -> Header:
    """The header of a GGUF file; one that has been read before, and not changed since, is kept.

    Raises:
      UserError: the file cannot be read, is none of GGUF or cut off, or its header contradicts itself.
    """
    return _read_header(Path(path), *stamp(path))


def stamp(path: Path | str) -> tuple[int, int, int]:
    """Size, time of change and number of a file: what is made of it may be kept while they stay.

    Raises:
      UserError: there is none.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a GGUF file") from error
    return found.st_size, found.st_mtime_ns, found.st_ino


@functools.lru_cache(maxsize=4)
def _read_header(path: Path, size: int, *_: int) -> Header:
    try:
        with open(path, "rb") as file:
            return _parse(path, file, size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not a whole GGUF file ({error}); download it again") from error


def _parse(path: Path, file: BinaryIO, size: int) -> Header:
    start = file.read(8)
    if start[:4] != MAGIC:
        raise UserError(f"{path}: not a GGUF file: begins with {start[:4]!r}, expected {MAGIC!r}")
    if len(start) < 8:
        raise ValueError("it ends in its header")
    version = int.from_bytes(start[4:], "little")
    if version not in VERSIONS:
        big = int.from_bytes(start[4:], "big") in VERSIONS
        what = "big-endian" if big else f"of version {version}"
        raise UserError(f"{path}: GGUF {what} is not supported; expected little-endian, version 2 or 3")
    cursor = _Cursor(file, min(size, MAX_HEADER) - 8, whole=size <= MAX_HEADER)
    tensors, pairs = cursor.number("<Q"), cursor.number("<Q")
    for what, count, most in (("tensors", tensors, MAX_TENSORS), ("pairs of metadata", pairs, MAX_PAIRS)):
        if count > most:
            raise ValueError(f"{count} {what}, expected at most {most}")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.name()
        if key in metadata:
            raise ValueError(f"the key {quoted(key)} twice")
        metadata[key] = cursor.value(key)
    entries = [(cursor.name(), cursor.shape(), cursor.number("<I"), cursor.number("<Q")) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment={alignment!r}, expected a power of two")
    begin = -(-file.tell() // alignment) * alignment
    found: dict[str, Stored] = {}
    for name, shape, kind, offset in entries:
        if name in found:
            raise ValueError(f"the tensor {quoted(name)} twice")
        found[name] = _stored(name, shape, kind, begin + offset, size)
    return Header(path, MappingProxyType(metadata), MappingProxyType(found))


def _stored(name: str, shape: tuple[int, ...], number: int, start: int, size: int) -> Stored:
    kinds = _kinds()
    if number not in kinds:
        raise ValueError(f"tensor {quoted(name)} of the unknown type {number}")
    kind, block, width = kinds[number]
    elements = 1
    for axis in shape:
        elements *= axis
    if not shape or elements == 0:
        raise ValueError(f"tensor {quoted(name)} of shape {list(shape)}")
    if shape[-1] % block:
        raise ValueError(f"tensor {quoted(name)} has rows of {shape[-1]}, no multiple of the {block} of {kind}")
    end = start + elements // block * width
    if end > size:
        raise ValueError(f"tensor {quoted(name)} ends at byte {end} of {size}")
    return Stored(kind, shape, start, shape[-1] // block * width)


@functools.cache
def _kinds() -> dict[int, tuple[str, int, int]]:
    """Number of a type of tensors -> its name, elements of a block, bytes of a block."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): (kind.name, block, width) for kind, (block, width) in GGML_QUANT_SIZES.items()}


class _Cursor:
    """Reads values one after the other, within a budget of bytes."""

    def __init__(self, file: BinaryIO, left: int, *, whole: bool) -> None:
        self._file, self._left, self._whole = file, left, whole

    def take(self, count: int) -> bytes:
        if count > self._left:
            raise ValueError("it ends in its header" if self._whole else f"a header of more than {MAX_HEADER} bytes")
        self._left -= count
        data = self._file.read(count)
        if len(data) < count:
            raise ValueError("it ends in its header")
        return data

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        return self.take(int.from_bytes(self.take(8), "little")).decode("utf-8")

    def name(self) -> str:
        length = self.number("<Q")
        if not 0 < length <= MAX_NAME:
            raise ValueError(f"a name of {length} bytes")
        found = self.take(length).decode("utf-8")
        if not found.isprintable():
            raise ValueError(f"the name {quoted(found)}")
        return found

    def shape(self) -> tuple[int, ...]:
        axes = self.number("<I")
        if axes > MAX_AXES:
            raise ValueError(f"a tensor of {axes} axes")
        return tuple(reversed([self.number("<Q") for _ in range(axes)]))

    def value(self, key: str) -> Any:
        kind = self.number("<I")
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _NUMBERS:
            raise ValueError(f"{quoted(key)} of the unknown type {kind}")
        number = self.number(_NUMBERS[kind][0])
        return float(str(np.float32(number))) if kind == _FLOAT32 else number

    def _array(self, key: str) -> list[str] | np.ndarray:
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _STRING:
            if count * 8 > self._left:
                raise ValueError(f"{quoted(key)} ends behind the header")
            return [self.string() for _ in range(count)]
        if kind not in _NUMBERS:
            raise ValueError(f"{quoted(key)} is a list of the unknown type {kind}")
        dtype = np.dtype(_NUMBERS[kind][1])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)
