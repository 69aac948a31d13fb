"""Tensors of a GGUF file, dequantised slice by slice, by the names of a Hugging Face checkpoint.

llama.cpp stores three things otherwise than a checkpoint does: the rows of Llama's queries and keys in the order of the
pairs that RoPE rotates, Gemma's norms plus one, and matrices quantised in blocks along their rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from prl_jax.errors import UserError
from prl_jax.gguf_file import Header, Stored
from prl_jax.models.config import DecoderConfig
from prl_jax.models.gguf.families import ARCHITECTURES

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
PERMUTED = (".self_attn.q_proj.", ".self_attn.k_proj.")
_PLAIN = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
_CHUNK = 2**20  # elements dequantised at once; the library's temporaries are several times as large


class Tensor(NamedTuple):
    """A tensor by its name in a checkpoint.

    Attributes:
      stored: where it lies.
      shape: as the checkpoint has it.
      heads: how many heads its rows are of, where they are permuted; else 0.
      offset: what was added to it.
    """

    stored: Stored
    shape: tuple[int, ...]
    heads: int
    offset: float


class GGUFTensors:
    """The tensors of a file, read slice by slice.

    Attributes:
      index: by the names of a Hugging Face checkpoint.
      unknown: names of the file that belong to none of those asked for.
    """

    def __init__(self, header: Header, architecture: str, config: DecoderConfig, names: Sequence[str]):
        known = ARCHITECTURES[architecture]
        places = gguf_names(architecture, config.layers, names)
        self.index = {
            name: _described(header.tensors[place], name, known.permuted, config)
            for name, place in places.items()
            if place in header.tensors
        }
        known_places = set(places.values())
        self.unknown = [name for name in header.tensors if name not in known_places]
        self._path = header.path
        try:
            self._file = open(header.path, "rb", buffering=0)
        except OSError as error:
            raise UserError(f"{header.path}: cannot be read ({error.strerror})") from error

    def __enter__(self) -> GGUFTensors:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A tensor, or a part of it; slices have no steps. In float32 where the file holds blocks, or sums."""
        tensor = self.index[name]
        index = (*index, *(slice(None) for _ in tensor.shape[len(index) :]))
        (first, last, _), *_ = (s.indices(size) for s, size in zip(index, tensor.shape, strict=True))
        if not tensor.heads:
            found = self._rows(tensor.stored, first, last, index[1:])
        else:
            size = tensor.shape[0] // tensor.heads
            low, high = first // size * size, -(-last // size) * size
            whole = self._rows(tensor.stored, low, high, index[1:])
            found = unpermuted(whole, size)[first - low : last - low]
        return found.astype(np.float32) - np.float32(tensor.offset) if tensor.offset else found

    def _rows(self, stored: Stored, first: int, last: int, columns: tuple[slice, ...]) -> np.ndarray:
        """Rows of a matrix, dequantised some at a time; numbers of a vector, all of it at once."""
        if len(stored.shape) == 1:
            return read_rows(self._file, self._path, stored, 0, 1)[0, first:last]
        step = max(_CHUNK // stored.shape[-1], 1)
        lows = range(first, last, step)
        dtype = _PLAIN.get(stored.kind, np.dtype(np.float32))
        width = len(range(*columns[0].indices(stored.shape[1])))
        out = np.empty((last - first, width), dtype)
        for low in lows:
            high = min(low + step, last)
            out[low - first : high - first] = read_rows(self._file, self._path, stored, low, high)[:, columns[0]]
        return out


def gguf_names(architecture: str, layers: int, names: Sequence[str]) -> dict[str, str]:
    """Name in a Hugging Face checkpoint -> name in a GGUF file; those that have none are left out."""
    from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map

    arch = next(one for one in MODEL_ARCH if MODEL_ARCH_NAMES[one] == architecture)
    known = get_tensor_name_map(arch, layers)
    found = {name: known.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    return {name: place for name, place in found.items() if place is not None}


def permuted(rows: np.ndarray, size: int) -> np.ndarray:
    """The rows of heads of `size`, `[heads * size, ...]`, in the order of GGUF: each next to the one that it is rotated
    with. The inverse of `unpermuted`."""
    return rows.reshape(-1, 2, size // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def unpermuted(rows: np.ndarray, size: int) -> np.ndarray:
    """The rows of heads of `size`, `[heads * size, ...]`, in the order of a checkpoint: first halves of pairs first."""
    return rows.reshape(-1, size // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def read_tensor(header: Header, name: str) -> np.ndarray:
    """A small tensor as the file has it, in float32."""
    stored = header.tensors[name]
    rows = math.prod(stored.shape[:-1])
    with open(header.path, "rb", buffering=0) as file:
        return read_rows(file, header.path, stored, 0, rows).reshape(stored.shape).astype(np.float32)


def read_rows(file: BinaryIO, path: Any, stored: Stored, first: int, last: int) -> np.ndarray:
    """Rows of a tensor, dequantised, `[last - first, row]`."""
    data = np.empty((last - first, stored.row), np.uint8)
    view, done = data.reshape(-1), 0
    file.seek(stored.start + first * stored.row)
    while done < view.size:
        count = file.readinto(view[done:])
        if not count:
            raise UserError(f"{path}: ended early; it has changed while it was read")
        done += count
    if stored.kind in _PLAIN:
        return data.view(_PLAIN[stored.kind])
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # scales that are not finite are found by whoever reads
        return dequantize(data, GGMLQuantizationType[stored.kind])


@functools.cache
def readable(kind: str) -> bool:
    """Whether tensors of a type can be read."""
    if kind in _PLAIN:
        return True
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    number = GGMLQuantizationType[kind]
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[number][1]), np.uint8), number)
    except NotImplementedError:
        return False
    return True


def _described(stored: Stored, name: str, permutes: bool, config: DecoderConfig) -> Tensor:
    heads = 0
    if permutes and any(part in name for part in PERMUTED):
        heads = config.heads if ".q_proj." in name else config.kv_heads
        if stored.shape[0] % (2 * heads):
            heads = 0  # of another shape than it should be, which is found
    offset = config.norm_offset if name.endswith("norm.weight") else 0.0
    return Tensor(stored, stored.shape, heads, offset)
