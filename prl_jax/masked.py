"""Masked reductions, and the checks and guards that every loss opens with.

A mask is a boolean array of the shape of what it masks. Whatever stands where it is false, NaN included, reaches
neither the value nor the gradient. Every result is float32.
"""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Real, Shaped

Axis = int | tuple[int, ...] | None

# exp(20) is 4.9e8: far outside anything a healthy ratio reaches, far inside float32.
EXP_LIMIT = 20.0


# Far below any logit, but finite where it is squared: beside others its exponential is 0 exactly.
_NO_LOGIT = -1e9
_FEW_RANGES = 16  # that are compared one by one; more are a mask of the vocabulary in the compiled program


def without_ids(logits: Float[Array, "... V"], unused: tuple[tuple[int, int], ...]) -> Float[Array, "... V"]:
    """Logits that leave no probability to the ids in these ranges, `(first, behind the last)`."""
    if len(unused) > _FEW_RANGES:
        absent = np.zeros(logits.shape[-1], bool)
        for first, end in unused:
            absent[first:end] = True
        return jnp.where(jax.lax.broadcast_to_rank(jnp.asarray(absent), logits.ndim), _NO_LOGIT, logits)
    ids = jax.lax.broadcast_to_rank(jnp.arange(logits.shape[-1]), logits.ndim)
    for first, end in unused:
        logits = jnp.where((ids >= first) & (ids < end), _NO_LOGIT, logits)
    return logits


def check_shapes(rank: int | None = None, **arrays: Shaped[Array, "..."]) -> None:
    """Raises ValueError unless all arrays have one shape, of `rank` axes where a rank is given.

    Without it `[B, 1] - [B]` would silently become `[B, B]`.
    """
    names = list(arrays)
    first = arrays[names[0]]
    if rank is not None and first.ndim != rank:
        raise ValueError(f"{names[0]}: expected {rank} axes, given shape {tuple(first.shape)}")
    for name in names[1:]:
        if arrays[name].shape != first.shape:
            raise ValueError(
                f"{name}: expected shape {tuple(first.shape)} (as {names[0]}), given {tuple(arrays[name].shape)}"
            )


def check_floats(
    rank: int | None = None, *, mask: Shaped[Array, "..."] | None = None, **arrays: Shaped[Array, "..."]
) -> None:
    """`check_shapes` of floating-point arrays, and of the boolean mask that belongs to them.

    Raises:
      ValueError: the shapes differ, or the first has not `rank` axes.
      TypeError: an array of integers, which would truncate what is added to it, or a mask that is not boolean.
    """
    masks = {} if mask is None else {"mask": mask}
    check_shapes(rank, **arrays, **masks)
    for kind, kinds, group in ((jnp.floating, "floating-point", arrays), (jnp.bool_, "boolean", masks)):
        for name, x in group.items():
            if not jnp.issubdtype(x.dtype, kind):
                raise TypeError(f"{name}: expected a {kinds} array of shape {tuple(x.shape)}, given {x.dtype}")


def check_option(argument: str, given: str, options: Iterable[str]) -> None:
    """Raises ValueError that names the options unless `given` is one of them."""
    known = list(options)
    if given not in known:
        raise ValueError(f"{argument}: expected one of {', '.join(map(repr, known))}, given {given!r}")


def bounded_exp(x: Float[Array, "..."], limit: float = EXP_LIMIT) -> Float[Array, "..."]:
    """`exp(x)` up to `limit` and its tangent beyond, so that values and gradients stay finite.

    Unlike clipping it keeps the gradient, and thus the direction of the update, where the ratio has exploded.
    """
    return jnp.exp(jnp.minimum(x, limit)) * (1.0 + jnp.maximum(x - limit, 0.0))


def masked_sum(x: Real[Array, "..."], mask: Bool[Array, "..."], axis: Axis = None) -> Float[Array, "..."]:
    """Sum of `x` where `mask`."""
    check_shapes(x=x, mask=mask)
    return jnp.sum(jnp.where(mask, x.astype(jnp.float32), 0.0), axis=axis)


def masked_count(mask: Bool[Array, "..."], axis: Axis = None) -> Float[Array, "..."]:
    """Number of true elements, float32."""
    return jnp.sum(mask.astype(jnp.float32), axis=axis)


def masked_mean(x: Real[Array, "..."], mask: Bool[Array, "..."], axis: Axis = None) -> Float[Array, "..."]:
    """Mean of `x` where `mask`; 0 where the mask is empty."""
    return masked_sum(x, mask, axis) / jnp.maximum(masked_count(mask, axis), 1.0)


def masked_var(
    x: Real[Array, "..."], mask: Bool[Array, "..."], axis: Axis = None, ddof: int = 0
) -> Float[Array, "..."]:
    """Variance of `x` where `mask`, over `count - ddof`; 0 where at most `ddof` elements are counted."""
    check_shapes(x=x, mask=mask)
    x = jnp.where(mask, x.astype(jnp.float32), 0.0)
    size = jnp.sum(mask.astype(jnp.float32), axis=axis, keepdims=True)
    mean = jnp.sum(x, axis=axis, keepdims=True) / jnp.maximum(size, 1.0)
    squares = masked_sum(jnp.square(x - mean), mask, axis)
    count = masked_count(mask, axis)
    return jnp.where(count > ddof, squares / jnp.maximum(count - ddof, 1.0), 0.0)


def masked_whiten(
    x: Float[Array, "..."],
    mask: Bool[Array, "..."],
    shift_mean: bool = True,
    eps: float = 1e-8,
    ddof: int = 0,
    axis: Axis = None,
) -> Float[Array, "..."]:
    """`(x - mean) / (std + eps)` over all elements where `mask`, 0 elsewhere, without gradient.

    Under `jax.jit` the mean and the variance are those of the global array, however it is sharded.

    Args:
      x: any shape, such as advantages `[B, T]`.
      mask: bool, the shape of `x`.
      shift_mean: whether the mean stays removed; otherwise it is added back after scaling.
      eps: added to the standard deviation, outside the root.
      ddof: 0 for the population's deviation, 1 for the sample's.
      axis: what mean and variance run over; all axes by default.
    """
    check_floats(x=x, mask=mask)
    x = jax.lax.stop_gradient(x.astype(jnp.float32))
    axes = tuple(range(x.ndim)) if axis is None else axis
    mean = jnp.expand_dims(masked_mean(x, mask, axes), axes)
    std = jnp.expand_dims(jnp.sqrt(masked_var(x, mask, axes, ddof)), axes)
    # Equal values differ from their mean by rounding alone, which dividing by a tiny deviation would blow up.
    rounding = 1e-6 * jnp.max(jnp.where(mask, jnp.abs(x), 0.0), axis=axes, keepdims=True, initial=0.0)
    scaled = jnp.where(std > rounding, (x - mean) / (std + eps), 0.0)
    return jnp.where(mask, scaled if shift_mean else scaled + mean, 0.0)


def per_row(name: str, x: Shaped[Array, "..."] | float | int, like: Float[Array, "B ..."]) -> Float[Array, "B"]:
    """A number for all rows of `like`, or one a row, as float32 a row.

    Raises:
      ValueError, TypeError: an array of another shape, or of integers.
    """
    if isinstance(x, (int, float)):
        return jnp.full(like.shape[:1], x, jnp.float32)
    if x.ndim and x.shape != like.shape[:1]:
        raise ValueError(f"{name}: expected shape {like.shape[:1]}, given {tuple(x.shape)}")
    check_floats(**{name: x})
    return jnp.broadcast_to(x.astype(jnp.float32), like.shape[:1])


def row_weights(weight: Shaped[Array, "..."] | None, like: Float[Array, "B ..."]) -> Float[Array, "B"]:
    """Float32 weights of rows: ones where none are given."""
    if weight is None:
        return jnp.ones(like.shape[0], jnp.float32)
    return per_row("weight", weight.astype(jnp.float32) if weight.dtype == bool else weight, like)


def keep_rows(x: Float[Array, "B ..."], weight: Float[Array, "B"]) -> Float[Array, "B ..."]:
    """`x` in float32, 0 in the rows whose weight is 0, so that what fills a batch cannot leak NaN."""
    kept = (weight > 0).reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.where(kept, x.astype(jnp.float32), 0.0)
