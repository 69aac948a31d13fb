"""Import: safetensors straight onto a mesh."""

from __future__ import annotations

import dataclasses
import functools
import gc
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prl_jax.errors import UserError
from prl_jax.models.config import DecoderConfig
from prl_jax.models.decoder import LOGICAL_AXES, Decoder
from prl_jax.models.heads import ScalarModel
from prl_jax.models.hf.config import CONFIG_FILE, QUANTISED, decoder_config, is_reward_model, read_config
from prl_jax.models.hf.files import DTYPES, INDEX_FILE, SINGLE_FILE, Tensors, not_finite
from prl_jax.models.hf.tensors import EMBEDDING, LM_HEAD, SCORE, Parameter, make_model, parameters
from prl_jax.sharding import make_mesh, tree_shardings
from prl_jax.tree import flatten, unflatten

_SHOWN = 20  # tensors named of each kind of mistake
_COMPARED_ROWS = 4096
# What quantised checkpoints hold: integers and narrow floats, and how they are scaled.
_NARROW = ("I8", "U8", "I16", "I32", "U32", "F8_E4M3", "F8_E5M2", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0")
_PACKED = (".absmax", ".quant_map", ".qweight", ".qzeros", ".SCB", ".weight_packed", ".weight_scale")
_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")


@runtime_checkable
class Readable(Protocol):
    """Tensors by the names of a Hugging Face checkpoint, each with its `shape`, read slice by slice."""

    @property
    def index(self) -> Mapping[str, Any]: ...
    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray: ...


def from_hf(
    path: Path | str,
    *,
    dtype: str | None = None,
    compute_dtype: str | None = None,
    remat: bool = False,
    attention: str = "auto",
    unused: tuple[tuple[int, int], ...] = (),
    mesh: Mesh | None = None,
) -> Decoder | ScalarModel:
    """The model of a Hugging Face checkpoint directory.

    Tensors are read one at a time, of each only the part that this process's devices hold, so that host memory stays
    below the size of the largest tensor and a little.

    Args:
      path: directory with `config.json` and safetensors files, whole or in shards.
      dtype: "float32" or "bfloat16", of the parameters; by default the checkpoint's, float32 for one in float16 or in
        several dtypes. (The head of a reward model is float32 always.)
      compute_dtype: of activations and matrix products; by default that of the parameters.
      remat, attention: see `DecoderConfig`.
      unused: see `DecoderConfig`; what the tokenizer tells (`text.tokenizer.unused_ids`).
      mesh: where the parameters go, with the shardings of `tree_shardings`; by default one device.

    Returns:
      A `ScalarModel` for a `ForSequenceClassification` checkpoint with one label, else a `Decoder`.

    Raises:
      UserError: an unsupported architecture or option, by name; tensors that are missing, left over or misshapen, all
        in one message; files that cannot be read; pickled weights.
    """
    directory = Path(path)
    hf, where = read_config(directory), str(directory / CONFIG_FILE)
    config, reward_model = decoder_config(hf, where), is_reward_model(hf, where)
    if reward_model:  # no output embedding at all
        config = dataclasses.replace(config, tied_embeddings=True)
    mesh = make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    with Tensors(directory) as tensors:
        _check_layers(where, tensors, config)
        places = parameters(abstract(config, reward_model), config)
        _check(directory, tensors, places.values(), tied=config.tied_embeddings and not reward_model)
        stored = {tensors.index[name].dtype for place in places.values() for name in place.names if name != SCORE}
        dtype = dtype or ("bfloat16" if stored == {"BF16"} else "float32")
        settings = dict(param_dtype=dtype, dtype=compute_dtype or dtype, remat=remat, attention=attention)
        config = dataclasses.replace(config, **settings, unused=unused)
        return read_parameters(tensors, config, mesh, str(directory), reward_model=reward_model)


def read_parameters(
    tensors: Readable, config: DecoderConfig, mesh: Mesh, where: str, *, reward_model: bool = False
) -> Any:
    """A model whose arrays are read from tensors that have been checked.

    Args:
      tensors: by the names of a Hugging Face checkpoint.
      config: of the decoder, with the dtypes that it gets.
      mesh: where the parameters go.
      where: the file, for messages.
      reward_model: whether it gives one number in place of logits.

    Raises:
      UserError: weights that are not finite, all in one message.
    """
    like, broken = abstract(config, reward_model), dict[str, int]()
    places, shardings = parameters(like, config), flatten(tree_shardings(like, mesh, LOGICAL_AXES))
    arrays = {name: _load(tensors, places[name], leaf, shardings[name], broken) for name, leaf in flatten(like).items()}
    if broken:
        names = listed([f"{name} ({count})" for name, count in broken.items()])
        raise UserError(f"{where}: {sum(broken.values())} weights are not finite (NaN or infinity): {names}")
    return unflatten(like, arrays)


def check_weights(path: Path | str) -> None:
    """Raises `UserError` for weights whose headers do not belong together or to `config.json`; none at all are fine, as
    a plan needs none. Reads no tensor."""
    directory = Path(path)
    if not any((directory / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return
    where = str(directory / CONFIG_FILE)
    with Tensors(directory) as tensors:
        _check_layers(where, tensors, decoder_config(read_config(directory), where))


def _check_layers(where: str, tensors: Tensors, config: DecoderConfig) -> None:
    """The number of layers, before anything is built: the headers of the weights know it."""
    found = {int(match[1]) for name in tensors.index if (match := _LAYER.match(name))}
    if found and max(found) + 1 != config.layers:
        raise UserError(f"{where}: num_hidden_layers={config.layers}, but the weights have {max(found) + 1} layers")


def abstract(config: DecoderConfig, reward_model: bool) -> Any:
    """The shapes and dtypes of a model, without its arrays."""
    return jax.eval_shape(functools.partial(make_model, config, reward_model))


def _load(
    tensors: Readable, place: Parameter, leaf: jax.ShapeDtypeStruct, sharding: NamedSharding, broken: dict[str, int]
) -> jax.Array:
    """One parameter. Transposing and casting happen on the devices. `broken` counts numbers that are not finite."""
    spec = (*sharding.spec, *(None for _ in range(leaf.ndim - len(sharding.spec))))
    spec = spec[1:] if place.stacked else spec
    spec = spec[::-1] if place.transposed else (None, *spec)[-len(place.shape) :]
    piece_sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    start, put = _programs(leaf.shape, leaf.dtype, place.stacked, place.transposed, sharding)
    array = start()
    for layer, name in enumerate(place.names):
        piece = _read(tensors, name, piece_sharding, broken)
        # Waiting keeps the host from reading ahead of the devices, so that copies pile up.
        array = jax.block_until_ready(put(array, piece, layer))
        del piece
    return array


@functools.lru_cache(maxsize=128)
def _programs(
    shape: tuple[int, ...], dtype: np.dtype, stacked: bool, transposed: bool, sharding: NamedSharding
) -> tuple[Callable[[], jax.Array | None], Callable[[jax.Array | None, jax.Array, int | jax.Array], jax.Array]]:
    """Returns a function that makes room for a parameter, and one that puts a tensor of the checkpoint into it."""

    def put(array: jax.Array | None, piece: jax.Array, layer: int | jax.Array) -> jax.Array:
        piece = (piece.T if transposed else piece).astype(dtype)
        if array is None:
            return piece.reshape(shape)
        return jax.lax.dynamic_update_index_in_dim(array, piece, layer, 0)

    # A parameter that is one tensor needs no room beforehand.
    start = jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=sharding) if stacked else lambda: None
    return start, jax.jit(put, out_shardings=sharding, donate_argnums=0)


def _read(tensors: Readable, name: str, sharding: NamedSharding, broken: dict[str, int]) -> jax.Array:
    """A tensor as it is stored, spread over the mesh. Devices with the same part share one read."""
    parts: dict[str, np.ndarray] = {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
        key = str(index)
        if key not in parts:
            parts[key] = tensors.read(name, index)
            count = not_finite(parts[key])
            if count:
                broken[name] = broken.get(name, 0) + count
        return parts[key]

    array = jax.block_until_ready(jax.make_array_from_callback(tensors.index[name].shape, sharding, part))
    parts.clear()
    gc.collect(0)  # JAX lets go of arrays of the host when rubbish is collected, not before
    return array


def _check(directory: Path, tensors: Tensors, places: Collection[Parameter], *, tied: bool) -> None:
    """All that is wrong with the tensors, in one message."""
    expected = {name: place.shape for place in places for name in place.names}
    # Constants that early Llama 2 checkpoints hold; they follow from config.json.
    extra = [n for n in tensors.index if n not in expected and not n.endswith(".rotary_emb.inv_freq")]
    stored_twice = tied and LM_HEAD in extra and EMBEDDING in tensors.index
    differs = stored_twice and not _same(tensors, EMBEDDING, LM_HEAD)
    if stored_twice and not differs:
        extra.remove(LM_HEAD)
    others = [
        f"{name} {tensors.index[name].dtype}"
        for name in expected
        if name in tensors.index and tensors.index[name].dtype not in DTYPES
    ]
    packed = [
        f"{n} {tensor.dtype}" for n, tensor in tensors.index.items() if n.endswith(_PACKED) or tensor.dtype in _NARROW
    ]
    if packed:
        raise UserError(f"{directory}: {QUANTISED}; of its tensors: {listed(packed[:3])}")
    lines = misfits(tensors.index, expected, extra)
    lines += [f"of another dtype than {', '.join(DTYPES)}: {listed(others)}"] if others else []
    if lines:
        advice = f"; tie_word_embeddings is true, but {LM_HEAD} differs from {EMBEDDING}" if differs else ""
        raise UserError(f"{directory}: tensors do not fit {CONFIG_FILE}: {'; '.join(lines)}{advice}")


def misfits(index: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], extra: list[str]) -> list[str]:
    """How tensors differ from those that a model has, one line per kind of mistake.

    Args:
      index: the tensors by name, each with its `shape`.
      expected: name -> shape.
      extra: names of further ones.
    """
    wrong = {
        "missing": [name for name in expected if name not in index],
        "not expected": extra,
        "of another shape": [
            f"{name} {list(index[name].shape)} (expected {list(shape)})"
            for name, shape in expected.items()
            if name in index and index[name].shape != shape
        ],
    }
    return [f"{kind}: {listed(names)}" for kind, names in wrong.items() if names]


def listed(names: list[str]) -> str:
    """Names in one line, the first of many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _same(tensors: Tensors, one: str, other: str) -> bool:
    """Whether two tensors hold the same numbers, compared a few rows at a time."""
    first, second = tensors.index[one], tensors.index[other]
    if (first.dtype, first.shape) != (second.dtype, second.shape) or first.dtype not in DTYPES:
        return False
    steps = (slice(low, low + _COMPARED_ROWS) for low in range(0, first.shape[0], _COMPARED_ROWS))
    return all(np.array_equal(tensors.read(one, (rows,)), tensors.read(other, (rows,))) for rows in steps)
