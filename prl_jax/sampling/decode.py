"""Prefill and the jitted decode loop with a key-value cache."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, Shaped

from prl_jax.masked import without_ids
from prl_jax.models import CACHE_AXES, Cache, Decoder, MixedDecoder, Prefilled
from prl_jax.sampling.config import SamplingConfig, Support
from prl_jax.sampling.filters import filtered_log_probs, penalised, sample_categorical
from prl_jax.sharding import DECODING, constrain, constrain_tree
from prl_jax.text.tokenizer import IdRanges


def row_keys(key: PRNGKeyArray, first_row: int | Int[Array, ""], rows: int) -> Key[Array, "N"]:
    """A key for each global row: the same rows draw the same noise however they are spread over devices."""
    return keys_of_rows(key, first_row + jnp.arange(rows))


def keys_of_rows(key: PRNGKeyArray, rows: Int[Array, "N"]) -> Key[Array, "N"]:
    """The keys of global rows of these numbers."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(rows)


class Sampled(NamedTuple):
    """The part of a `Rollout` that is sampled."""

    response: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    logp: Float[Array, "B T"]
    truncated: Bool[Array, "B"]


class Written(NamedTuple):
    """The responses of the rows in the middle of decoding.

    Attributes:
      index: of the token that each row draws next: how many it has.
      token, done: the last one of each row, and whether the row has ended before it ran out of room.
      response, mask, logp: the tokens so far.
      seen: `[B, V]`, tokens that prompt or response have; None without a repetition penalty.
      runs: `[B, N]`, how many of the last tokens are what they were 1 to N tokens before; None where repetition is
        allowed.
    """

    index: Int[Array, "B"]
    token: Int[Array, "B"]
    done: Bool[Array, "B"]
    response: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    logp: Float[Array, "B T"]
    seen: Bool[Array, "B V"] | None
    runs: Int[Array, "B N"] | None

    @property
    def live(self) -> Bool[Array, "B"]:
        """The rows that draw another token."""
        return ~self.done & (self.index < self.response.shape[1])

    def sampled(self, config: SamplingConfig) -> Sampled:
        """The responses; those of rows that are live are not whole yet."""
        truncated = ~self.done
        if self.runs is not None:
            truncated |= _repeats(self.runs, config.repetition_times)
        return Sampled(self.response, self.mask, self.logp, truncated)


def unwritten(rows: int, seen: Bool[Array, "B V"] | None, config: SamplingConfig) -> Written:
    """Responses without a token."""
    total = config.max_new_tokens
    return Written(
        index=jnp.zeros((rows,), jnp.int32),
        token=jnp.zeros((rows,), jnp.int32),
        done=jnp.zeros((rows,), bool),
        response=jnp.full((rows, total), config.pad_id, jnp.int32),
        mask=jnp.zeros((rows, total), bool),
        logp=jnp.zeros((rows, total), jnp.float32),
        seen=seen,
        runs=jnp.zeros((rows, config.repetition_ngram), jnp.int32) if config.repetition_ngram else None,
    )


@functools.partial(jax.jit, static_argnames="vocab")
def tokens_of(prompt: Int[Array, "B P"], prompt_mask: Bool[Array, "B P"], *, vocab: int) -> Bool[Array, "B V"]:
    """Whether each prompt has each token, for the repetition penalty."""
    count, tokens = prompt.shape[0], jnp.where(prompt_mask, prompt, vocab)
    return jnp.zeros((count, vocab), bool).at[jnp.arange(count)[:, None], tokens].set(True, mode="drop")


@functools.partial(jax.jit, static_argnames=("config", "group"))
def prefill(
    model: Decoder | MixedDecoder,
    prompt: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    *,
    config: SamplingConfig,
    group: int = 1,
) -> Prefilled:
    """The hidden state before the first token of the responses, and a cache with room for them; `group` of each."""
    found = model.prefill(prompt, prompt_mask, room=config.max_new_tokens)
    if group == 1:
        return found
    fanned = jax.tree.map(lambda x: jnp.repeat(x, group, axis=0) if x.ndim else x, found)
    return constrain_tree(fanned, CACHE_AXES)


@functools.partial(jax.jit, static_argnames="group")
def repeated(x: Shaped[Array, "B *rest"], group: int) -> Shaped[Array, "N *rest"]:
    """Each row `group` times."""
    return jnp.repeat(x, group, axis=0)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def decode(
    model: Decoder | MixedDecoder,
    hidden: Float[Array, "B D"],
    cache: Cache,
    keys: Key[Array, "B"],
    seen: Bool[Array, "B V"] | None = None,
    *,
    config: SamplingConfig,
) -> tuple[Sampled, Cache]:
    """Samples token by token behind what `prefill` has read, until every row is done.

    The cache is donated and comes back as the last token left it, so that there is one. `seen` are the tokens of the
    prompts (`tokens_of`), for a repetition penalty.
    """
    model, cache = model.for_decoding(), constrain_tree(cache, CACHE_AXES)
    layers = model.layers()

    def body(state: tuple[Int[Array, ""], Written, Cache]) -> tuple[Int[Array, ""], Written, Cache]:
        tokens, written, cache = state
        hidden, cache = model.step(written.token, cache, layers)
        return tokens + 1, draw(model, hidden, noise_at(written.index), written, config), cache

    noise = uniform_noise(keys, config.max_new_tokens)
    noise_at = lambda index: jnp.take_along_axis(noise, index[:, None], axis=1, mode="clip")[:, 0]  # noqa: E731
    written = unwritten(hidden.shape[0], seen, config)
    written = draw(model, hidden, noise[:, 0], written, config)
    # No row has room for more tokens; `prl plan` reads there how long the loop is.
    goes_on = lambda state: (state[0] < config.max_new_tokens) & jnp.any(state[1].live)  # noqa: E731
    _, written, cache = jax.lax.while_loop(goes_on, body, (jnp.int32(1), written, cache))
    return written.sampled(config), constrain_tree(cache, CACHE_AXES)


def uniform_noise(keys: Key[Array, "B"], total: int) -> Float[Array, "B T"]:
    """Uniform numbers, one for each token of each row: inside the loop they would take a twentieth of its time."""
    one = lambda key, index: jax.random.uniform(jax.random.fold_in(key, index))  # noqa: E731
    whole = jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))
    return constrain(whole(keys, jnp.arange(total)), "rows", None)


def draw(
    model: Decoder | MixedDecoder,
    hidden: Float[Array, "B D"],
    noise: Float[Array, "B"],
    written: Written,
    config: SamplingConfig,
) -> Written:
    """The responses with the next token of every row that is live, drawn with a uniform number each."""
    hidden = constrain(hidden, "batch", "stream", rules=DECODING)
    # Each device draws for its rows.
    logits = constrain(constrain(model.logits(hidden), "batch", "vocab", rules=DECODING), "rows", "vocab")
    if written.seen is not None:
        logits = penalised(logits, written.seen, config.repetition_penalty)
    # As in the trainer's log-probs.
    logits = _without_absent(logits, written.index, model.config.unsampled, config.support)
    if config.temperature == 0:
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        filters = dict(top_k=config.top_k, top_p=config.top_p, min_p=config.min_p)
        log_probs = filtered_log_probs(logits, temperature=config.temperature, **filters)
        token = sample_categorical(noise, log_probs)
    return _write(written, token, jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0], config)


def _without_absent(
    logits: Float[Array, "B V"], index: Int[Array, "B"], unsampled: IdRanges, support: Support
) -> Float[Array, "B V"]:
    """Logits that leave no probability to what cannot be sampled as the token at `index`."""
    late = without_ids(logits, support.absent(unsampled))
    if not support.min_new_tokens:
        return late
    early = without_ids(logits, support.absent(unsampled, early=True))
    return jnp.where(index[:, None] < support.min_new_tokens, early, late)


def _write(state: Written, token: Int[Array, "B"], logp: Float[Array, "B"], config: SamplingConfig) -> Written:
    """Puts a drawn token at `state.index` of the rows that are live."""
    live = state.live
    here = (jnp.arange(state.response.shape[1])[None] == state.index[:, None]) & live[:, None]
    put = lambda row, value: jnp.where(here, value[:, None], row)  # noqa: E731
    token = jnp.where(live, token, config.pad_id)
    done = state.done | (live & jnp.any(token[:, None] == jnp.asarray(config.stop_ids)[None], axis=1))
    if state.seen is not None:
        state = state._replace(seen=state.seen | (token[:, None] == jnp.arange(state.seen.shape[1])[None]))
    if state.runs is not None:
        runs = jnp.where(live[:, None], _longer_runs(state, token), state.runs)
        state, done = state._replace(runs=runs), done | _repeats(runs, config.repetition_times)
    return state._replace(
        index=state.index + live,
        token=token,
        done=done,
        response=put(state.response, token),
        mask=state.mask | here,
        logp=put(state.logp, logp),
    )


def _longer_runs(state: Written, token: Int[Array, "B"]) -> Int[Array, "B N"]:
    """`Written.runs` once `token` stands at `state.index` of every row."""
    assert state.runs is not None
    places = state.index[:, None] - 1 - jnp.arange(state.runs.shape[1])[None]
    before = jnp.take_along_axis(state.response, jnp.maximum(places, 0), axis=1)
    same = (token[:, None] == before) & (places >= 0)
    return jnp.where(same, state.runs + 1, 0)


def _repeats(runs: Int[Array, "B N"], times: int) -> Bool[Array, "B"]:
    """Whether the last tokens of a row are an n-gram `times` times in a row, for an n from 1 to N."""
    return jnp.any(runs >= (times - 1) * jnp.arange(1, runs.shape[1] + 1)[None], axis=1)
