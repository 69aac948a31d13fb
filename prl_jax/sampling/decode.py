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
from prl_jax.types import Rollout


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


class _State(NamedTuple):
    """The rows in the middle of decoding.

    Attributes:
      index: of the token that is drawn next.
      token, done: the last one of each row, and whether the row has ended.
      cache, response, mask, logp: what there is so far.
      seen: `[B, V]`, tokens that prompt or response have; None without a repetition penalty.
      runs: `[B, N]`, how many of the last tokens are what they were 1 to N tokens before; None where repetition is
        allowed.
    """

    index: Int[Array, ""]
    token: Int[Array, "B"]
    done: Bool[Array, "B"]
    cache: Cache
    response: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    logp: Float[Array, "B T"]
    seen: Bool[Array, "B V"] | None
    runs: Int[Array, "B N"] | None


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
    hidden, cache = prefill(model, prompt, prompt_mask, config=config, group=group)
    if group > 1:
        prompt, prompt_mask = repeated(prompt, group), repeated(prompt_mask, group)
    seen = None
    if config.repetition_penalty != 1.0:
        seen = tokens_of(prompt, prompt_mask, vocab=model.config.vocab_size)
    sampled, _ = decode(model, hidden, cache, keys, seen, config=config)
    return Rollout(prompt, prompt_mask, *sampled)


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

    def body(state: _State) -> _State:
        hidden, cache = model.step(state.token, state.cache, layers)
        drawn = _draw(model, hidden, noise, state.index, state.seen, config)
        return _write(state._replace(cache=cache), *drawn, config)

    batch, total = hidden.shape[0], config.max_new_tokens
    noise = _noise(keys, total)
    state = _State(
        index=jnp.int32(0),
        token=jnp.zeros((batch,), jnp.int32),
        done=jnp.zeros((batch,), bool),
        cache=cache,
        response=jnp.full((batch, total), config.pad_id, jnp.int32),
        mask=jnp.zeros((batch, total), bool),
        logp=jnp.zeros((batch, total), jnp.float32),
        seen=seen,
        runs=jnp.zeros((batch, config.repetition_ngram), jnp.int32) if config.repetition_ngram else None,
    )
    state = _write(state, *_draw(model, hidden, noise, state.index, seen, config), config)
    state = jax.lax.while_loop(lambda s: (s.index < total) & ~jnp.all(s.done), body, state)
    truncated = ~state.done
    if state.runs is not None:
        truncated |= _repeats(state.runs, config.repetition_times)
    sampled = Sampled(state.response, state.mask, state.logp, truncated)
    return sampled, constrain_tree(state.cache, CACHE_AXES)


def _noise(keys: Key[Array, "B"], total: int) -> Float[Array, "B T"]:
    """Uniform numbers, one for each token of each row: inside the loop they would take a twentieth of its time."""
    one = lambda key, index: jax.random.uniform(jax.random.fold_in(key, index))  # noqa: E731
    whole = jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))
    return constrain(whole(keys, jnp.arange(total)), "rows", None)


def _draw(
    model: Decoder | MixedDecoder,
    hidden: Float[Array, "B D"],
    noise: Float[Array, "B T"],
    index: Int[Array, ""],
    seen: Bool[Array, "B V"] | None,
    config: SamplingConfig,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """The token at `index` of every row, and its log-probability."""
    hidden = constrain(hidden, "batch", "stream", rules=DECODING)
    # Each device draws for its rows.
    logits = constrain(constrain(model.logits(hidden), "batch", "vocab", rules=DECODING), "rows", "vocab")
    if seen is not None:
        logits = penalised(logits, seen, config.repetition_penalty)
    logits = _without_absent(logits, index, model.config.unsampled, config.support)  # as in the trainer's log-probs
    if config.temperature == 0:
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        filters = dict(top_k=config.top_k, top_p=config.top_p, min_p=config.min_p)
        log_probs = filtered_log_probs(logits, temperature=config.temperature, **filters)
        token = sample_categorical(noise[:, index], log_probs)
    return token, jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0]


def _without_absent(
    logits: Float[Array, "B V"], index: Int[Array, ""], unsampled: IdRanges, support: Support
) -> Float[Array, "B V"]:
    """Logits that leave no probability to what cannot be sampled as the token at `index`."""
    late = without_ids(logits, support.absent(unsampled))
    if not support.min_new_tokens:
        return late
    early = without_ids(logits, support.absent(unsampled, early=True))
    return jnp.where(index < support.min_new_tokens, early, late)


def _write(state: _State, token: Int[Array, "B"], logp: Float[Array, "B"], config: SamplingConfig) -> _State:
    """Puts a drawn token at `state.index` of the rows that are not done."""
    live = ~state.done
    put = lambda row, value: jax.lax.dynamic_update_slice(row, value[:, None], (0, state.index))  # noqa: E731
    token = jnp.where(live, token, config.pad_id)
    done = state.done | jnp.any(token[:, None] == jnp.asarray(config.stop_ids)[None], axis=1)
    if state.seen is not None:
        state = state._replace(seen=state.seen | (token[:, None] == jnp.arange(state.seen.shape[1])[None]))
    if state.runs is not None:
        runs = jnp.where(live[:, None], _longer_runs(state, token), state.runs)
        state, done = state._replace(runs=runs), done | _repeats(runs, config.repetition_times)
    return state._replace(
        index=state.index + 1,
        token=token,
        done=done,
        response=put(state.response, token),
        mask=put(state.mask, live),
        logp=put(state.logp, jnp.where(live, logp, 0.0)),
    )


def _longer_runs(state: _State, token: Int[Array, "B"]) -> Int[Array, "B N"]:
    """`_State.runs` once `token` stands at `state.index` of every row."""
    assert state.runs is not None
    places = state.index - 1 - jnp.arange(state.runs.shape[1])
    same = (token[:, None] == state.response[:, jnp.maximum(places, 0)]) & (places >= 0)[None]
    return jnp.where(same, state.runs + 1, 0)


def _repeats(runs: Int[Array, "B N"], times: int) -> Bool[Array, "B"]:
    """Whether the last tokens of a row are an n-gram `times` times in a row, for an n from 1 to N."""
    return jnp.any(runs >= (times - 1) * jnp.arange(1, runs.shape[1] + 1)[None], axis=1)
