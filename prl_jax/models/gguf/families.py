"""Architectures of GGUF files as data: which keys say what, and what llama.cpp knows without a key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One `general.architecture`.

    Attributes:
      model_type: the family of Hugging Face checkpoints.
      keys: keys under the architecture's name that have one in `config.json`, beside those of `KEYS`.
      permuted: whether the rows of queries and keys are stored in the order of rotated pairs.
      period: of layers, the last has no window and the others have, where no key tells; 0 for no windows.
      window: of a file that does not say it; 0 for none.
      root_scale_layers: with this number of layers queries are scaled by the size of a head that `width / heads` would
        be; with any other by the real one.
    """

    model_type: str
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    permuted: bool = False
    period: int = 0
    window: int = 0
    root_scale_layers: int = 0


# Key under the architecture's name -> the key of `config.json` that says the same.
KEYS: Mapping[str, str] = MappingProxyType(
    {
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "attention.key_length": "head_dim",
        "rope.freq_base": "rope_theta",
    }
)
NEEDED = tuple(key for key in KEYS if key not in ("attention.head_count_kv", "attention.key_length", "rope.freq_base"))
# One number, or the same for each layer.
PER_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")
# Further keys, with the kind of their values.
OTHERS: Mapping[str, type] = MappingProxyType(
    {
        "vocab_size": int,
        "attention.value_length": int,
        "rope.dimension_count": int,
        "rope.scaling.type": str,
        "rope.scaling.factor": float,
        "rope.scaling.original_context_length": int,
        "rope.scaling.yarn_beta_fast": float,
        "rope.scaling.yarn_beta_slow": float,
    }
)
# Keys that must have one of these values: anything else is another model.
FIXED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "attention.causal": (True,),
        "expert_count": (0,),
        "expert_used_count": (0,),
        "rope.scaling.attn_factor": (1.0,),
        "rope.scaling.yarn_attn_factor": (1.0,),
        "rope.scaling.yarn_ext_factor": (1.0,),
        "rope.scaling.yarn_log_multiplier": (0.0,),
        "use_parallel_residual": (False,),
    }
)
INERT = ("rope.scaling.finetuned", "tensor_data_layout")
_GEMMA = {
    "attention.sliding_window": "sliding_window",
    "final_logit_softcapping": "final_logit_softcapping",
}
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": Architecture("llama", permuted=True),
        "qwen2": Architecture("qwen2"),
        "qwen3": Architecture("qwen3"),
        "gemma2": Architecture(
            "gemma2",
            {**_GEMMA, "attn_logit_softcapping": "attn_logit_softcapping"},
            period=2,
            window=4096,
            root_scale_layers=46,
        ),
        "gemma3": Architecture(
            "gemma3_text", {**_GEMMA, "rope.freq_base_swa": "rope_local_base_freq"}, period=6, root_scale_layers=62
        ),
    }
)
PATTERN = "attention.sliding_window_pattern"
# Where a file has no key of its own for it, llama.cpp takes these.
ROPE_THETA, LOCAL_THETA = 10_000.0, 10_000.0
