"""Export: a directory that transformers, vLLM and others load."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from prl_jax.errors import UserError
from prl_jax.files import appearing, write_json
from prl_jax.models.decoder import Decoder
from prl_jax.models.heads import ScalarModel
from prl_jax.models.hf.config import CONFIG_FILE
from prl_jax.models.hf.export_config import export_config
from prl_jax.models.hf.files import INDEX_FILE, SINGLE_FILE
from prl_jax.models.hf.generation import GENERATION_FILE
from prl_jax.models.hf.tensors import LM_HEAD, SCORE, Parameter, parameters
from prl_jax.tree import flatten

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
MAX_SHARD_BYTES = 2 * 1024**3


@runtime_checkable
class ExportableTokenizer(Protocol):
    """The methods of a tokenizer that an export uses."""

    vocab_size: int
    pad_id: int
    eos_id: int

    def special(self, name: str) -> int | None:
        """Id of a structural token such as "bos", or None."""
        ...

    def save_pretrained(self, directory: Path) -> None:
        """Writes the tokenizer and its chat template in Hugging Face's format."""
        ...


def to_hf(
    model: Decoder | ScalarModel,
    path: Path | str,
    *,
    tokenizer: Any = None,
    source: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a model as a Hugging Face checkpoint: weights, `config.json`, `generation_config.json`, tokenizer.

    The directory appears whole or not at all. Host memory holds one file of weights at a time. All processes have to
    call it; the first one writes.

    Args:
      model: without adapters. A `ScalarModel` becomes a `ForSequenceClassification` checkpoint with one label; such
        heads have no bias, so a critic's cannot be written.
      path: a directory that does not exist yet, or is empty.
      tokenizer: an `ExportableTokenizer`; None writes no tokenizer files.
      source: the `config.json` that the model came from (`read_config`), whose keys are kept.
      generation: the `generation_config.json` that the model came with, whose keys are kept.
      max_shard_bytes: of a file of weights; a larger tensor has a file of its own.

    Raises:
      UserError: adapters that are not merged, a head with a bias, a decoder that no family can express, a tokenizer
        that cannot be exported or does not fit, a directory that is not empty, a disk that takes no more.
    """
    path, reward_model, config = Path(path), isinstance(model, ScalarModel), model.config
    if config.lora is not None:
        raise UserError("export: the model has adapters; merge them into its weights first")
    if isinstance(model, ScalarModel) and model.scalar.bias is not None:
        raise UserError(
            "export: a critic's head has a bias, which ForSequenceClassification checkpoints have no place for"
        )
    if tokenizer is not None and not isinstance(tokenizer, ExportableTokenizer):
        raise UserError(f"export: a {type(tokenizer).__name__} has no form in Hugging Face's format; export without it")
    if tokenizer is not None and getattr(tokenizer, "rows_needed", tokenizer.vocab_size) > config.vocab_size:
        raise UserError(
            f"export: the tokenizer has {tokenizer.vocab_size} ids, the model's vocabulary only {config.vocab_size}"
        )
    values = export_config(config, reward_model=reward_model, source=source)
    tokens = _token_ids(values, tokenizer, generation or {})
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: is there already; delete it or name another directory")
    with appearing(path) if jax.process_index() == 0 else contextlib.nullcontext() as folder:
        _write_weights(model, folder, max_shard_bytes)
        if folder is not None:
            added = {key: value for key, value in tokens.items() if values.get(key) is None}
            write_json(folder / CONFIG_FILE, {**values, **added}, indent=2)
            write_json(folder / GENERATION_FILE, {**(generation or {}), **tokens}, indent=2)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)


def _token_ids(values: Mapping[str, Any], tokenizer: Any, generation: Mapping[str, Any]) -> dict[str, Any]:
    """Special tokens of generation: what `generation` says, else those of the tokenizer, else those of `values`. All
    that ended a sequence before still does."""
    sources = [values, generation]
    if tokenizer is not None:
        tokens = dict(
            bos_token_id=tokenizer.special("bos"), eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id
        )
        sources.insert(1, tokens)
    named = [{key: said[key] for key in _TOKENS if said.get(key) is not None} for said in sources]
    tokens = {key: value for said in named for key, value in said.items()}
    ends: list[int] = []
    for said in reversed(named):  # in the order of what counts most
        end = said.get("eos_token_id", [])
        ends += end if isinstance(end, list) else [end]
    if len(set(ends)) > 1:
        tokens["eos_token_id"] = list(dict.fromkeys(ends))
    return tokens


def _write_weights(model: Decoder | ScalarModel, folder: Path | None, max_shard_bytes: int) -> None:
    """Tensors in the order of the model, cut into files of at most `max_shard_bytes`."""
    reward_model = isinstance(model, ScalarModel)
    leaves, places = flatten(model), parameters(model, model.config)
    rows = [
        (name, place, leaves[parameter], layer)
        for parameter, place in places.items()
        for layer, name in enumerate(place.names)
        if not (reward_model and name == LM_HEAD)
    ]
    sizes = [leaf.nbytes // len(place.names) for _, place, leaf, _ in rows]
    files: list[list[int]] = [[]]
    for i, size in enumerate(sizes):
        if files[-1] and sum(sizes[j] for j in files[-1]) + size > max_shard_bytes:
            files.append([])
        files[-1].append(i)
    weight_map: dict[str, str] = {}
    for number, members in enumerate(files, start=1):
        file = SINGLE_FILE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {}
        for name, place, leaf, layer in (rows[i] for i in members):
            tensor = gathered(place, leaf, layer)
            tensors[name] = _head(tensor, model.config.param_dtype) if name == SCORE else tensor
            weight_map[name] = file
        if folder is not None:
            # The metadata tell transformers in which layout the tensors are.
            save_file(tensors, folder / file, metadata={"format": "pt"})
    if folder is not None and len(files) > 1:
        total = {"total_size": sum(sizes)}
        write_json(folder / INDEX_FILE, {"metadata": total, "weight_map": dict(sorted(weight_map.items()))}, indent=2)


def gathered(place: Parameter, leaf: jax.Array, layer: int) -> np.ndarray:
    """One layer's tensor as a checkpoint stores it, on every process."""
    sharding = leaf.sharding
    whole = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
    return np.asarray(_stored(place.stacked, place.transposed, place.shape, whole)(leaf, layer))


@functools.cache
def _stored(stacked: bool, transposed: bool, shape: tuple[int, ...], out: Any) -> Any:
    def take(leaf: jax.Array, layer: jax.Array | int) -> jax.Array:
        piece = jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False) if stacked else leaf
        return piece.T if transposed else jnp.reshape(piece, shape)

    return jax.jit(take, out_shardings=out)


def _head(weight: np.ndarray, dtype: str) -> np.ndarray:
    """A reward model's head in the dtype of its trunk, where no digit is lost: it is kept in float32."""
    narrow = weight.astype(dtype)
    return narrow if np.array_equal(narrow.astype(weight.dtype), weight) else weight
