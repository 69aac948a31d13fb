"""Tiny GGUF files of the tests' checkpoints, as llama.cpp's converter writes them."""

import itertools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import hf_checkpoints
import jax.numpy as jnp
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

_TICKS = itertools.count()
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3_text": "gemma3"}
_LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
_GEMMA = dict(query_pre_attn_scalar=16, num_hidden_layers=3)
_C = hf_checkpoints.CASES
# What GGUF can say; Gemma's query scale and local base are those that llama.cpp takes.
CASES: dict[str, dict[str, Any]] = {
    **{name: _C[name] for name in ("llama", "llama-tied", "llama-multi-head", "llama-biases", "llama-linear")},
    "llama-llama3": {**_C["llama"], "head_dim": 32, "rope_scaling": _LLAMA3},
    "llama-yarn": {
        **_C["llama-yarn"],
        "rope_scaling": {**_C["llama-yarn"]["rope_scaling"], "beta_fast": 16.0, "beta_slow": 2.0},
    },
    **{name: _C[name] for name in ("qwen2", "qwen2-tied", "qwen2-yarn", "qwen3")},
    "gemma2": {**_C["gemma2"], **_GEMMA},
    "gemma3": {**_C["gemma3"], **_GEMMA, "sliding_window_pattern": 6, "num_hidden_layers": 7},
    "gemma3-linear": {**_C["gemma3-linear"], **_GEMMA, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6},
    "gemma3-pattern": {**_C["gemma3"], **_GEMMA, "sliding_window_pattern": 3, "rope_local_base_freq": 2e4},
}


def write(
    path: Path,
    config: Mapping[str, Any],
    kind: str = "F32",
    *,
    tokens: Mapping[str, Any] | None = None,
    changed: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
) -> Path:
    """A file with the weights of `hf_checkpoints.tensors`, matrices in a type of ggml, vectors in float32.

    `tokens` are keys of the tokenizer, `changed` replaces keys of metadata or leaves them out, `tensors` does so by
    names of GGUF.
    """
    writer = GGUFWriter(path, ARCHITECTURES[config["model_type"]])
    said = {**metadata(config), **(tokens or {}), **(changed or {})}
    for key, value in said.items():
        add(writer, key, value)
    for name, array in {**stored(config), **(tensors or {})}.items():
        if array is None:
            continue
        raw = GGMLQuantizationType[kind] if array.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(name, encoded(array, raw), raw_dtype=raw)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tick = next(_TICKS)  # clocks of file systems are slower than these tests, and headers are kept by size and time
    os.utime(path, ns=(tick, tick))
    return path


def encoded(array: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    if kind == GGMLQuantizationType.BF16:
        return array.astype(jnp.bfloat16).view(np.uint8)
    return gguf.quantize(np.ascontiguousarray(array, np.float32), kind)


def decoded(array: np.ndarray, kind: str) -> np.ndarray:
    """What is left of a matrix that is stored in a type."""
    raw = GGMLQuantizationType[kind]
    data = encoded(array, raw)
    if raw == GGMLQuantizationType.F16:
        return data.astype(np.float32)
    return array if raw == GGMLQuantizationType.F32 else gguf.dequantize(data.view(np.uint8), raw)


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    """One pair of metadata, of the type that llama.cpp expects; None leaves it out."""
    if value is None or key == "general.architecture":
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, np.ndarray):
        kind = GGUFValueType.FLOAT32 if value.dtype.kind == "f" else GGUFValueType.INT32
        writer.add_key_value(key, value.tolist(), GGUFValueType.ARRAY, sub_type=kind)
    else:
        writer.add_array(key, value)


def metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a model, as `convert_hf_to_gguf.py` chooses them."""
    arch, width, heads = ARCHITECTURES[config["model_type"]], config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or width // heads
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    keys = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": width,
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.freq_base": float(config.get("rope_theta", 1e6)),
        "rope.scaling.type": kind if kind in ("linear", "yarn") else None,
        "rope.scaling.factor": scaling.get("factor") if kind in ("linear", "yarn") else None,
        "rope.scaling.original_context_length": scaling.get("original_max_position_embeddings")
        if kind == "yarn"
        else None,
        "rope.scaling.yarn_beta_fast": scaling.get("beta_fast"),
        "rope.scaling.yarn_beta_slow": scaling.get("beta_slow"),
    }
    if arch == "llama":
        keys |= {"vocab_size": config["vocab_size"], "rope.dimension_count": head_dim}
    if arch.startswith("gemma"):
        keys |= {name: config.get(name) for name in ("attn_logit_softcapping", "final_logit_softcapping")}
        keys["attention.sliding_window"] = config["sliding_window"]
    if arch == "gemma3":
        every, theta = config["sliding_window_pattern"], config["rope_local_base_freq"]
        keys["attention.sliding_window_pattern"] = every if every != 6 else None
        keys["rope.freq_base_swa"] = theta if theta != 1e4 else None
    return {f"{arch}.{key}": value for key, value in keys.items() if value is not None}


def stored(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by their names in GGUF and as it has them, in float32."""
    arch, layers = ARCHITECTURES[config["model_type"]], config["num_hidden_layers"]
    known = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names, found = gguf.get_tensor_name_map(known, layers), {}
    for name, array in (arrays or hf_checkpoints.tensors(config)).items():
        array = np.asarray(array, np.float32)
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        found[names.get_name(name, try_suffixes=(".weight", ".bias"))] = array
    if (config.get("rope_scaling") or {}).get("rope_type") == "llama3":
        found["rope_freqs.weight"] = factors(config)
    return found


def factors(config: Mapping[str, Any]) -> np.ndarray:
    """llama.cpp's factors of Llama 3's frequencies, wavelength by wavelength."""
    scaling, head_dim = config["rope_scaling"], config.get("head_dim") or 8
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context, found = scaling["original_max_position_embeddings"], []
    for frequency in 1.0 / config["rope_theta"] ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim):
        length = 2 * math.pi / frequency
        if length < context / high:
            found.append(1.0)
        elif length > context / low:
            found.append(scaling["factor"])
        else:
            smooth = (context / length - low) / (high - low)
            found.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(found, np.float32)


def tokens_of(directory: Path, pre: str | None = None) -> dict[str, Any]:
    """The keys of the tokenizer in a Hugging Face directory; byte-level where `pre` names how it cuts text."""
    saved = json.loads((directory / "tokenizer.json").read_text())
    config = json.loads((directory / "tokenizer_config.json").read_text())
    vocab = dict(saved["model"]["vocab"])
    added = {token["content"]: token for token in saved["added_tokens"]}
    vocab |= {content: token["id"] for content, token in added.items()}
    tokens = sorted(vocab, key=vocab.__getitem__)
    types = [(3 if added[t]["special"] else 4) if t in added else 6 if t.startswith("<0x") else 1 for t in tokens]
    found = {"model": "gpt2" if pre else "llama", "pre": pre, "tokens": tokens, "token_type": np.array(types, np.int32)}
    if pre:
        found["merges"] = [" ".join(pair) for pair in saved["model"]["merges"]]
    else:
        found["scores"] = -np.arange(len(tokens), dtype=np.float32)
    for key, name in (("bos", "bos_token"), ("eos", "eos_token"), ("padding", "pad_token"), ("unknown", "unk_token")):
        if isinstance(config.get(name), str):
            found[f"{key}_token_id"] = vocab[config[name]]
    template = directory / "chat_template.jinja"
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()} | {
        "tokenizer.chat_template": template.read_text() if template.exists() else None
    }
