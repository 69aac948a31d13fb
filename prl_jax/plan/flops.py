"""Floating-point operations of a function, read off its jaxpr.

XLA's own cost analysis counts the body of a loop once; here a scan counts as often as it runs. What remat computes a
second time is in the jaxpr of the gradient, and so in the count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def count_flops(jaxpr: ClosedJaxpr) -> float:
    """Operations of the matrix products and convolutions of a function on all devices together.

    A multiplication and an addition are two. Elementwise work is left out: it bounds no step of a transformer. A loop
    that may end early (decoding) counts as if it went on to its bound.
    """
    return _count(jaxpr.jaxpr)


def _count(jaxpr: Jaxpr) -> float:
    return sum((_of_equation(equation) for equation in jaxpr.eqns), 0.0)


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, out = equation.invars[1].aval, equation.outvars[0].aval
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * out.size * kernel.size / features
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in params["branches"])
    if name == "while":
        trips = _bound(params["cond_jaxpr"])
        return trips * (_count(params["body_jaxpr"].jaxpr) + _count(params["cond_jaxpr"].jaxpr))
    times = {"scan": _length, "pallas_call": _grid, "shard_map": _devices}.get(name, _once)(params)
    return times * sum((_count(inner) for inner in _inner(params)), 0.0)


def _inner(params: Mapping[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


def _once(params: Mapping[str, Any]) -> int:
    return 1


def _length(params: Mapping[str, Any]) -> int:
    """How often the body of a scan runs."""
    return params["length"]


def _grid(params: Mapping[str, Any]) -> int:
    """How often a Pallas kernel runs."""
    mapping = params.get("grid_mapping")
    return math.prod(size for size in mapping.grid if isinstance(size, int)) if mapping is not None else 1


def _devices(params: Mapping[str, Any]) -> int:
    """The devices that each do what stands in a `shard_map`."""
    axes = next(value for name, value in params.items() if name.endswith("manual_axes"))  # JAX has renamed it
    return math.prod(params["mesh"].shape[axis] for axis in axes)


def _bound(condition: ClosedJaxpr) -> int:
    """The constant that the counter of a while loop is kept under; 1 where there is none."""
    constants = dict(zip(condition.jaxpr.constvars, condition.consts, strict=True))
    found = []
    for equation in condition.jaxpr.eqns:
        if equation.primitive.name in ("lt", "le"):
            right = equation.invars[1]
            value = right.val if isinstance(right, Literal) else constants.get(right)
            if value is not None and getattr(value, "ndim", 0) == 0:
                found.append(int(value) + (equation.primitive.name == "le"))
    return min(found, default=1)
