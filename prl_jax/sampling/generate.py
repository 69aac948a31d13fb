"""Rollouts: responses to prompts of one batch."""

from __future__ import annotations

from jaxtyping import Array, Bool, Int, Key

from prl_jax.models import Decoder, MixedDecoder
from prl_jax.sampling.config import SamplingConfig
from prl_jax.sampling.continuous import decode_queued, slots_of
from prl_jax.sampling.decode import decode, prefill, repeated, tokens_of
from prl_jax.types import Rollout


def generate(
    model: Decoder | MixedDecoder,
    prompt: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    keys: Key[Array, "N"],
    *,
    config: SamplingConfig,
    group: int = 1,
) -> Rollout:
    """Samples responses to every prompt, which is read once for all of them.

    Args:
      model: the policy, or a mixture of it with another one.
      prompt, prompt_mask: left-padded prompts and their valid tokens.
      keys: one a row (`row_keys`); the token at index t of a row draws from `fold_in(key, t)`, so a row's response
        depends on nothing but its own key and prompt.
      config: static; shapes depend on it alone, so calls with the same shapes compile once.
      group: responses to a prompt, which stand next to each other: `N` is `group` times `B`.
    """
    slots, of_rows = slots_of(len(keys), config.max_new_tokens, group), (prompt, prompt_mask)
    if group > 1:
        of_rows = tuple(repeated(x, group) for x in of_rows)
    if slots < len(keys):
        queued = decode_queued(model, prompt, prompt_mask, keys, config=config, slots=slots, group=group)
        return Rollout(*of_rows, *queued)
    hidden, cache = prefill(model, prompt, prompt_mask, config=config, group=group)
    seen = None
    if config.repetition_penalty != 1.0:
        seen = tokens_of(*of_rows, vocab=model.config.vocab_size)
    sampled, _ = decode(model, hidden, cache, keys, seen, config=config)
    return Rollout(*of_rows, *sampled)
