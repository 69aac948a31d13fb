"""The bytes of a GGUF file: pairs of metadata, descriptions of tensors, then the tensors one after the other."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from prl_jax.gguf_file import MAGIC

_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
# Types of tensors that can be written -> the number of `general.file_type` where matrices are of it.
FILE_TYPES: Mapping[str, int] = MappingProxyType(
    {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q5_1": 9, "Q5_0": 8, "Q4_1": 3, "Q4_0": 2}
)


class Written(NamedTuple):
    """A tensor to write.

    Attributes:
      kind: name of its type.
      shape: rows first.
      make: its numbers in float32, when their turn comes.
    """

    kind: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


def write_file(out: BinaryIO | None, metadata: Mapping[str, Any], tensors: Mapping[str, Written]) -> None:
    """Writes a file; host memory holds one tensor at a time.

    Args:
      out: where to; None where another process writes, and this one has its part in making the numbers.
      metadata: whole numbers, numbers, truth values, texts, lists of texts and arrays of int32 or float32, by key.
      tensors: by name.
    """
    if out is not None:
        out.write(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            out.write(_text(key) + b"".join(_value(value)))
        _describe(out, tensors)
    for tensor in tensors.values():
        array = tensor.make()
        if out is not None:
            data = encoded(array, tensor.kind)
            out.write(memoryview(data.reshape(-1)))
            out.write(bytes(-data.size % _ALIGNMENT))


def _describe(out: BinaryIO, tensors: Mapping[str, Written]) -> None:
    from gguf.constants import GGMLQuantizationType

    offset = 0
    for name, tensor in tensors.items():
        sizes = struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        number = GGMLQuantizationType[tensor.kind]
        out.write(_text(name) + struct.pack("<I", len(tensor.shape)) + sizes + struct.pack("<IQ", number, offset))
        size = row_bytes(tensor.kind, tensor.shape[-1]) * int(np.prod(tensor.shape[:-1], dtype=np.int64))
        offset += -(-size // _ALIGNMENT) * _ALIGNMENT
    out.write(bytes(-out.tell() % _ALIGNMENT))


def row_bytes(kind: str, width: int) -> int:
    """Bytes of a row of so many numbers in a type; 0 where the row is no whole number of its blocks."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return 0 if width % block else width // block * size


def encoded(array: np.ndarray, kind: str) -> np.ndarray:
    """The bytes of numbers in a type, uint8."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    array = np.ascontiguousarray(array, np.float32)
    return np.ascontiguousarray(quantize(array, GGMLQuantizationType[kind])).view(np.uint8)


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> Iterator[bytes]:
    """The type of a value, and its bytes."""
    if isinstance(value, bool):
        yield struct.pack("<I?", _BOOL, value)
    elif isinstance(value, int):
        yield struct.pack("<II", _UINT32, value)
    elif isinstance(value, float):
        yield struct.pack("<If", _FLOAT32, value)
    elif isinstance(value, str):
        yield struct.pack("<I", _STRING) + _text(value)
    elif isinstance(value, np.ndarray):
        kind = _FLOAT32 if value.dtype.kind == "f" else _INT32
        yield struct.pack("<IIQ", _ARRAY, kind, len(value))
        yield value.astype("<f4" if kind == _FLOAT32 else "<i4").tobytes()
    else:
        assert isinstance(value, Sequence)
        yield struct.pack("<IIQ", _ARRAY, _STRING, len(value))
        yield from map(_text, value)
