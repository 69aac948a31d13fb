"""Prefill and the jitted decode loop with a key-value cache."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from prl_jax.errors import UserError
from prl_jax.masked import without_ids
from prl_jax.models import CACHE_AXES, Cache, Decoder, Prefilled
from prl_jax.sampling.filters import filtered_log_probs, sample_categorical
from prl_jax.sharding import DECODING, constrain, constrain_tree
from prl_jax.types import Rollout

_COLDEST = 1e-30  # below it float32 loses the temperature itself


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How responses are sampled.

    Attributes:
      max_new_tokens: room of a response, the stop token included.
      temperature: 0 is greedy; log-probabilities are then those of temperature 1.
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: keep the smallest likeliest set of this probability.
      stop_ids: tokens that end a response and belong to it.
      pad_id: fills a response behind its stop token.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    pad_id: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise UserError(f"sampling: max_new_tokens={self.max_new_tokens}, expected at least 1")
        if not self.stop_ids:
            raise UserError("sampling: stop_ids is empty, expected the end-of-turn token at least")
        warm = self.temperature == 0 or _COLDEST <= self.temperature < math.inf
        if not (warm and 0 < self.top_p <= 1 and self.top_k >= 0):
            raise UserError(
                f"sampling: temperature={self.temperature} (0, or finite and at least {_COLDEST}), "
                f"top_p={self.top_p} (in (0, 1]), top_k={self.top_k} (>= 0) is out of range"
            )


def row_keys(key: PRNGKeyArray, first_row: int | Int[Array, ""], rows: int) -> Key[Array, "N"]:
    """A key for each global row: the same rows draw the same noise however they are spread over devices."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first_row + jnp.arange(rows))


class Sampled(NamedTuple):
    """The part of a `Rollout` that is sampled."""

    response: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    logp: Float[Array, "B T"]
    truncated: Bool[Array, "B"]


class _State(NamedTuple):
    index: Int[Array, ""]
    token: Int[Array, "B"]
    done: Bool[Array, "B"]
    cache: Cache
    response: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    logp: Float[Array, "B T"]


def generate(
    model: Decoder,
    prompt: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    keys: Key[Array, "B"],
    *,
    config: SamplingConfig,
) -> Rollout:
    """Samples a response to every prompt.

    Args:
      model: the policy.
      prompt, prompt_mask: left-padded prompts and their valid tokens.
      keys: `[B]`, one a row (`row_keys`); the token at index t of a row draws from `fold_in(key, t)`, so a row's
        response depends on nothing but its own key and prompt.
      config: static; shapes depend on it alone, so calls with the same shapes compile once.
    """
    hidden, cache = prefill(model, prompt, prompt_mask, config=config)
    sampled, _ = decode(model, hidden, cache, keys, config=config)
    return Rollout(prompt, prompt_mask, *sampled)


@functools.partial(jax.jit, static_argnames="config")
def prefill(
    model: Decoder, prompt: Int[Array, "B P"], prompt_mask: Bool[Array, "B P"], *, config: SamplingConfig
) -> Prefilled:
    """The hidden state before the first token of the responses, and a cache with room for them."""
    return model.prefill(prompt, prompt_mask, room=config.max_new_tokens)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def decode(
    model: Decoder, hidden: Float[Array, "B D"], cache: Cache, keys: Key[Array, "B"], *, config: SamplingConfig
) -> tuple[Sampled, Cache]:
    """Samples token by token behind what `prefill` has read, until every row is done.

    The cache is donated and comes back as the last token left it, so that there is one.
    """
    model, cache = model.for_decoding(), constrain_tree(cache, CACHE_AXES)
    layers = model.layers()

    def body(state: _State) -> _State:
        hidden, cache = model.step(state.token, state.cache, layers)
        return _write(state._replace(cache=cache), *_draw(model, hidden, keys, state.index, config), config)

    batch, total = hidden.shape[0], config.max_new_tokens
    state = _State(
        index=jnp.int32(0),
        token=jnp.zeros((batch,), jnp.int32),
        done=jnp.zeros((batch,), bool),
        cache=cache,
        response=jnp.full((batch, total), config.pad_id, jnp.int32),
        mask=jnp.zeros((batch, total), bool),
        logp=jnp.zeros((batch, total), jnp.float32),
    )
    state = _write(state, *_draw(model, hidden, keys, state.index, config), config)
    state = jax.lax.while_loop(lambda s: (s.index < total) & ~jnp.all(s.done), body, state)
    sampled = Sampled(state.response, state.mask, state.logp, truncated=~state.done)
    return sampled, constrain_tree(state.cache, CACHE_AXES)


def _draw(
    model: Decoder, hidden: Float[Array, "B D"], keys: Key[Array, "B"], index: Int[Array, ""], config: SamplingConfig
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """The token at `index` of every row, and its log-probability."""
    hidden = constrain(hidden, "batch", "stream", rules=DECODING)
    # Each device draws for its rows.
    logits = constrain(constrain(model.logits(hidden), "batch", "vocab", rules=DECODING), "rows", "vocab")
    logits = without_ids(logits, model.config.unsampled)  # as in the trainer's log-probs
    if config.temperature == 0:
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        log_probs = filtered_log_probs(logits, temperature=config.temperature, top_k=config.top_k, top_p=config.top_p)
        uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, index)))(keys)
        token = sample_categorical(uniform, log_probs)
    return token, jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0]


def _write(state: _State, token: Int[Array, "B"], logp: Float[Array, "B"], config: SamplingConfig) -> _State:
    """Puts a drawn token at `state.index` of the rows that are not done."""
    live = ~state.done
    put = lambda row, value: jax.lax.dynamic_update_slice(row, value[:, None], (0, state.index))  # noqa: E731
    token = jnp.where(live, token, config.pad_id)
    return state._replace(
        index=state.index + 1,
        token=token,
        done=state.done | jnp.any(token[:, None] == jnp.asarray(config.stop_ids)[None], axis=1),
        response=put(state.response, token),
        mask=put(state.mask, live),
        logp=put(state.logp, jnp.where(live, logp, 0.0)),
    )
