"""Continuous batching: a finished row leaves the decode loop, and a prompt that waits takes its place.

Where every batch decodes until its longest response ends, a device computes tokens that nobody reads: with one response
of 512 tokens among many of 60, most of them. Here prompts form a queue, and the loop has `slots` rows at any time but
the end. A row draws from its own key, so that its response is what it would be in a batch that is decoded as a whole.

All rows write their keys and values at the same place of the cache, which makes a write one slice. The cache is a ring:
a prompt that enters stands right in front of that place, and its row has ended before the ring comes round to it.

Source: iteration-level scheduling of Orca (Yu et al., OSDI 2022); the ring, and the loop on the device, are our own.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from prl_jax.models import Cache, Decoder, MixedDecoder
from prl_jax.sampling.config import SamplingConfig
from prl_jax.sampling.decode import Sampled, Written, draw, tokens_of, uniform_noise, unwritten
from prl_jax.sharding import parts, platform

# A step of decoding reads the parameters; from so many rows on, what is computed and read for each row takes longer.
_CPU_SLOTS, _SLOTS = 32, 256
_SHORTEST = 64  # tokens: below, responses differ by too few for more, smaller steps
_ENTERING = 8  # this part of the slots is refilled at once: fewer wait for a refill, more make its prefill efficient


def slots_of(rows: int, room: int, group: int = 1) -> int:
    """The rows that the decode loop has at once to give `rows` responses of up to `room` tokens, `group` to a prompt;
    `rows` is all of them.

    Where the mesh in use cuts rows, each device has some of its own, and all of them go on until the last one has
    ended.
    """
    if parts("rows") > 1 or room < _SHORTEST:
        return rows
    return min(rows, max(_CPU_SLOTS if platform() == "cpu" else _SLOTS, 4 * group))


class _State(NamedTuple):
    """The decode loop.

    Attributes:
      next: the first response that still waits.
      row: the response in each slot; `N` where there is none.
      hidden: the state before the next token of each slot.
      written, cache: of the slots.
      found: all responses; what is in a slot is missing.
    """

    next: Int[Array, ""]
    row: Int[Array, "B"]
    hidden: Float[Array, "B D"]
    written: Written
    cache: Cache
    found: Sampled


@functools.partial(jax.jit, static_argnames=("config", "slots", "group"))
def decode_queued(
    model: Decoder | MixedDecoder,
    prompt: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    keys: Key[Array, "N"],
    *,
    config: SamplingConfig,
    slots: int,
    group: int = 1,
) -> Sampled:
    """Samples `group` responses to each prompt, with at most `slots` responses in the decode loop at any time.

    Args:
      model, prompt, prompt_mask, keys, config, group: as of `generate`.
      slots: static, at least `group`; the cache has so many rows.
    """
    model, count = model.for_decoding(), len(keys)
    layers, noise = model.layers(), uniform_noise(keys, config.max_new_tokens)
    groups = max(slots // (_ENTERING * group), 1)  # which enter at once
    entering = groups * group

    def enter(state: _State) -> _State:
        """Waiting prompts in free slots; the responses that had been there go where they belong."""
        found = _collected(state, config)
        (places,) = jnp.nonzero(~state.written.live, size=entering, fill_value=slots)
        rows = state.next + jnp.arange(entering)
        places = jnp.where(rows < count, places, slots)  # nothing is put behind the last slot
        part = jnp.minimum(state.next // group + jnp.arange(groups), len(prompt) - 1)
        new = _begun(model, prompt[part], prompt_mask[part], state.cache.slot, group, config)
        put = lambda old, new: old.at[places].set(new, mode="drop") if old.ndim else old  # noqa: E731
        hidden, written, cache = jax.tree.map(put, (state.hidden, state.written, state.cache), new)
        row = state.row.at[places].set(rows, mode="drop")
        return _State(jnp.minimum(state.next + entering, count), row, hidden, written, cache, found)

    def advance(state: _State) -> _State:
        """Another token in each live row."""
        its = noise[state.row, jnp.minimum(state.written.index, config.max_new_tokens - 1)]
        written = draw(model, state.hidden, its, state.written, config)
        hidden, cache = model.step(written.token, state.cache, layers)
        cache = cache._replace(slot=cache.slot % cache.mask.shape[1])
        return state._replace(hidden=hidden, written=written, cache=cache)

    def full(state: _State) -> Bool[Array, ""]:
        """Whether a row is live, and no prompt can enter."""
        free = jnp.sum(~state.written.live)
        return (free < slots) & ((free < entering) | (state.next >= count))

    state = _empty(model, prompt, count, slots, config)
    state = jax.lax.while_loop(
        lambda state: (state.next < count) | jnp.any(state.written.live),
        lambda state: jax.lax.while_loop(full, advance, enter(state)),
        state,
    )
    return _collected(state, config)


def _begun(
    model: Decoder | MixedDecoder,
    prompt: Int[Array, "E P"],
    prompt_mask: Bool[Array, "E P"],
    slot: Int[Array, ""],
    group: int,
    config: SamplingConfig,
) -> tuple[Float[Array, "N D"], Written, Cache]:
    """`group` rows of each prompt before their first token, in whose cache the prompt ends right in front of `slot`."""
    hidden, cache = model.prefill(prompt, prompt_mask, room=config.max_new_tokens)
    seen = None
    if config.repetition_penalty != 1.0:
        seen = tokens_of(prompt, prompt_mask, vocab=model.config.vocab_size)
    turn = functools.partial(jnp.roll, shift=slot - prompt.shape[1])
    cache = cache._replace(
        keys=tuple(turn(x, axis=3) for x in cache.keys),
        values=tuple(turn(x, axis=2) for x in cache.values),
        mask=turn(cache.mask, axis=1),
        slot=slot,
    )
    read = hidden, unwritten(len(prompt), seen, config), cache
    return jax.tree.map(lambda x: jnp.repeat(x, group, axis=0) if x.ndim else x, read)


def _empty(
    model: Decoder | MixedDecoder, prompt: Int[Array, "B P"], total: int, slots: int, config: SamplingConfig
) -> _State:
    """No row in any slot."""
    rows = jnp.zeros((slots, prompt.shape[1]), prompt.dtype), jnp.zeros((slots, prompt.shape[1]), bool)
    shapes = jax.eval_shape(lambda: _begun(model, *rows, jnp.int32(0), 1, config))
    hidden, written, cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    found = unwritten(total, None, config).sampled(config)
    written = written._replace(done=jnp.ones((slots,), bool))
    return _State(jnp.int32(0), jnp.full((slots,), total), hidden, written, cache, found)


def _collected(state: _State, config: SamplingConfig) -> Sampled:
    """The responses so far, with those of the rows that have ended."""
    rows = jnp.where(state.written.live, len(state.found.response), state.row)
    return jax.tree.map(
        lambda found, ended: found.at[rows].set(ended, mode="drop"), state.found, state.written.sampled(config)
    )
