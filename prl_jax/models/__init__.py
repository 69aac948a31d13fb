"""Decoders as pytrees."""

from prl_jax.models.cache import Cache
from prl_jax.models.config import DecoderConfig, LoraConfig, RopeScaling
from prl_jax.models.decoder import LOGICAL_AXES, Decoder
from prl_jax.models.heads import ScalarHead, ScalarModel, last_index, verdict_log_probs
from prl_jax.models.presets import PRESETS, preset

__all__ = [
    "LOGICAL_AXES",
    "PRESETS",
    "Cache",
    "Decoder",
    "DecoderConfig",
    "LoraConfig",
    "RopeScaling",
    "ScalarHead",
    "ScalarModel",
    "last_index",
    "preset",
    "verdict_log_probs",
]
