"""Tiny checkpoints of every family and option, with weights that follow from their names alone."""

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from prl_jax.models.hf import decoder_config, is_reward_model
from prl_jax.models.hf.tensors import make_model, parameters

VOCAB, LENGTH = 40, 24
_SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
_LLAMA3 = dict(
    rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
_YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=256)


def _config(model_type: str, architecture: str, **keys: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [f"{architecture}ForCausalLM"], **_SIZES, **keys}


def _llama(**keys: Any) -> dict[str, Any]:
    return _config("llama", "Llama", **{"rope_theta": 10000.0, "tie_word_embeddings": False, **keys})


def _mistral(**keys: Any) -> dict[str, Any]:
    return _config("mistral", "Mistral", **{"rope_theta": 1e4, "sliding_window": 5, **keys})


def _qwen2(**keys: Any) -> dict[str, Any]:
    return _config("qwen2", "Qwen2", **{"rope_theta": 1e6, "use_sliding_window": False, "sliding_window": 5, **keys})


def _qwen3(**keys: Any) -> dict[str, Any]:
    return _config("qwen3", "Qwen3", **{"rope_theta": 1e6, "head_dim": 16, **keys})


def _gemma2(**keys: Any) -> dict[str, Any]:
    own = dict(head_dim=16, query_pre_attn_scalar=24, sliding_window=5, hidden_activation="gelu_pytorch_tanh")
    caps = dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
    return _config("gemma2", "Gemma2", **{"rope_theta": 1e4, **own, **caps, **keys})


def _gemma3(**keys: Any) -> dict[str, Any]:
    own = dict(head_dim=16, query_pre_attn_scalar=24, sliding_window=5, hidden_activation="gelu_pytorch_tanh")
    return _config("gemma3_text", "Gemma3", **{"sliding_window_pattern": 3, **own, **keys})


CASES: dict[str, dict[str, Any]] = {
    "llama": _llama(),
    "llama-tied": _llama(tie_word_embeddings=True),  # SmolLM
    "llama-multi-head": _llama(num_key_value_heads=4, rope_theta=5e5),
    "llama-biases": _llama(attention_bias=True, mlp_bias=True),
    "llama-head-dim": _llama(head_dim=12),
    "llama-gelu": _llama(hidden_act="gelu_pytorch_tanh"),
    "llama-linear": _llama(rope_scaling={"type": "linear", "factor": 3.0}),
    "llama-llama3": _llama(rope_scaling=_LLAMA3),
    "llama-yarn": _llama(head_dim=16, rope_scaling=_YARN),
    "llama-yarn-mscale": _llama(
        head_dim=16, rope_scaling={**_YARN, "mscale": 1.4, "mscale_all_dim": 0.6, "beta_fast": 4.0}
    ),
    "llama-yarn-factor": _llama(
        head_dim=16, rope_scaling={**_YARN, "attention_factor": 1.3, "truncate": False, "beta_slow": 0.5}
    ),
    "llama-rope-parameters": _llama(rope_theta=None, rope_parameters={"rope_theta": 3e4, **_LLAMA3}),
    "mistral": _mistral(),
    "mistral-no-window": _mistral(sliding_window=None),
    "mistral-head-dim": _mistral(head_dim=16, tie_word_embeddings=True),
    "qwen2": _qwen2(),
    "qwen2-tied": _qwen2(tie_word_embeddings=True),
    "qwen2-window": _qwen2(use_sliding_window=True, max_window_layers=1),
    "qwen2-yarn": _qwen2(rope_scaling=_YARN),
    "qwen3": _qwen3(),
    "qwen3-biases-tied": _qwen3(attention_bias=True, tie_word_embeddings=True),
    "qwen3-window": _qwen3(
        use_sliding_window=True,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gemma2": _gemma2(),
    "gemma2-biases": _gemma2(attention_bias=True, attn_logit_softcapping=None, final_logit_softcapping=None),
    "gemma2-untied": _gemma2(tie_word_embeddings=False, layer_types=["full_attention"] * 3),
    "gemma3": _gemma3(rope_theta=1e6, rope_local_base_freq=1e4),
    "gemma3-linear": _gemma3(
        rope_theta=1e6, rope_local_base_freq=1e3, rope_scaling={"factor": 8.0, "rope_type": "linear"}
    ),
    "gemma3-rope-parameters": _gemma3(
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
        },
        final_logit_softcapping=2.0,
        attention_bias=True,
    ),
}
for _case in CASES.values():  # a key that is null stands for one that is not there
    for _key in [key for key, value in _case.items() if value is None and key == "rope_theta"]:
        del _case[_key]

# One of each family in which every key of config.json counts.
_MORE = dict(
    max_position_embeddings=32,  # the context of pre-training, where rope_scaling does not tell it
    rope_scaling=dict(rope_type="yarn", factor=4.0, beta_fast=8.0, beta_slow=0.5, truncate=False),
    head_dim=16,
)
BASES = {
    "llama": {**CASES["llama-biases"], **_MORE},
    "mistral": {**CASES["mistral"], **_MORE},
    "qwen2": {**CASES["qwen2-window"], **_MORE},
    "qwen3": {**CASES["qwen2-window"], **_MORE, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
    "gemma2": {**CASES["gemma2"], **_MORE},
    "gemma3_text": {**CASES["gemma3"], **_MORE, "final_logit_softcapping": 2.0},
}


def reward_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same family with a head that gives one number."""
    name = config["architectures"][0].removesuffix("ForCausalLM")
    name = "Gemma3Text" if name == "Gemma3" else name
    labels = dict(id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    return {**config, "architectures": [f"{name}ForSequenceClassification"], **labels}


def tensors(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Float32 weights in the layout of the checkpoint: exact integers make them the same everywhere."""
    ours, reward = decoder_config(config, "test"), is_reward_model(config, "test")
    shapes = jax.eval_shape(lambda: make_model(ours, reward))
    found = {name: place.shape for place in parameters(shapes, ours).values() for name in place.names}
    offset = ours.norm_offset
    return {
        name: _values(name, shape, offset) for name, shape in found.items() if name != "lm_head.weight" or not reward
    }


def _values(name: str, shape: tuple[int, ...], offset: float) -> np.ndarray:
    """Numbers that look random, in a size that lets every weight count."""
    i, start = np.arange(math.prod(shape), dtype=np.uint64), np.uint64(zlib.crc32(name.encode()))
    mixed = (i * i * np.uint64(2654435761) + i * np.uint64(40503) + start * np.uint64(97)) % np.uint64(2**32)
    uniform = (mixed.astype(np.float64) / 2**31 - 1.0).reshape(shape)
    if "norm" in name:
        return (1.0 - offset + 0.3 * uniform).astype(np.float32)
    scale = 0.4 if "embed" in name or name.endswith("bias") else 2.5 * shape[-1] ** -0.5
    return (scale * uniform).astype(np.float32)


def write(folder: Path, config: Mapping[str, Any], dtype: str = "float32", **changed: np.ndarray | None) -> Path:
    """A checkpoint directory. `changed` replaces tensors by name, or leaves them out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": dtype}))
    arrays = {**{name: array.astype(dtype) for name, array in tensors(config).items()}, **changed}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def rows() -> np.ndarray:
    """Two rows of tokens, longer than any window here. No pad, begin or end tokens in them."""
    return 3 + (np.arange(2 * LENGTH).reshape(2, LENGTH) ** 2 * 7 + 5) % (VOCAB - 3)
