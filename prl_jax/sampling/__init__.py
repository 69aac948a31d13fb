"""Sampling responses: filters of the distribution, and the jitted decode loop."""

from prl_jax.sampling.decode import SamplingConfig, decode, generate, prefill, row_keys
from prl_jax.sampling.filters import filtered_log_probs, sample_categorical
from prl_jax.sampling.respond import EncodedPrompts, decode_responses, encode_prompts, respond

__all__ = [
    "EncodedPrompts",
    "SamplingConfig",
    "decode",
    "decode_responses",
    "encode_prompts",
    "filtered_log_probs",
    "generate",
    "prefill",
    "respond",
    "row_keys",
    "sample_categorical",
]
