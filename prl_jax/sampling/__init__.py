"""Sampling responses: filters of the distribution, the jitted decode loop, and how responses end."""

from prl_jax.sampling.config import WHOLE, SamplingConfig, Support, check_ids
from prl_jax.sampling.continuous import decode_queued, slots_of
from prl_jax.sampling.decode import decode, keys_of_rows, prefill, row_keys, tokens_of
from prl_jax.sampling.endings import StopReason, decode_responses, read_responses, reason_shares, stop_reasons
from prl_jax.sampling.filters import filtered_log_probs, sample_categorical
from prl_jax.sampling.generate import generate
from prl_jax.sampling.respond import EncodedPrompts, encode_prompts, respond, shortened, unpadded

__all__ = [
    "WHOLE",
    "EncodedPrompts",
    "SamplingConfig",
    "StopReason",
    "Support",
    "check_ids",
    "decode",
    "decode_queued",
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
    "slots_of",
    "stop_reasons",
    "tokens_of",
    "unpadded",
]
