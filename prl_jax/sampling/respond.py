"""Responses as text to prompts as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int, PRNGKeyArray

from prl_jax.errors import UserError
from prl_jax.models import Decoder, MixedDecoder
from prl_jax.processes import batch_rows, fetch, put_batch
from prl_jax.sampling.config import SamplingConfig
from prl_jax.sampling.decode import generate, row_keys
from prl_jax.sampling.endings import read_responses
from prl_jax.text.chat import Prompt, encode_prompt, fit_prompt
from prl_jax.text.padding import pad_rows
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

    Row i draws from `fold_in(key, first_row + i)`, so that it does not matter how prompts are cut into batches.

    Returns:
      The texts, and the rollout of all `N` rows as numpy arrays, the same in every process.
    """
    encoded = encode_prompts(tokenizer, prompts, length=max_prompt, on_long=on_long)
    count, parts = len(prompts), []
    for batch, index in enumerate(batch_rows(count, batch_size, mesh)):
        tokens, mask = put_batch((encoded.tokens[index], encoded.mask[index]), mesh)
        keys = row_keys(key, first_row + batch * batch_size, batch_size)
        parts.append(fetch(generate(model, tokens, mask, keys, config=config), mesh))
    rollout = Rollout(*(np.concatenate(columns)[:count] for columns in zip(*parts, strict=True)))
    return read_responses(tokenizer, rollout, config)
