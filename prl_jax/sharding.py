"""The device mesh and the shardings of everything on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from prl_jax.errors import UserError

# What each logical axis of a parameter is cut along. "layers" and whatever is not named here stays whole.
RULES: Mapping[str, str] = MappingProxyType({"embed": "fsdp", "vocab": "tensor", "heads": "tensor", "mlp": "tensor"})
# Rows of a batch are cut along both.
BATCH_AXES = ("data", "fsdp")


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: list[Any] | None = None) -> Mesh:
    """A mesh with axes `data`, `fsdp`, `tensor`; one size may be -1, the rest of the devices."""
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [name for name, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    negative = len(free) > 1 or min(sizes.values()) < -1 or fixed < 1
    if negative or len(devices) % fixed or (not free and fixed != len(devices)):
        raise UserError(
            f"mesh: sizes {sizes} do not multiply to the {len(devices)} devices here; set at most one of them to -1"
        )
    if free:
        sizes[free[0]] = len(devices) // fixed
    # Auto axes: with Explicit ones (the default of jax.make_mesh) look-ups in a vocabulary-sharded table fail.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * 3, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis cut along the batch axes of the mesh."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def on_batch_axes(x: Any) -> Any:
    """Rows cut along the batch axes of the mesh in use (`jax.set_mesh`), if there is one.

    Parameters are cut along one of these axes too; left to itself the compiler may follow them and give every device
    all rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(BATCH_AXES) <= set(mesh.axis_names):
        return x
    rows = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES)) if x.shape[0] % rows == 0 else x


def tree_shardings(tree: Any, mesh: Mesh, logical_axes: Mapping[str, tuple[str, ...]]) -> Any:
    """Shardings for a pytree of arrays or `ShapeDtypeStruct`s.

    Args:
      tree: parameters, or an optimizer state that mirrors them: leaves are found by the end of their path.
      mesh: the device mesh.
      logical_axes: end of a dotted path, `q.weight` -> logical names of its last axes; leading axes (stacked layers)
        stay whole. An axis that the mesh axis does not divide stays whole too.
    """

    def one(path, leaf) -> NamedSharding:
        axes = _axes_of([name for name in path_names(path) if name != "value"], logical_axes)
        spec = [None] * leaf.ndim
        for i, axis in enumerate(axes, start=leaf.ndim - len(axes)):
            target = RULES.get(axis)
            if i >= 0 and target is not None and leaf.shape[i] % mesh.shape[target] == 0:
                spec[i] = target
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(one, tree)


def _axes_of(names: list[str], logical_axes: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The axes of the longest end of a path that has some."""
    ends = (".".join(names[start:]) for start in range(len(names)))
    return next((logical_axes[end] for end in ends if end in logical_axes), ())


def path_names(path: tuple[Any, ...]) -> list[str]:
    """The plain names along a key path."""
    return [jax.tree_util.keystr((key,), simple=True) for key in path]


def sharded_init(make: Callable[[], Any], mesh: Mesh, logical_axes: Mapping[str, tuple[str, ...]]) -> Any:
    """Runs `make` under jit so that every array is born with its sharding."""
    shardings = tree_shardings(jax.eval_shape(make), mesh, logical_axes)
    return jax.jit(make, out_shardings=shardings)()


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Numpy rows of this process -> global arrays, cut along the batch axes."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)
