"""Families of Hugging Face checkpoints as data: what their `config.json` may say, and what a missing key means."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type`.

    Attributes:
      language_model, reward_model: class names in `architectures`.
      defaults: the keys that describe the model, with the values that transformers has for missing ones.
      features: fields of `DecoderConfig` that all models of the family share.
      pattern: for each layer whether it has the window, told without `layer_types`: "all", "none", "alternating" (even
        layers), "from" (`max_window_layers` on) or "every" (all but each `sliding_window_pattern`-th).
      whole_heads: transformers wants `hidden_size` to be a multiple of `num_attention_heads`, whatever `head_dim` is.
    """

    language_model: str
    reward_model: str
    defaults: Mapping[str, Any]
    features: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pattern: str = "none"
    whole_heads: bool = False

    @property
    def activation_key(self) -> str:
        return "hidden_activation" if "hidden_activation" in self.defaults else "hidden_act"


# Keys that are a field of `DecoderConfig` as they stand.
FIELDS = MappingProxyType(
    {
        "vocab_size": "vocab_size",
        "hidden_size": "width",
        "intermediate_size": "mlp_width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "head_dim": "head_dim",
        "rms_norm_eps": "norm_eps",
        "tie_word_embeddings": "tied_embeddings",
    }
)
ACTIVATIONS = MappingProxyType({"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"})
SLIDING, FULL = "sliding_attention", "full_attention"

_LLAMA = dict(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=None,
    head_dim=None,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    max_position_embeddings=2048,
    rope_theta=10_000.0,
    rope_scaling=None,
    rope_parameters=None,
)
_MISTRAL = dict(
    _LLAMA, intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072, sliding_window=4096
)
_QWEN2 = dict(
    _LLAMA,
    vocab_size=151936,
    intermediate_size=22016,
    num_key_value_heads=32,
    max_position_embeddings=32768,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
    layer_types=None,
)
_GEMMA2 = dict(
    {key: value for key, value in _LLAMA.items() if key != "hidden_act"},
    vocab_size=256000,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    hidden_activation="gelu_pytorch_tanh",
    tie_word_embeddings=True,
    max_position_embeddings=8192,
    attention_bias=False,
    query_pre_attn_scalar=256,
    sliding_window=4096,
    layer_types=None,
    final_logit_softcapping=30.0,
    attn_logit_softcapping=50.0,
)
_GEMMA3 = dict(
    {key: value for key, value in _GEMMA2.items() if key != "attn_logit_softcapping"},
    vocab_size=262208,
    max_position_embeddings=131072,
    final_logit_softcapping=None,
    rope_theta=1_000_000.0,
    rope_local_base_freq=10_000.0,
    sliding_window_pattern=6,
)
_GEMMA_FEATURES = dict(norm_offset=1.0, post_norms=True, embed_scale=True)

# In the order in which an export tries them.
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(
            "LlamaForCausalLM",
            "LlamaForSequenceClassification",
            dict(_LLAMA, attention_bias=False, mlp_bias=False),
            whole_heads=True,
        ),
        "mistral": Family("MistralForCausalLM", "MistralForSequenceClassification", _MISTRAL, pattern="all"),
        "qwen2": Family(
            "Qwen2ForCausalLM", "Qwen2ForSequenceClassification", _QWEN2, dict(qkv_bias=True), pattern="from"
        ),
        "qwen3": Family(
            "Qwen3ForCausalLM",
            "Qwen3ForSequenceClassification",
            dict(_QWEN2, head_dim=128, attention_bias=False),
            dict(qk_norm=True),
            pattern="from",
        ),
        "gemma2": Family(
            "Gemma2ForCausalLM",
            "Gemma2ForSequenceClassification",
            _GEMMA2,
            _GEMMA_FEATURES,
            pattern="alternating",
            whole_heads=True,
        ),
        "gemma3_text": Family(
            "Gemma3ForCausalLM",
            "Gemma3TextForSequenceClassification",
            _GEMMA3,
            dict(_GEMMA_FEATURES, qk_norm=True),
            pattern="every",
            whole_heads=True,
        ),
    }
)

# Keys that must have one of these values where they are given and not null: anything else is another model.
FIXED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "attention_bias": (False,),
        "attention_dropout": (0,),
        "attn_logit_softcapping": (None,),
        "chunk_size_feed_forward": (0,),
        "is_encoder_decoder": (False,),
        "add_cross_attention": (False,),
        "mlp_bias": (False,),
        "partial_rotary_factor": (1,),
        "rope_interleaved": (False,),
        "use_bidirectional_attention": (False,),
        "use_mrope": (False,),
    }
)

# What other programs note of their own begins with these.
BOOKKEEPING = ("unsloth_", "axolotl_")

# Keys that change no logits: bookkeeping, defaults of generation, names of labels, settings of other programs.
INERT = frozenset(
    {
        *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "transformers.js_config"),
        *("model_type", "architectures", "dtype", "torch_dtype", "initializer_range", "pretraining_tp"),
        *(
            "use_cache",
            "cache_implementation",
            "return_dict",
            "output_attentions",
            "output_hidden_states",
            "is_decoder",
        ),
        *("attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "is_llama_config"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id"),
        *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"),
        *("do_sample", "max_length", "max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty"),
    }
)
