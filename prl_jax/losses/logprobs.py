"""Log-probabilities from hidden states and the output embedding, in chunks.

The logits of a batch, `[B, T, V]` float32, are the largest array of a training step. Here a chunk of positions at a
time turns into logits, is reduced to a few numbers a token and is recomputed in the backward pass.

Chunks run along T. On a mesh every chunk has positions of all rows and of every part of T, and the vocabulary is cut
over the devices that share rows (`sharding.SPREAD`), so that all of them work on every chunk.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from prl_jax.masked import check_floats, check_shapes, masked_count, masked_sum, without_ids
from prl_jax.sharding import RULES, SPREAD, Rules, constrain, parts, platform
from prl_jax.types import LossOutput

# Tokens a chunk when the caller names none: at least so many, and as many as keep the logits within the budget.
CPU_TOKENS, CPU_LOGITS = 256, 2**21
ACCELERATOR_TOKENS, ACCELERATOR_LOGITS = 1024, 2**26
LEAST_POSITIONS = 16


def chunked_logprobs(
    hidden: Float[Array, "B T D"],
    out_embed: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    unused: tuple[tuple[int, int], ...] = (),
    chunk: int | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of each target and entropy of the distribution it came from, never holding `[B, T, V]`.

    Args:
      hidden: `[B, T, D]`; its dtype is that of the matmuls, which accumulate in float32.
      out_embed: `[D, V]` output embedding.
      targets: `[B, T]` ids in [0, V) where `mask`, anything elsewhere.
      mask: `[B, T]`; where false both results are 0 and no gradient flows.
      temperature: divides the logits, after soft-capping.
      softcap: replaces logits z by `softcap tanh(z / softcap)`.
      unused: ranges of ids, `(first, behind the last)`, that are out of the distribution.
      chunk: tokens of the global batch a chunk; by default chosen from the vocabulary's size and the platform.

    Returns:
      logp, entropy: `[B, T]` float32, in nats. Both have gradients to `hidden` and `out_embed` (reverse mode).
    """
    check_inputs(hidden, out_embed, targets, mask)
    hidden, targets = jnp.where(mask[..., None], hidden, 0), jnp.where(mask, targets, 0)
    count = chunk_count(targets.shape, out_embed.shape[1], chunk)
    logp, entropy = _logprobs(hidden, out_embed, targets, temperature, softcap, unused, count)
    return jnp.where(mask, logp, 0.0), jnp.where(mask, entropy, 0.0)


def chunked_cross_entropy(
    hidden: Float[Array, "B T D"],
    out_embed: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    unused: tuple[tuple[int, int], ...] = (),
    chunk: int | None = None,
) -> LossOutput:
    """Next-token cross-entropy: minus the sum of what `chunked_logprobs` returns, over the number of tokens.

    A plain sum has gradients known before the backward pass, so that they come out of the forward pass: three matmuls
    where `chunked_logprobs` needs four. Arguments as there. aux: 'entropy' over tokens, without gradient.
    """
    check_inputs(hidden, out_embed, targets, mask)
    hidden, targets = jnp.where(mask[..., None], hidden, 0), jnp.where(mask, targets, 0)
    count = chunk_count(targets.shape, out_embed.shape[1], chunk)
    total, entropy = _cross_entropy(hidden, out_embed, targets, mask, temperature, softcap, unused, count)
    tokens = masked_count(mask)
    return LossOutput(total, tokens, {"entropy": (jax.lax.stop_gradient(entropy), tokens)})


def lm_loss(logp: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> LossOutput:
    """Minus the log-probability of the tokens that count, averaged over tokens.

    The language-model term of a judge that gives its reasons after the verdict (arXiv 2509.08826): a loss of its own
    beside `pairwise_genrm_loss`, with its own denominator, `mask` true on the rationale. From hidden states
    `chunked_cross_entropy` is the same in less memory.

    Args:
      logp: `[B, T]` log-probabilities of the tokens.
      mask: `[B, T]`.
    """
    check_floats(2, logp=logp, mask=mask)
    return LossOutput(-masked_sum(logp, mask), masked_count(mask))


def check_inputs(
    hidden: Float[Array, "B T D"], out_embed: Float[Array, "D V"], targets: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> None:
    """Raises ValueError unless the four belong together."""
    check_shapes(2, targets=targets, mask=mask)
    check_floats(2, out_embed=out_embed)
    check_floats(3, hidden=hidden)
    if not jnp.issubdtype(targets.dtype, jnp.integer) or mask.dtype != bool:
        raise TypeError(
            f"targets, mask: expected integers and booleans of shape {tuple(targets.shape)}, given {targets.dtype} and "
            f"{mask.dtype}"
        )
    expected = (*targets.shape, out_embed.shape[0])
    if hidden.shape != expected:
        raise ValueError(
            f"hidden: expected shape {expected} (targets and rows of out_embed), given {tuple(hidden.shape)}"
        )


def chunk_count(shape: tuple[int, ...], vocab: int, chunk: int | None) -> int:
    """Number of chunks into which the positions of `[B, T]` tokens are cut."""
    rows, length = max(shape[0], 1), max(shape[1], 1)
    if chunk is None:
        # What one device has of them.
        rules = _rules(vocab)
        rows, length = (-(-n // parts(axis, rules)) for n, axis in ((rows, "batch"), (length, "length")))
        vocab //= parts("vocab", rules)
        on_cpu = platform() == "cpu"
        least, logits = (CPU_TOKENS, CPU_LOGITS) if on_cpu else (ACCELERATOR_TOKENS, ACCELERATOR_LOGITS)
        positions = max(max(least, logits // vocab) // rows, LEAST_POSITIONS)
    elif chunk < 1:
        raise ValueError(f"chunk: expected at least 1 token, given {chunk}")
    else:
        positions = max(chunk // rows, 1)
    return -(-length // min(positions, length))


def _split(x: Shaped[Array, "B T ..."], count: int) -> Shaped[Array, "N B C ..."]:
    """Cuts T into `count` chunks of equal length, filled up with zeros; each has positions of every part of T."""
    rows, length, *trailing = x.shape
    cuts = _cuts(length)
    size = -(-length // (cuts * count))
    x = x.reshape(rows, cuts, length // cuts, *trailing)
    x = jnp.pad(x, [(0, 0), (0, 0), (0, size * count - length // cuts)] + [(0, 0)] * len(trailing))
    x = jnp.moveaxis(x.reshape(rows, cuts, count, size, *trailing), 2, 0)
    return x.reshape(count, rows, cuts * size, *trailing)


def _join(x: Shaped[Array, "N B C ..."], length: int) -> Shaped[Array, "B T ..."]:
    """The inverse of `_split`."""
    count, rows, positions, *trailing = x.shape
    cuts = _cuts(length)
    x = jnp.moveaxis(x.reshape(count, rows, cuts, positions // cuts, *trailing), 0, 2)
    x = x.reshape(rows, cuts, -1, *trailing)[:, :, : length // cuts]
    return x.reshape(rows, length, *trailing)


def _cuts(length: int) -> int:
    """Parts of T on the mesh in use."""
    return parts("length") if length % parts("length") == 0 else 1


def _rules(vocab: int) -> Rules:
    """How hidden states and vocabulary are laid out; one that does not divide is cut as everywhere else."""
    return SPREAD if vocab % parts("vocab", SPREAD) == 0 else RULES


def _logits(
    hidden: Float[Array, "B C D"],
    out_embed: Float[Array, "D V"],
    temperature: float,
    softcap: float | None,
    unused: tuple[tuple[int, int], ...],
) -> Float[Array, "B C V"]:
    rules = _rules(out_embed.shape[1])
    hidden = constrain(hidden, "batch", "length", "stream", rules=rules)
    out_embed = constrain(out_embed.astype(hidden.dtype), "stream", "vocab", rules=rules)
    z = jnp.einsum("bcd,dv->bcv", hidden, out_embed, preferred_element_type=jnp.float32)
    z = constrain(z, "batch", "length", "vocab", rules=rules)
    if softcap is not None:
        z = softcap * jnp.tanh(z / softcap)
    return without_ids(z / temperature if temperature != 1.0 else z, unused)


def _hidden_and_embedding_grads(
    d_logits: Float[Array, "B C V"],
    logits: Float[Array, "B C V"],
    hidden: Float[Array, "B C D"],
    out_embed: Float[Array, "D V"],
    temperature: float,
    softcap: float | None,
) -> tuple[Float[Array, "B C D"], Float[Array, "D V"]]:
    """Gradients to the two factors of the logits: hidden's in its dtype, the embedding's in float32."""
    if softcap is not None:
        d_logits = d_logits * (1.0 - jnp.square(logits * (temperature / softcap)))
    if temperature != 1.0:
        d_logits = d_logits / temperature
    # The barrier keeps XLA from computing these exponentials anew in each matmul.
    d_logits = jax.lax.optimization_barrier(d_logits.astype(hidden.dtype))
    rules = _rules(out_embed.shape[1])
    hidden = constrain(hidden, "batch", "length", "stream", rules=rules)
    embed = constrain(out_embed.astype(hidden.dtype), "stream", "vocab", rules=rules)
    d_hidden = jnp.einsum("bcv,dv->bcd", d_logits, embed, preferred_element_type=jnp.float32)
    d_embed = jnp.einsum("bcd,bcv->dv", hidden, d_logits, preferred_element_type=jnp.float32)
    d_hidden = constrain(d_hidden.astype(hidden.dtype), "batch", "length", "stream", rules=rules)
    return constrain(d_hidden, "batch", "length", "stream"), constrain(d_embed, "stream", "vocab", rules=rules)


def _statistics(
    logits: Float[Array, "B C V"], targets: Int[Array, "B C"]
) -> tuple[Float[Array, "B C"], Float[Array, "B C"], Float[Array, "B C"], Float[Array, "B C V"]]:
    """Log-probability of the target, entropy, log-sum-exp and probabilities (unused ones cost nothing).

    All are computed relative to the largest logit: exact for large ones.
    """
    top = jnp.max(logits, axis=-1, keepdims=True)
    # The barrier keeps XLA from computing the exponentials anew for each sum.
    exps = jax.lax.optimization_barrier(jnp.exp(logits - top))
    total = jnp.sum(exps, axis=-1)
    log_total = jnp.log(total)
    entropy = log_total - jnp.sum(exps * (logits - top), axis=-1) / total
    if parts("vocab", SPREAD) == 1:
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    else:  # a look-up along a cut axis would gather it
        chosen = jnp.sum(
            jnp.where(targets[..., None] == jnp.arange(logits.shape[-1])[None, None], logits, 0.0), axis=-1
        )
    return chosen - top[..., 0] - log_total, entropy, log_total + top[..., 0], exps / total[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _logprobs(hidden, out_embed, targets, temperature, softcap, unused, count):
    outputs, _ = _logprobs_forward(hidden, out_embed, targets, temperature, softcap, unused, count)
    return outputs


def _logprobs_forward(hidden, out_embed, targets, temperature, softcap, unused, count):
    def one(_, xs):
        hidden, targets = xs
        logits = jax.lax.optimization_barrier(_logits(hidden, out_embed, temperature, softcap, unused))
        return None, _statistics(logits, targets)[:3]

    _, stats = jax.lax.scan(one, None, (_split(hidden, count), _split(targets, count)), unroll=count == 1)
    logp, entropy, log_norm = (_join(x, targets.shape[1]) for x in stats)
    return (logp, entropy), (hidden, out_embed, targets, entropy, log_norm)


def _logprobs_backward(temperature, softcap, unused, count, residuals, cotangents):
    hidden, out_embed, targets, entropy, log_norm = residuals
    tokens = (hidden, targets, entropy, log_norm, *cotangents)

    def one(d_embed, xs):
        hidden, targets, entropy, log_norm, d_logp, d_entropy = xs
        logits = jax.lax.optimization_barrier(_logits(hidden, out_embed, temperature, softcap, unused))
        log_probs = logits - log_norm[..., None]
        # d logp_y / d l_j = 1[j = y] - p_j  and  d H / d l_j = -p_j (log p_j + H)
        slope = d_logp[..., None] + d_entropy[..., None] * (log_probs + entropy[..., None])
        chosen = targets[..., None] == jnp.arange(logits.shape[-1])[None, None]
        d_logits = jnp.where(chosen, d_logp[..., None], 0.0) - jnp.exp(log_probs) * slope
        d_hidden, d_embed_chunk = _hidden_and_embedding_grads(d_logits, logits, hidden, out_embed, temperature, softcap)
        return d_embed + d_embed_chunk, d_hidden

    start = jnp.zeros(out_embed.shape, jnp.float32)
    d_embed, d_hidden = jax.lax.scan(one, start, tuple(_split(x, count) for x in tokens), unroll=count == 1)
    return _join(d_hidden, hidden.shape[1]), d_embed.astype(out_embed.dtype), None


_logprobs.defvjp(_logprobs_forward, _logprobs_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _cross_entropy(hidden, out_embed, targets, mask, temperature, softcap, unused, count):
    (logp, entropy), _ = _logprobs_forward(hidden, out_embed, targets, temperature, softcap, unused, count)
    return -jnp.sum(jnp.where(mask, logp, 0.0)), jnp.sum(jnp.where(mask, entropy, 0.0))


def _cross_entropy_forward(hidden, out_embed, targets, mask, temperature, softcap, unused, count):
    def one(carry, xs):
        loss, entropy, d_embed = carry
        hidden, targets, mask = xs
        logits = jax.lax.optimization_barrier(_logits(hidden, out_embed, temperature, softcap, unused))
        logp, token_entropy, _, probs = _statistics(logits, targets)
        chosen = targets[..., None] == jnp.arange(logits.shape[-1])[None, None]
        d_logits = jnp.where(mask[..., None], probs - jnp.where(chosen, 1.0, 0.0), 0.0)
        d_hidden, d_embed_chunk = _hidden_and_embedding_grads(d_logits, logits, hidden, out_embed, temperature, softcap)
        loss = loss - jnp.sum(jnp.where(mask, logp, 0.0))
        entropy = entropy + jnp.sum(jnp.where(mask, token_entropy, 0.0))
        return (loss, entropy, d_embed + d_embed_chunk), d_hidden

    zero = jnp.zeros((), jnp.float32)
    xs = tuple(_split(x, count) for x in (hidden, targets, mask))
    start = (zero, zero, jnp.zeros(out_embed.shape, jnp.float32))
    (loss, entropy, d_embed), d_hidden = jax.lax.scan(one, start, xs, unroll=count == 1)
    # An empty array carries the embedding's dtype to the backward pass.
    return (loss, entropy), (_join(d_hidden, hidden.shape[1]), d_embed, jnp.zeros(0, out_embed.dtype))


def _cross_entropy_backward(temperature, softcap, unused, count, residuals, cotangents):
    d_hidden, d_embed, like = residuals
    scale, _ = cotangents
    return (scale * d_hidden).astype(d_hidden.dtype), (scale * d_embed).astype(like.dtype), None, None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
