"""Responses as text to prompts as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int, PRNGKeyArray

from prl_jax.errors import UserError
from prl_jax.models import Decoder, MixedDecoder
from prl_jax.processes import batch_rows, fetch, put_batch
from prl_jax.sampling.config import SamplingConfig
from prl_jax.sampling.decode import keys_of_rows
from prl_jax.sampling.endings import read_responses
from prl_jax.sampling.generate import generate
from prl_jax.text.chat import Prompt, encode_prompt, fit_prompt
from prl_jax.text.padding import pad_rows, static_length
from prl_jax.text.tokenizer import Tokenizer
from prl_jax.types import Rollout


class EncodedPrompts(NamedTuple):
    """Left-padded prompts.

    Attributes:
      tokens: `[N, P]` int32.
      mask: `[N, P]` bool.
      truncated: `[N]` bool, of which of them contents were cut.
    """

    tokens: Int[np.ndarray, "N P"]
    mask: Bool[np.ndarray, "N P"]
    truncated: Bool[np.ndarray, "N"]


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], *, length: int, on_long: str = "truncate"
) -> EncodedPrompts:
    """Encodes prompts to `length` tokens; longer ones lose the beginning of their contents (`fit_turns`), or raise with
    `on_long="error"`."""
    for i, prompt in enumerate(prompts if on_long == "error" else ()):
        ids = encode_prompt(tokenizer, prompt)
        if len(ids) > length:
            raise UserError(
                f"prompt {i + 1} has {len(ids)} tokens, the model's context has room for {length}; shorten it"
            )
    cut = [fit_prompt(tokenizer, prompt, length) for prompt in prompts]
    rows = pad_rows([ids for ids, _ in cut], length, pad_id=tokenizer.pad_id, side="left")
    return EncodedPrompts(rows.tokens, rows.segments > 0, np.array([was for _, was in cut], bool))


def respond(
    model: Decoder | MixedDecoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    config: SamplingConfig,
    key: PRNGKeyArray,
    max_prompt: int,
    batch_size: int,
    mesh: Mesh,
    on_long: str = "truncate",
    first_row: int = 0,
) -> tuple[list[str], Rollout]:
    """A response to every prompt, in batches of one static shape.

    Row i draws from `fold_in(key, first_row + i)`, so that it does not matter how prompts are cut into batches. Prompts
    of about the same length share one, which is no longer than they need.

    Returns:
      The texts, and the rollout of all `N` rows as numpy arrays, the same in every process.
    """
    encoded = encode_prompts(tokenizer, prompts, length=max_prompt, on_long=on_long)
    order, count, parts = np.argsort(encoded.mask.sum(1), kind="stable"), len(prompts), []
    for batch, index in enumerate(batch_rows(count, batch_size, mesh)):
        rows = order[np.minimum(batch * batch_size + np.arange(batch_size), count - 1)]
        part = shortened(encoded, int(encoded.mask[rows].sum(1).max()))
        tokens, mask = put_batch((part.tokens[order[index]], part.mask[order[index]]), mesh)
        keys = keys_of_rows(key, jnp.asarray(first_row + rows))
        found = fetch(generate(model, tokens, mask, keys, config=config), mesh)
        left = [(0, 0), (max_prompt - tokens.shape[1], 0)]
        padded = dict(prompt=np.pad(found.prompt, left, constant_values=tokenizer.pad_id))
        parts.append(found._replace(**padded, prompt_mask=np.pad(found.prompt_mask, left)))
    back = np.argsort(order, kind="stable")
    rollout = Rollout(*(np.concatenate(columns)[:count][back] for columns in zip(*parts, strict=True)))
    return read_responses(tokenizer, rollout, config)


def unpadded(rollout: Rollout, longest: int) -> Rollout:
    """A rollout without the padding that a longest response of so many tokens leaves in all (`static_length`)."""
    length = static_length(longest, rollout.response.shape[1])
    if length == rollout.response.shape[1]:
        return rollout
    parts = (part[:, :length] for part in (rollout.response, rollout.mask, rollout.logp))
    return Rollout(rollout.prompt, rollout.prompt_mask, *parts, rollout.truncated)


def shortened(encoded: EncodedPrompts, longest: int) -> EncodedPrompts:
    """Prompts without the padding that a longest one of so many tokens leaves in all (`static_length`)."""
    length = static_length(longest, encoded.tokens.shape[1])
    return encoded._replace(tokens=encoded.tokens[:, -length:], mask=encoded.mask[:, -length:])
