"""Import: a GGUF file straight onto a mesh."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jax
from jax.sharding import Mesh

from prl_jax.errors import UserError
from prl_jax.gguf_file import Header, read_header
from prl_jax.models.config import DecoderConfig
from prl_jax.models.decoder import Decoder
from prl_jax.models.gguf.config import architecture_of, hf_config
from prl_jax.models.gguf.rope import FACTORS
from prl_jax.models.gguf.tensors import GGUFTensors, readable
from prl_jax.models.hf.config import decoder_config
from prl_jax.models.hf.load import abstract, listed, misfits, read_parameters
from prl_jax.models.hf.tensors import parameters
from prl_jax.sharding import make_mesh

_LAYER = re.compile(r"blk\.(\d{1,9})\.")


def from_gguf(
    path: Path | str,
    *,
    dtype: str | None = None,
    compute_dtype: str | None = None,
    remat: bool = False,
    attention: str = "auto",
    unused: tuple[tuple[int, int], ...] = (),
    mesh: Mesh | None = None,
) -> Decoder:
    """The model of a GGUF file of llama.cpp, dequantised.

    Tensors are read one at a time, of each only the part that this process's devices hold, and dequantised some rows at
    a time: host memory holds one tensor and a little, beside the parameters of devices that are the host's.

    Args:
      path: of the file; its architecture is one of `families.ARCHITECTURES`, its tensors of any type that the `gguf`
        library dequantises.
      dtype: "float32" or "bfloat16", of the parameters; by default float32, bfloat16 where all matrices are in it.
      compute_dtype, remat, attention, unused, mesh: as of `from_hf`.

    Raises:
      UserError: an unsupported architecture, key or type of tensors, by name; tensors that are missing, left over or
        misshapen, all in one message; numbers that are not finite; a file that is none of GGUF, cut off or damaged.
    """
    header = read_header(path)
    values = hf_config(header)
    config = decoder_config(values, str(path))
    dtype = dtype or values["torch_dtype"]
    settings = dict(param_dtype=dtype, dtype=compute_dtype or dtype, remat=remat, attention=attention, unused=unused)
    config = dataclasses.replace(config, **settings)
    mesh = make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    with _checked(header, config) as tensors:
        return read_parameters(tensors, config, mesh, str(path))


def check_gguf(path: Path | str) -> None:
    """Raises `UserError` for a file whose tensors do not fit its metadata. Reads no tensor."""
    header = read_header(path)
    with _checked(header, decoder_config(hf_config(header), str(path))):
        pass


def _checked(header: Header, config: DecoderConfig) -> GGUFTensors:
    """The tensors of a file, each of the shape that the config has. All that is wrong is one message."""
    architecture, _ = architecture_of(header)
    found = {int(match[1]) for name in header.tensors if (match := _LAYER.match(name))}
    if found and max(found) + 1 != config.layers:
        raise UserError(
            f"{header.path}: {architecture}.block_count={config.layers}, but the tensors are of {max(found) + 1} layers"
        )
    places = parameters(abstract(config, False), config)
    expected = {name: place.shape for place in places.values() for name in place.names}
    tensors = GGUFTensors(header, architecture, config, list(expected))
    unread = sorted({tensor.stored.kind for tensor in tensors.index.values() if not readable(tensor.stored.kind)})
    lines = misfits(tensors.index, expected, [name for name in tensors.unknown if name != FACTORS])
    if unread:
        lines.append(f"of types that the gguf library does not dequantise: {listed(unread)}")
    if lines:
        tensors.close()
        raise UserError(f"{header.path}: tensors do not fit the metadata: {'; '.join(lines)}")
    return tensors
