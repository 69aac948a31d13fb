"""Reading slices of tensors out of safetensors files.

The `safetensors` library maps files into memory or reads whole tensors, so that pages of the file or a second copy
count as host memory; the format is simple enough to read just the bytes that are asked for.
Format: 8 bytes, the length of the header; the header, JSON; the tensors' bytes.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from prl_jax.errors import UserError
from prl_jax.files import parse_json, read_object

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
DTYPES: Mapping[str, Any] = MappingProxyType(
    {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(np.float16)}
)
_CHUNK = 64 * 1024 * 1024  # bytes read at once where rows are read that are not wholly needed
_CHECKED = 1024 * 1024  # numbers checked at once
_EXPONENTS = MappingProxyType(
    {
        "float32": (np.uint32, np.uint32(0x7F80_0000)),
        "bfloat16": (np.uint16, np.uint16(0x7F80)),
        "float16": (np.uint16, np.uint16(0x7C00)),
    }
)
_MAX_HEADER = 100_000_000  # bytes, as in the library


class Tensor(NamedTuple):
    """Where a tensor lies. `dtype` is the file's name for it; `start` counts from the beginning of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


class Tensors:
    """The tensors of a checkpoint directory, read slice by slice.

    Raises:
      UserError: no safetensors files, or broken ones.
    """

    def __init__(self, directory: Path):
        self.index: dict[str, Tensor] = {}
        self._files: dict[Path, BinaryIO] = {}
        with contextlib.ExitStack() as stack:
            paths, weight_map = _paths(directory)
            for path in paths:
                try:
                    file = stack.enter_context(open(path, "rb", buffering=0))
                except OSError as error:
                    raise UserError(f"{path}: cannot be read ({error.strerror})") from error
                self._files[path] = file
                header = _read_header(path, file)
                twice = sorted(header.keys() & self.index.keys())
                if twice:
                    raise UserError(f"{path}: holds {twice[0]}, which {self.index[twice[0]].file.name} holds too")
                self.index.update(header)
            _check_index(directory / INDEX_FILE, weight_map, self.index)
            self._stack = stack.pop_all()

    def __enter__(self) -> Tensors:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A tensor, or a part of it; slices have no steps."""
        tensor = self.index[name]
        dtype, file = DTYPES[tensor.dtype], self._files[tensor.file]
        if not tensor.shape:
            return _read(file, tensor, tensor.start, (), dtype)
        index = (*index, *(slice(None) for _ in tensor.shape[len(index) :]))
        (first, last, _), *trailing = (s.indices(size) for s, size in zip(index, tensor.shape, strict=True))
        row = math.prod(tensor.shape[1:]) * dtype.itemsize
        if all((low, high) == (0, size) for (low, high, _), size in zip(trailing, tensor.shape[1:], strict=True)):
            return _read(file, tensor, tensor.start + first * row, (last - first, *tensor.shape[1:]), dtype)
        out = np.empty((last - first, *(high - low for low, high, _ in trailing)), dtype)
        step = max(_CHUNK // row, 1)
        for low in range(first, last, step):
            high = min(low + step, last)
            rows = _read(file, tensor, tensor.start + low * row, (high - low, *tensor.shape[1:]), dtype)
            out[low - first : high - first] = rows[(slice(None), *index[1:])]
        return out


def _paths(directory: Path) -> tuple[list[Path], Mapping[str, str] | None]:
    """The files of weights, and which tensor the index says is in which, if it is the index that names them."""
    index, single = directory / INDEX_FILE, directory / SINGLE_FILE
    if index.is_file():
        weight_map = read_object(index).get("weight_map")
        names = weight_map.values() if isinstance(weight_map, dict) else [None]
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise UserError(f"{index}: not an index of safetensors files (weight_map: file names by tensor expected)")
        assert isinstance(weight_map, dict)
        files = sorted(set(weight_map.values()))
        absent = [name for name in files if not (directory / name).is_file()]
        if not single.is_file() or SINGLE_FILE in files:
            if absent:
                raise UserError(f"{index}: names files that are not there: {', '.join(absent)}")
            return [directory / name for name in files], weight_map
        if not absent:
            raise UserError(
                f"{directory}: two sets of weights, {SINGLE_FILE} and the files that {INDEX_FILE} names; delete one"
            )
    if single.is_file():  # an index whose files are gone is left from an earlier save
        return [single], None
    pickled = next((directory / name for name in PICKLED if (directory / name).is_file()), None)
    if pickled is not None:
        raise UserError(
            f"{pickled}: pickled weights can run code and are not read; convert them where you trust them: "
            "transformers' save_pretrained writes safetensors"
        )
    raise UserError(f"{directory}: no weights, expected {SINGLE_FILE} or {INDEX_FILE}")


def _check_index(index: Path, weight_map: Mapping[str, str] | None, found: Mapping[str, Tensor]) -> None:
    """An index that does not belong to its files is of another save, or they are."""
    if weight_map is None:
        return
    missing = [name for name, file in weight_map.items() if name not in found or found[name].file.name != file]
    unnamed = [name for name in found if name not in weight_map]
    for names, problem in ((missing, "names tensors that its files do not hold"), (unnamed, "does not name tensors")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{index}: {problem}: {', '.join(names[:3])}{more}; index and files are of different saves")


def _read_header(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    size = os.fstat(file.fileno()).st_size
    try:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise ValueError("no header")
        entries = parse_json(file.read(length))
        entries.pop("__metadata__", None)
        found = {}
        for name, entry in entries.items():
            start, end = entry["data_offsets"]
            shape = tuple(int(n) for n in entry["shape"])
            dtype = DTYPES.get(entry["dtype"])
            if not 0 <= start <= end <= size - 8 - length:
                raise ValueError(f"{name} lies outside of the file, which may be cut off")
            if dtype is not None and math.prod(shape) * dtype.itemsize != end - start:
                raise ValueError(f"{name} has {end - start} bytes, expected {math.prod(shape) * dtype.itemsize}")
            found[name] = Tensor(path, entry["dtype"], shape, 8 + length + start)
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); download it again") from error


def _read(file: BinaryIO, tensor: Tensor, start: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    out = np.empty(shape, dtype)
    view, done = out.reshape(-1).view(np.uint8), 0
    file.seek(start)
    while done < view.size:
        count = file.readinto(view[done:])
        if not count:
            raise UserError(f"{tensor.file}: ended early; it has changed while it was read")
        done += count
    return out


def not_finite(array: np.ndarray) -> int:
    """How many numbers of an array in one of `DTYPES` are NaN or infinite, told by their exponents, some at a time."""
    bits, mask = _EXPONENTS[array.dtype.name]
    flat = np.ascontiguousarray(array).reshape(-1).view(bits)
    return sum(
        int(np.count_nonzero((flat[low : low + _CHECKED] & mask) == mask)) for low in range(0, flat.size, _CHECKED)
    )
