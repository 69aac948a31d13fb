"""Decoders that give a number a token: critics and Bradley-Terry reward models."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from prl_jax.models.attention import BRANCHES
from prl_jax.models.config import DecoderConfig
from prl_jax.models.decoder import Decoder
from prl_jax.models.packing import pack
from prl_jax.sharding import SPREAD, constrain
from prl_jax.tree import flatten, unflatten
from prl_jax.types import TokenRows


class ScalarHead(nnx.Module):
    """A linear map to one float32 number, zero at the start but for its bias, if it has one."""

    def __init__(self, width: int, bias: float | None):
        self.weight = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.bias = None if bias is None else nnx.Param(jnp.full((), bias, jnp.float32))

    def __call__(self, hidden: Float[Array, "... D"]) -> Float[Array, "..."]:
        out = hidden.astype(jnp.float32) @ self.weight[...]
        return out if self.bias is None else out + self.bias[...]


class ScalarModel(nnx.Module):
    """A decoder with a scalar head in place of the output embedding.

    A critic has a bias, where its values start. A reward model has none: only differences of its scores mean anything.
    """

    def __init__(self, decoder: Decoder, *, bias: float | None = None):
        self.decoder = decoder
        self.scalar = ScalarHead(decoder.config.width, bias)

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config

    def values(self, rows: TokenRows) -> Float[Array, "B T"]:
        """A float32 number a token (a critic's values)."""
        return self.scalar(self.decoder.hidden(*rows))

    def score(self, rows: TokenRows, packed: int = 0) -> Float[Array, "B"]:
        """The number at the last valid token of each row (a reward), float32; `packed` as in `last_hidden`."""
        return self.scalar(last_hidden(self.decoder, rows, packed))


def verdict_log_probs(
    model: Decoder, rows: TokenRows, verdicts: tuple[int, int], packed: int = 0
) -> Float[Array, "B 2"]:
    """Log-probabilities of two tokens behind the last valid token of each row, over the whole vocabulary, float32;
    `packed` as in `last_hidden`."""
    return _log_probs(model, last_hidden(model, rows, packed), verdicts)


def branch_log_probs(
    model: Decoder, rows: TokenRows, verdicts: tuple[int, int], branches: int
) -> Float[Array, "B M 2"]:
    """Log-probabilities of two tokens as in `verdict_log_probs`, behind the last token of each of `M` branches.

    Args:
      model, verdicts: as of `verdict_log_probs`.
      rows: trees of so many `branches` each (`attention.BRANCHES`).
    """
    numbers = BRANCHES + 1 + jnp.arange(branches)
    last = [last_index(jnp.where(rows.segments == number, 1, 0)) for number in numbers]
    hidden = model.hidden_at(*rows, jnp.stack(last, axis=1))
    found = _log_probs(model, hidden.reshape(-1, hidden.shape[-1]), verdicts)
    return found.reshape(*hidden.shape[:2], 2)


def _log_probs(model: Decoder, hidden: Float[Array, "B D"], verdicts: tuple[int, int]) -> Float[Array, "B 2"]:
    hidden = constrain(hidden, "batch", "stream", rules=SPREAD)
    logits = constrain(model.logits(hidden), "batch", "vocab", rules=SPREAD)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return log_probs[:, jnp.array(verdicts)]


def last_hidden(model: Decoder, rows: TokenRows, packed: int = 0) -> Float[Array, "B D"]:
    """The final hidden state at the last valid token of each row.

    Args:
      model: a decoder.
      rows: of one segment each where they are packed.
      packed: how many rows the model reads these in (`packing.pack`); 0 for as they are.
    """
    if packed:
        together = pack(rows, packed)
        return together.at_last(model.hidden(*together.rows))
    return model.hidden_at(*rows, last_index(rows.segments)[:, None])[:, 0]


def last_index(segments: Int[Array, "B T"]) -> Int[Array, "B"]:
    """Index of the last valid token of each row, told by the mask and never by the pad token."""
    length = segments.shape[1]
    return length - 1 - jnp.argmax(segments[:, ::-1] > 0, axis=1)


Model = TypeVar("Model", Decoder, ScalarModel)


def with_param_dtype(model: Model, dtype: str) -> Model:
    """The model with the parameters of its decoder in another dtype; scalar heads stay float32."""
    decoder = model.decoder if isinstance(model, ScalarModel) else model
    config = dataclasses.replace(decoder.config, param_dtype=dtype)
    like = jax.eval_shape(lambda: Decoder(config, key=jax.random.key(0)))
    arrays = flatten(decoder)
    decoder = unflatten(like, {name: arrays[name].astype(leaf.dtype) for name, leaf in flatten(like).items()})
    if not isinstance(model, ScalarModel):
        return decoder
    out = ScalarModel(decoder)
    out.scalar = model.scalar
    return out
