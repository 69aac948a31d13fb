"""Sampling responses: filters of the distribution, the jitted decode loop, and how responses end."""

from prl_jax.sampling.config import WHOLE, SamplingConfig, Support, check_ids
from prl_jax.sampling.decode import decode, generate, keys_of_rows, prefill, row_keys, tokens_of
from prl_jax.sampling.endings import StopReason, decode_responses, read_responses, reason_shares, stop_reasons
from prl_jax.sampling.filters import filtered_log_probs, sample_categorical
from prl_jax.sampling.respond import EncodedPrompts, encode_prompts, respond, shortened

__all__ = [
    "WHOLE",
    "EncodedPrompts",
    "SamplingConfig",
    "StopReason",
    "Support",
    "check_ids",
    "decode",
    "decode_responses",
    "encode_prompts",
    "filtered_log_probs",
    "generate",
    "keys_of_rows",
    "prefill",
    "read_responses",
    "reason_shares",
    "respond",
    "row_keys",
    "sample_categorical",
    "shortened",
    "stop_reasons",
    "tokens_of",
]
