"""Decoders as pytrees."""

from prl_jax.models.cache import CACHE_AXES, Cache, Prefilled
from prl_jax.models.config import DecoderConfig, LoraConfig, RopeScaling
from prl_jax.models.decoder import LOGICAL_AXES, Decoder
from prl_jax.models.gguf import from_gguf, to_gguf
from prl_jax.models.heads import (
    ScalarHead,
    ScalarModel,
    branch_log_probs,
    last_index,
    verdict_log_probs,
    with_param_dtype,
)
from prl_jax.models.hf import from_hf, to_hf
from prl_jax.models.lora import combine, merge, split, with_adapters, with_dropout, without_adapters
from prl_jax.models.mixture import MixedDecoder
from prl_jax.models.presets import PRESETS, preset

__all__ = [
    "CACHE_AXES",
    "LOGICAL_AXES",
    "PRESETS",
    "Cache",
    "Decoder",
    "DecoderConfig",
    "LoraConfig",
    "MixedDecoder",
    "Prefilled",
    "RopeScaling",
    "ScalarHead",
    "ScalarModel",
    "branch_log_probs",
    "combine",
    "from_gguf",
    "from_hf",
    "last_index",
    "merge",
    "preset",
    "split",
    "to_gguf",
    "to_hf",
    "verdict_log_probs",
    "with_adapters",
    "with_dropout",
    "with_param_dtype",
    "without_adapters",
]
