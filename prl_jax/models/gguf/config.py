"""Metadata of a GGUF file as the `config.json` that a Hugging Face checkpoint of the same model has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prl_jax.errors import UserError
from prl_jax.gguf_file import Header
from prl_jax.models.config import LARGEST
from prl_jax.models.gguf.families import (
    ARCHITECTURES,
    FIXED,
    INERT,
    KEYS,
    LOCAL_THETA,
    NEEDED,
    OTHERS,
    PATTERN,
    PER_LAYER,
    ROPE_THETA,
    Architecture,
)
from prl_jax.models.gguf.rope import FACTORS, read_scaling, scaling_of
from prl_jax.models.gguf.tensors import EMBEDDING, OUTPUT, read_tensor, readable
from prl_jax.models.hf.families import FAMILIES, FULL, SLIDING
from prl_jax.models.hf.values import KINDS, is_a, short

_MATRICES = 2  # axes of a tensor whose type tells how the parameters are stored
_ENDS = ("eos", "eot", "eom")
_INTEGERS = frozenset({"max_position_embeddings", "hidden_size", "num_hidden_layers", "intermediate_size"}) | frozenset(
    {"num_attention_heads", "num_key_value_heads", "head_dim", "sliding_window"}
)
BLOCKS = "block_count"


def architecture_of(header: Header) -> tuple[str, Architecture]:
    """Name and description of the architecture of a file.

    Raises:
      UserError: it is of another architecture, no language model, or one of several files.
    """
    said, path = header.metadata, header.path
    name = said.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UserError(
            f"{path}: general.architecture={short(name)} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    kind = said.get("general.type", "model")
    if not isinstance(kind, str) or kind != "model":
        raise UserError(f"{path}: general.type={short(kind)}, expected 'model': a language model with all its weights")
    parts = said.get("split.count", 1)
    if not isinstance(parts, int) or parts > 1:
        raise UserError(
            f"{path}: is one of {short(parts)} files of a model; join them with llama.cpp's llama-gguf-split --merge"
        )
    return name, ARCHITECTURES[name]


def hf_config(header: Header) -> dict[str, Any]:
    """The `config.json` of the model in a file, as far as it tells; `decoder_config` reads it.

    GGUF leaves out the activation, which follows from the family, and of Gemma the order of layers with a window, the
    rotary base of these and the scale of queries, for which llama.cpp has numbers of its own; these are here.

    Raises:
      UserError: names keys that are unknown, missing or have no such value.
    """
    name, known = architecture_of(header)
    said = _said(header, name, known)
    values: dict[str, Any] = {target: said[key] for key, target in {**KEYS, **known.keys}.items() if key in said}
    family, path = FAMILIES[known.model_type], header.path
    heads = values["num_attention_heads"]
    values.setdefault("num_key_value_heads", heads)
    values.setdefault("head_dim", max(values["hidden_size"] // heads, 1))
    values.setdefault("rope_theta", ROPE_THETA)
    for key in ("attention.value_length", "rope.dimension_count"):
        if said.get(key, values["head_dim"]) != values["head_dim"]:
            raise UserError(f"{path}: {name}.{key}={said[key]}, expected {values['head_dim']}, the size of a head")
    if EMBEDDING not in header.tensors:
        raise UserError(f"{path}: no tensor {EMBEDDING}; expected a whole language model")
    values["vocab_size"] = rows = header.tensors[EMBEDDING].shape[0]
    if said.get("vocab_size", rows) != rows:
        raise UserError(f"{path}: {name}.vocab_size={said['vocab_size']}, but {EMBEDDING} has {rows} rows")
    values["tie_word_embeddings"] = OUTPUT not in header.tensors
    if "attention_bias" in family.defaults:
        values["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    if "mlp_bias" in family.defaults:
        values["mlp_bias"] = "blk.0.ffn_down.bias" in header.tensors
    if (scaling := _scaling(header, said, values)) is not None:
        values["rope_scaling"] = scaling
    if known.period:
        values |= _gemma(said, known, values, f"{path}: {name}")
    stored = {tensor.kind for tensor in header.tensors.values() if len(tensor.shape) == _MATRICES}
    tokens = _tokens(header)
    return {
        "model_type": known.model_type,
        "architectures": [family.language_model],
        "torch_dtype": "bfloat16" if stored == {"BF16"} else "float32",
        **values,
        **tokens,
    }


def _said(header: Header, name: str, known: Architecture) -> dict[str, Any]:
    """Values of the keys under the architecture's name, each of its kind. All that cannot be taken is named at once."""
    prefix = f"{name}."
    said = {key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)}
    targets, wrong = {**KEYS, **known.keys}, []
    for key in NEEDED:
        if key not in said:
            wrong.append(f"{prefix}{key} is missing")
    for key, value in said.items():
        if key in INERT or (key == PATTERN and known.period):
            continue
        if isinstance(value, np.ndarray):  # of numbers for each layer
            value = value.tolist()
            said[key] = value = value[0] if key in PER_LAYER and len(set(value)) == 1 else value
        if key in FIXED:
            if value not in FIXED[key]:
                wrong.append(f"{prefix}{key}={short(value)} (supported: {FIXED[key][0]})")
        elif key in targets or key in OTHERS:
            kind = OTHERS.get(key) or (int if targets[key] in _INTEGERS else float)
            zero = kind is float and value == 0 and not isinstance(value, bool)  # no cap, no scaling
            if not (is_a(kind, value) or zero):
                wrong.append(f"{prefix}{key}={short(value)} (expected {KINDS[kind]})")
        else:
            wrong.append(f"{prefix}{key}={short(value)} (unknown)")
    if wrong:
        raise UserError(f"{header.path}: not supported: {'; '.join(wrong)}")
    if said[BLOCKS] > LARGEST["layers"]:  # before anything is made for each of them
        raise UserError(f"{header.path}: {prefix}{BLOCKS}={said[BLOCKS]}, expected at most {LARGEST['layers']}")
    return said


def _scaling(header: Header, said: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any] | None:
    where = str(header.path)
    scaling = read_scaling(said, where)
    if FACTORS not in header.tensors:
        return scaling
    if scaling is not None:
        raise UserError(f"{where}: has both rope.scaling.type={scaling['rope_type']!r} and {FACTORS}, expected one")
    size, factors = values["head_dim"] // 2, header.tensors[FACTORS]
    if factors.shape != (size,) or not readable(factors.kind):
        found = f"{list(factors.shape)} of type {factors.kind}"
        raise UserError(f"{where}: {FACTORS} {found}, expected {size} factors that the gguf library dequantises")
    return scaling_of(read_tensor(header, FACTORS), values["head_dim"], values["rope_theta"], where)


def _gemma(said: Mapping[str, Any], known: Architecture, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys of Gemma's windows, rotary bases and scales. Caps of 0 are none."""
    layers, found = range(values["num_hidden_layers"]), dict[str, Any]()
    window = values.get("sliding_window") or known.window
    pattern = said.get(PATTERN, known.period)
    if isinstance(pattern, np.ndarray):
        if len(pattern) != len(layers):
            raise UserError(f"{where}.{PATTERN} has {len(pattern)} entries, expected one for each of {len(layers)}")
        local = [bool(entry) for entry in pattern]
    elif is_a(int, pattern):
        local = [layer % pattern < pattern - 1 for layer in layers]
    else:
        raise UserError(f"{where}.{PATTERN}={short(pattern)}, expected a number of layers, or true or false for each")
    if not window:
        local, window = [False] * len(layers), values["max_position_embeddings"]
    if local != [layer % known.period < known.period - 1 for layer in layers]:
        found["layer_types"] = [SLIDING if windowed else FULL for windowed in local]
    found["sliding_window"] = window
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if key in values:
            found[key] = values[key] or None
    if "rope_local_base_freq" in FAMILIES[known.model_type].defaults:
        found["rope_local_base_freq"] = values.get("rope_local_base_freq") or LOCAL_THETA
    whole = len(layers) == known.root_scale_layers
    found["query_pre_attn_scalar"] = (
        values["hidden_size"] // values["num_attention_heads"] if whole else values["head_dim"]
    )
    return found


def _tokens(header: Header) -> dict[str, Any]:
    """The ids of `config.json`; several tokens may end a response."""
    ids = {
        name: header.metadata[key]
        for name in ("bos", "padding", *_ENDS)
        if (key := f"tokenizer.ggml.{name}_token_id") in header.metadata
    }
    for name, value in ids.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{header.path}: tokenizer.ggml.{name}_token_id={short(value)}, expected a token id")
    ends = list(dict.fromkeys(ids[name] for name in _ENDS if name in ids))
    found = {"bos_token_id": ids.get("bos"), "pad_token_id": ids.get("padding")}
    found["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    return {key: value for key, value in found.items() if value is not None}
