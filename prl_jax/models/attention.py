"""Attention within whole rows, behind one function: the backend follows the platform and the shape.

`einsum` is the reference, and the fastest for short rows; its scores are `[B, K, G, T, T]` float32. The others need
memory that grows with T: `chunked` runs everywhere, `cudnn` is the fused kernel of NVIDIA GPUs, `splash` the Pallas
kernel of TPUs (arXiv 2205.14135). All give the same numbers but for rounding.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prl_jax.sharding import constrain, partition, platform

BACKENDS = ("auto", "einsum", "chunked", "cudnn", "splash")
# Not -inf: a row whose keys are all masked (padding) must give finite numbers and finite gradients.
_MASKED = -1e30
# Queries whose scores `chunked` holds at once. On a CPU the cache decides, and how long the compiler takes: 64 are a
# little faster up to 256 tokens, and compile twice as long. Of 512 tokens and more it takes half the time of `einsum`,
# forward and backward. Accelerators want large products; not measured.
_BLOCK = {"cpu": 128, "gpu": 512, "tpu": 512}
# A segment of this many and more is a branch of a tree: the tokens of `tree * BRANCHES`, its stem, are seen by those of
# `tree * BRANCHES + branch` behind them, which do not see other branches. So rows that begin alike are read once.
BRANCHES = 1 << 16
_BANDS = 4  # runs of blocks that `chunked` gives keys of their own, so that few scores above the diagonal are computed
_LANES = 128  # the kernel of TPUs reads rows in blocks of multiples of this


class Attending(NamedTuple):
    """A case that a backend has to be able to handle.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      length: tokens of a row.
      head_dim: numbers of a head.
      dtype: of queries, keys and values, "float32" or "bfloat16".
      softcap: of the scores; 0 for none.
      sequence: parts that the mesh cuts a row into.
      branched: whether a row may hold branches of a tree.
    """

    platform: str
    length: int
    head_dim: int
    dtype: str
    softcap: float = 0.0
    sequence: int = 1
    branched: bool = False


def choose(wanted: str, case: Attending) -> tuple[str, str]:
    """The backend for a case, and why it is not the one that was wanted ("" where it is, or any will do).

    Args:
      wanted: of `BACKENDS`.
      case: what it has to do.
    """
    kernel = {"gpu": "cudnn", "tpu": "splash"}.get(case.platform, "chunked")
    lacks = {"cudnn": _cudnn_lacks(case), "splash": _splash_lacks(case)}
    simple = "einsum" if case.length < 2 * _block(case.platform) else "chunked"
    if wanted == "auto":
        return (simple if simple == "einsum" or lacks.get(kernel) else kernel), ""
    if reason := lacks.get(wanted, ""):
        return simple, f"{wanted} {reason}: {simple} instead"
    return wanted, ""


def queries_at_once(wanted: str, case: Attending) -> int:
    """The queries of a row whose scores are in memory at the same time."""
    backend, _ = choose(wanted, case)
    return {"einsum": case.length, "chunked": min(_block(case.platform), case.length)}.get(backend, 1)


def _block(platform: str) -> int:
    return _BLOCK.get(platform, _BLOCK["gpu"])


def _cudnn_lacks(case: Attending) -> str:
    if case.platform != "gpu":
        return "runs on NVIDIA GPUs alone"
    if case.dtype != "bfloat16":
        return f"has no {case.dtype}"
    if case.softcap:
        return "has no soft cap"
    if case.head_dim % 8 or case.head_dim > 128:
        return f"has no heads of {case.head_dim} numbers"
    return "does not cut rows" if case.sequence > 1 else "has no branches" if case.branched else ""


def _splash_lacks(case: Attending) -> str:
    if case.platform != "tpu":
        return "runs on TPUs alone"
    if case.head_dim % _LANES:
        return f"has no heads of {case.head_dim} numbers"
    return "does not cut rows" if case.sequence > 1 else "has no branches" if case.branched else ""


def attend(
    q: Float[Array, "B T K G H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    *,
    backend: str,
    softcap: float = 0.0,
    window: int = 0,
    local: Bool[Array, ""] | bool = True,
) -> Float[Array, "B T K G H"]:
    """Causal grouped-query attention (arXiv 2305.13245) within segments.

    Args:
      q, k, v: scaled queries, of which G share a key and value head.
      segments: a token attends to those of its own segment, or its stem (`BRANCHES`), at or before it; 0 is padding,
        which is nobody's key and whose own outputs are finite and unused. `cudnn` is for rows of one segment without
        gaps, numbered 1; rows of several are given to `chunked`.
      backend: one that `choose` gives.
      softcap: `cap tanh(scores / cap)`; 0 for none.
      window: how many tokens back a token attends, itself included; 0 for no limit.
      local: whether this layer has the window.

    Returns:
      In the dtype of `v`; scores and their softmax are float32.
    """
    if backend == "cudnn":
        # Only the arrays tell whether a row has several segments, of which the kernel knows nothing.
        options = dict(segments=segments, softcap=softcap, window=window, local=local)
        one = lambda q, k, v: _either(_cudnn, q, k, v, segments, window, local)  # noqa: E731
        several = functools.partial(attend, backend="chunked", **options)
        return jax.lax.cond(jnp.all(segments <= 1), one, several, q, k, v)
    if backend == "splash":
        return _either(functools.partial(_splash, softcap=softcap), q, k, v, segments, window, local)
    reach = jnp.where(local, window, q.shape[1]) if window else q.shape[1]
    within = _einsum if backend == "einsum" else _chunked
    return within(q, k, v, segments, reach, softcap)


def _either(kernel, q, k, v, segments, window: int, local: Bool[Array, ""] | bool):
    """A kernel whose window is static, for a layer that says only when it runs whether it has one."""
    if not window or isinstance(local, bool):
        return kernel(q, k, v, segments, window if local else 0)
    near, far = (functools.partial(kernel, window=size) for size in (window, 0))
    return jax.lax.cond(local, near, far, q, k, v, segments)


def softcapped(x: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """`cap tanh(x / cap)`; `x` itself for a cap of 0."""
    return cap * jnp.tanh(x / cap) if cap else x


def attention_weights(scores: Float[Array, "... S"], mask: Bool[Array, "... S"], cap: float) -> Float[Array, "... S"]:
    """Float32 attention weights of float32 scores."""
    return jax.nn.softmax(jnp.where(mask, softcapped(scores, cap), _MASKED), axis=-1)


def attention_mask(
    segments: Int[Array, "B S"],
    reach: Int[Array, ""] | int,
    queries: Int[Array, "B C"] | None = None,
    places: Int[Array, "b C"] | None = None,
) -> Bool[Array, "B C S"]:
    """Which keys of a row its queries see: those of their segment and its stem, at most `reach` tokens back; never
    padding.

    `queries` are the segments of some tokens, and `places` where they stand in all rows or in each; by default those of
    all tokens.
    """
    queries = segments if queries is None else queries
    places = jnp.arange(segments.shape[1])[None] if places is None else places
    stems = jnp.where((segments > 0) & (segments % BRANCHES == 0), segments // BRANCHES, -1)
    same = (queries[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
    same |= (queries // BRANCHES)[:, :, None] == stems[:, None, :]
    back = places[:, :, None] - jnp.arange(segments.shape[1])[None, None]
    return same & (back >= 0) & (back < reach)


def mix(q, k, v, mask: Bool[Array, "B C S"], cap: float) -> Float[Array, "B C K G H"]:
    """Some queries of each row against the keys of a whole row."""
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    weights = attention_weights(scores, mask[:, None, None], cap).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v)


def _einsum(q, k, v, segments, reach, cap: float):
    return mix(q, k, v, attention_mask(segments, reach), cap)


def _chunked(q, k, v, segments, reach, cap: float):
    """Some queries at a time, whose scores the backward pass computes again. Blocks are in bands, each of which is
    given the keys up to its own end."""
    length, size = q.shape[1], _block(platform())
    blocks = -(-length // size)
    padded = blocks * size - length
    grow = lambda x: jnp.pad(x, [(0, padded if axis == 1 else 0) for axis in range(x.ndim)])  # noqa: E731
    q, k, v, segments = (grow(x) for x in (q, k, v, segments))
    out, begin = [], 0
    for band in range(1, min(_BANDS, blocks) + 1):
        end = -(-band * blocks // min(_BANDS, blocks))
        keys, values, seen = (x[:, : end * size] for x in (k, v, segments))
        queries = (x[:, begin * size : end * size] for x in (q, segments))
        in_blocks = (jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0) for x in queries)

        @jax.checkpoint
        def block(numbered, keys=keys, values=values, seen=seen):
            number, q, own = numbered
            return mix(q, keys, values, attention_mask(seen, reach, own, number * size + jnp.arange(size)[None]), cap)

        numbered = (jnp.arange(begin, end), *in_blocks)
        # A loop that runs once takes the compiler longer than what stands in it.
        once = end - begin == 1
        mixed = block(jax.tree.map(lambda x: x[0], numbered))[None] if once else jax.lax.map(block, numbered)
        out.append(jnp.moveaxis(mixed, 0, 1).reshape(q.shape[0], -1, *q.shape[2:]))
        begin = end
    return jnp.concatenate(out, axis=1)[:, :length]


def _cudnn(q, k, v, segments, window: int, *, implementation: str = "cudnn"):
    """Rows are turned until they begin with their first token, which is how the kernel takes them."""
    length, (batch, _, heads, group, dim) = q.shape[1], q.shape
    count = jnp.sum(segments > 0, axis=1, dtype=jnp.int32)
    first = jnp.argmax(segments > 0, axis=1)
    places = (jnp.arange(length)[None] + first[:, None]) % length
    turn = lambda x, at: jnp.take_along_axis(x, at.reshape(batch, length, *(1,) * (x.ndim - 2)), axis=1)  # noqa: E731
    mixed = jax.nn.dot_product_attention(
        turn(q, places).reshape(batch, length, heads * group, dim),
        turn(k, places),
        turn(v, places),
        scale=1.0,
        is_causal=True,
        query_seq_lengths=count,
        key_value_seq_lengths=count,
        local_window_size=(window - 1, 0) if window else None,
        implementation=implementation,
    )
    back = (jnp.arange(length)[None] - first[:, None]) % length
    return turn(mixed.reshape(q.shape), back)


def _splash(q, k, v, segments, window: int, softcap: float = 0.0, *, interpret: bool = False):
    """The kernel runs on each device for its rows and heads: the compiler cannot cut it by itself."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length = q.shape[1]
    padded = -length % _LANES
    grow = lambda x: jnp.pad(x, [(0, padded if axis == 1 else 0) for axis in range(x.ndim)])  # noqa: E731
    shape = (length + padded,) * 2
    mask = masks.LocalMask(shape, (window - 1, 0), 0) if window else masks.CausalMask(shape)
    size = next(size for size in (512, 384, 256, 128) if shape[0] % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    sizes = kernels.BlockSizes(**dict.fromkeys(names, size), use_fused_bwd_kernel=True)
    group = q.shape[3]
    kernel = kernels.make_splash_mqa_single_device(
        masks.MultiHeadMask([mask] * group),
        block_sizes=sizes,
        attn_logits_soft_cap=softcap or None,
        interpret=interpret,
    )

    def here(q, k, v, segments):
        """`[b, k, G, T, H]` queries, `[b, k, T, H]` keys and values, `[b, T]` segments of this device."""
        ids = kernels.SegmentIds(segments, segments)
        of_row = jax.vmap(kernel, in_axes=(0, 0, 0, None))
        return jax.vmap(of_row)(q, k, v, ids)

    arrays = (grow(q).transpose(0, 2, 3, 1, 4), *(grow(x).transpose(0, 2, 1, 3) for x in (k, v)), grow(segments))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1:
        axes = (("batch", "kv", None, None, None), *[("batch", "kv", None, None)] * 2, ("batch", None))
        specs = tuple(partition(x.shape, names, mesh) for x, names in zip(arrays, axes, strict=True))
        arrays = tuple(constrain(x, *names) for x, names in zip(arrays, axes, strict=True))
        here = jax.shard_map(here, in_specs=specs, out_specs=specs[0], check_vma=False)
    mixed = here(*arrays)
    return mixed.transpose(0, 3, 1, 2, 4)[:, :length].astype(v.dtype)
