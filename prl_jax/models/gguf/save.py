"""Export: a GGUF file that llama.cpp loads."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from prl_jax.errors import UserError
from prl_jax.files import replacing
from prl_jax.gguf_file import Header, Stored
from prl_jax.models.config import DecoderConfig
from prl_jax.models.decoder import Decoder
from prl_jax.models.gguf.config import hf_config
from prl_jax.models.gguf.families import ARCHITECTURES, KEYS, LOCAL_THETA, PATTERN
from prl_jax.models.gguf.rope import FACTORS, frequency_factors, write_scaling
from prl_jax.models.gguf.tensors import EMBEDDING, OUTPUT, PERMUTED, gguf_names, permuted
from prl_jax.models.gguf.write import FILE_TYPES, Written, row_bytes, write_file
from prl_jax.models.hf.config import decoder_config
from prl_jax.models.hf.export_config import differences, export_config
from prl_jax.models.hf.families import FAMILIES
from prl_jax.models.hf.save import gathered
from prl_jax.models.hf.tensors import Parameter, parameters
from prl_jax.tree import flatten

KINDS = tuple(kind.lower() for kind in FILE_TYPES)
_QUANTISATION_VERSION = 2
# Of these a few bits in the embeddings cost more than they save; llama.cpp's own files have them in another type too.
_FEW_BITS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
_ADVICE = "export to Hugging Face's format"


def to_gguf(
    model: Decoder,
    path: Path | str,
    *,
    kind: str = "",
    tokens: Mapping[str, Any] = MappingProxyType({}),
    source: Mapping[str, Any] | None = None,
) -> None:
    """Writes a language model as a GGUF file. It appears whole or not at all. All processes have to call it.

    Host memory holds one tensor at a time. Vectors are float32, and so are matrices whose rows are no whole blocks
    float16; with fewer than 8 bits the embeddings have 8.

    Args:
      model: without adapters.
      path: of the file.
      kind: of the matrices, one of `KINDS`; "" for that of the parameters.
      tokens: the keys of the tokenizer (`text.gguf_export.gguf_tokens`); llama.cpp loads no model without.
      source: the `config.json` that the model came from, whose keys count where the decoder does not tell.

    Raises:
      UserError: adapters that are not merged, a decoder that llama.cpp cannot compute, an unknown type, a disk that
        takes no more.
    """
    config = model.config
    if config.lora is not None:
        raise UserError("export: the model has adapters; merge them into its weights first")
    kind = (kind or {"bfloat16": "bf16"}.get(config.param_dtype, "f32")).upper()
    if kind not in FILE_TYPES:
        raise UserError(f"export: the type {kind.lower()!r} is not known; known: {', '.join(KINDS)}")
    architecture, values = _expressed(config, source)
    tensors = _tensors(model, architecture, kind)
    metadata = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": Path(path).stem,
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": _QUANTISATION_VERSION,
        **_keys(architecture, config, values),
        **tokens,
    }
    _check(Path(path), metadata, tensors, config)
    with replacing(path) if jax.process_index() == 0 else contextlib.nullcontext() as out:
        write_file(out, metadata, tensors)


def _expressed(config: DecoderConfig, source: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The architecture of llama.cpp for a decoder, and its `config.json`."""
    values = export_config(config, reward_model=False, source=source)
    family = "llama" if values["model_type"] == "mistral" else values["model_type"]  # of which only the window differs
    names = [name for name, known in ARCHITECTURES.items() if known.model_type == family]
    if not names:
        raise UserError(f"export: llama.cpp has no architecture for model_type={family!r}; {_ADVICE}")
    odd_heads = config.heads * config.head_dim != config.width
    problems = {
        "biases of attention": config.o_bias and family != "llama",
        "heads of another size than width / heads": family == "qwen2" and odd_heads,
        "a sliding window": any(config.local_layers) and not ARCHITECTURES[names[0]].period,
        "no cap of attention scores": family == "gemma2" and not config.attention_softcap,
        "no cap of logits": family == "gemma2" and not config.logit_softcap,
        "a cap of logits": family == "gemma3_text" and bool(config.logit_softcap),
    }
    if found := [name for name, wrong in problems.items() if wrong]:
        raise UserError(f"export: llama.cpp computes no {names[0]} with {' or '.join(found)}; {_ADVICE}")
    return names[0], {**FAMILIES[values["model_type"]].defaults, **values}


def _keys(architecture: str, config: DecoderConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys under the architecture's name."""
    known = ARCHITECTURES[architecture]
    said: dict[str, Any] = {"vocab_size": config.vocab_size, "rope.dimension_count": config.head_dim}
    told = {
        **values,
        "head_dim": config.head_dim,
        "num_key_value_heads": config.kv_heads,
        "rope_theta": config.rope_theta,
        "rope_local_base_freq": config.local_rope_theta or LOCAL_THETA,
        "sliding_window": config.window or None,
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
    }
    floats = ("rms_norm_eps", "rope_theta", "rope_local_base_freq", "attn_logit_softcapping", "final_logit_softcapping")
    for key, name in {**KEYS, **known.keys}.items():
        if told[name] is not None:
            said[key] = float(told[name]) if name in floats else int(told[name])
    said["attention.value_length"] = config.head_dim
    said |= write_scaling(config.rope_scaling)
    if said.get("rope.freq_base_swa") == LOCAL_THETA:
        del said["rope.freq_base_swa"]
    local = config.local_layers
    if known.period and any(local) and list(local) != [i % known.period < known.period - 1 for i in range(len(local))]:
        said[PATTERN] = _period(local)
    return {f"{architecture}.{key}": value for key, value in said.items()}


def _period(local: tuple[bool, ...]) -> Any:
    """After how many layers one without a window follows; an array of truths where there is no such number."""
    layers = range(len(local))
    for period in range(2, len(local) + 1):
        if list(local) == [i % period < period - 1 for i in layers]:
            return period
    return np.array(local, np.int32)


def _tensors(model: Decoder, architecture: str, kind: str) -> dict[str, Written]:
    """The tensors by their names in the file, in the order of the model."""
    config, leaves, places = model.config, flatten(model), parameters(model, model.config)
    names = gguf_names(architecture, config.layers, [name for place in places.values() for name in place.names])
    found: dict[str, Written] = {}
    for parameter, place in places.items():
        for layer, name in enumerate(place.names):
            if name not in names:
                raise UserError(f"export: llama.cpp's {architecture} has no tensor for {name}; {_ADVICE}")
            make = functools.partial(_numbers, architecture, config, place, leaves[parameter], layer, name)
            target = names[name]
            found[target] = Written(_kind_of(target, place.shape, kind), place.shape, make)
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        factors = frequency_factors(config.rope_scaling, config.head_dim, config.rope_theta)
        found[FACTORS] = Written("F32", factors.shape, lambda: factors)
    return found


def _kind_of(name: str, shape: tuple[int, ...], kind: str) -> str:
    if len(shape) == 1:
        return "F32"
    kind = "Q8_0" if kind in _FEW_BITS and name in (EMBEDDING, OUTPUT) else kind
    return kind if row_bytes(kind, shape[-1]) else "F16"


def _numbers(
    architecture: str, config: DecoderConfig, place: Parameter, leaf: jax.Array, layer: int, name: str
) -> np.ndarray:
    """A tensor as llama.cpp stores it, in float32, on every process."""
    array = gathered(place, leaf, layer).astype(np.float32)
    if ARCHITECTURES[architecture].permuted and any(part in name for part in PERMUTED):
        return permuted(array, config.head_dim)
    return array + np.float32(config.norm_offset) if name.endswith("norm.weight") else array


def _check(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Written], config: DecoderConfig) -> None:
    """Reads back what will be written: a decoder that comes out as another one cannot be said in GGUF."""
    stored = {name: Stored(tensor.kind, tensor.shape, 0, 0) for name, tensor in tensors.items() if name != FACTORS}
    values = hf_config(Header(path, metadata, stored))
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "llama3":  # which is a tensor
        config = dataclasses.replace(config, rope_scaling=None)
    if differing := differences(config, decoder_config(values, str(path)), False):
        raise UserError(f"export: GGUF cannot say of this decoder: {', '.join(differing)}; {_ADVICE}")
