"""The device mesh, and where everything on it lies.

Arrays have logical axes ("embed", "batch", "length"); one table of rules says which mesh axes cut them. Parameters and
optimizer state get their layout when they are made (`tree_shardings`), activations inside jit (`constrain`). The
compiler fills in what is between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from prl_jax.errors import UserError

Array = TypeVar("Array")
Tree = TypeVar("Tree")
Rules = Mapping[str, tuple[str, ...]]
LogicalAxes = Mapping[str, tuple[str, ...]]

# From those that talk least to those that talk most: the last ones lie closest together.
AXES = ("data", "fsdp", "decode", "sequence", "tensor")
# Rows of a batch are cut along them.
BATCH_AXES = ("data", "fsdp", "decode")

# Logical axis -> mesh axes. "layers" and whatever is not named here stays whole.
RULES: Rules = MappingProxyType(
    {
        # Of parameters, the last four of activations too.
        "embed": ("fsdp", "decode"),
        "vocab": ("tensor",),
        "heads": ("tensor",),
        "kv": ("tensor",),
        "mlp": ("tensor",),
        # Of activations. "stream" is their "embed": rows and parameters share axes, so it has to stay whole.
        "batch": BATCH_AXES,
        "length": ("sequence",),
        "stream": (),
        # Rows while they are decoded: one token each, so that `sequence` is free for them.
        "rows": (*BATCH_AXES, "sequence"),
        # Of the key-value cache: the devices along `decode` share rows, and each has some of the heads.
        "cached": ("data", "fsdp", "sequence"),
        "kept": ("tensor", "decode"),
    }
)
# Where gathering weights would take longer than all else, for a few tokens or for a wide vocabulary, they stay and the
# activations travel: each device has its columns (or, where a matrix leads back to the stream, rows) of every matrix,
# whole along "embed", and all rows of the batch that the devices with the other columns have.
_WIDE = ("vocab", "heads", "kv", "mlp")
_ALONG = ("tensor", "decode", "fsdp")
SPREAD: Rules = MappingProxyType({**RULES, "embed": (), **dict.fromkeys(_WIDE, _ALONG), "batch": ("data",)})
# The same for tokens that are decoded one by one, which leave `sequence` free. "decoded" are their rows between layers.
DECODING: Rules = MappingProxyType(
    {**SPREAD, **dict.fromkeys(_WIDE, (*_ALONG, "sequence")), "decoded": SPREAD["batch"]}
)
# The same where devices along `decode` share rows: each has the matrices of its heads, so that what these heads attend
# to is there, and nothing has to change places for it.
_SHARED_ROWS: Rules = MappingProxyType(
    {**DECODING, "heads": RULES["kept"], "kv": RULES["kept"], "decoded": RULES["cached"]}
)


def make_mesh(
    *,
    data: int = -1,
    fsdp: int = 1,
    decode: int = 1,
    tensor: int = 1,
    sequence: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh with the axes of `AXES`, laid out for the network between the devices.

    Args:
      data: copies of the parameters.
      fsdp: parts of the parameters, which are gathered layer by layer; rows of a batch are cut along `data`, `fsdp` and
        `decode`.
      decode: cuts each of the `fsdp` parts, of parameters and of rows, once more. While responses are decoded, the
        devices along it share rows, and each has some of the heads. It divides the number of key-value heads.
      tensor: parts of heads, feed-forward width and vocabulary.
      sequence: parts of the positions of a row.
      devices: all by default.

    Raises:
      UserError: the sizes, of which one may be -1 (the rest), do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "decode": decode, "sequence": sequence, "tensor": tensor}
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    negative = len(free) > 1 or min(sizes.values()) < -1 or fixed < 1
    if negative or len(devices) % fixed or (not free and fixed != len(devices)):
        product = " * ".join(f"{name}={size}" for name, size in sizes.items())
        raise UserError(
            f"mesh: sizes {product} do not multiply to the {len(devices)} devices here; set at most one of them to -1"
        )
    if free:
        sizes[free[0]] = len(devices) // fixed
    # Auto axes: with Explicit ones (the default of jax.make_mesh) look-ups in a vocabulary-sharded table fail.
    return Mesh(arrange(tuple(sizes.values()), devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices as an array of this shape, whose last axes have the fastest network.

    Devices of one slice follow its topology. Where several slices (or GPU hosts that are none) are joined by a slower
    network, as much of the first axes as possible runs across them: `data`, then `fsdp`.
    """
    by_process = not hasattr(devices[0], "slice_index")
    if by_process and devices[0].platform != "gpu":
        return _within_slice(shape, devices)
    slices = len({device.process_index if by_process else device.slice_index for device in devices})
    if slices == 1 or len(devices) % slices:
        return _within_slice(shape, devices)
    inner, across = list(shape), [1] * len(shape)
    for i, size in enumerate(shape):
        across[i] = math.gcd(size, slices // math.prod(across))
        inner[i] //= across[i]
    return _splitting(mesh_utils.create_hybrid_device_mesh, inner, across, devices, process_is_granule=by_process)


def _within_slice(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    return _splitting(mesh_utils.create_device_mesh, shape, devices)


def _splitting(create: Callable[..., np.ndarray], *arguments: Any, **options: Any) -> np.ndarray:
    """A physical axis of a torus is split over two of the mesh only where it cannot be avoided."""
    try:
        return create(*arguments, **options)
    except NotImplementedError:
        return create(*arguments, **options, allow_split_physical_axes=True)


def platform() -> str:
    """The platform of the mesh in use (`jax.set_mesh`), else of this machine: "cpu", "gpu" or "tpu".

    What is traced for a mesh of TPUs on a machine without one is what the TPUs would run.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def parts(axis: str, rules: Rules = RULES) -> int:
    """Into how many parts the mesh in use cuts a logical axis; 1 without a mesh."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(name, 1) for name in rules[axis])


def decoding() -> Rules:
    """The rules for tokens that are decoded one by one on the mesh in use."""
    return _SHARED_ROWS if parts("kept") > parts("kv") else DECODING


def partition(
    shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh | AbstractMesh, rules: Rules = RULES
) -> PartitionSpec:
    """How an array of this shape with these logical axes is cut.

    An axis that its mesh axes do not divide is cut along the first of them, or stays whole.
    """
    spec: list[str | tuple[str, ...] | None] = []
    for size, axis in zip(shape, axes, strict=True):
        names = rules.get(axis, ()) if axis is not None else ()
        while size % math.prod(mesh.shape[name] for name in names):
            names = names[:-1]
        spec.append(names if len(names) > 1 else names[0] if names else None)
    return PartitionSpec(*spec)


def constrain(x: Array, *axes: str | None, rules: Rules = RULES) -> Array:
    """The array, laid out by its logical axes on the mesh in use (`jax.set_mesh`); its gradient likewise.

    Left to itself the compiler may follow the parameters, which are cut along `fsdp` as rows are, and give every device
    all rows. Without a mesh, or on one of other axes, this does nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or not set(AXES) <= set(mesh.axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, partition(x.shape, axes, mesh, rules))


def constrain_tree(tree: Tree, logical_axes: LogicalAxes, *, rules: Rules = RULES) -> Tree:
    """Parameters or gradients inside jit, laid out as `tree_shardings` does."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or not set(AXES) <= set(mesh.axis_names):
        return tree
    return jax.lax.with_sharding_constraint(tree, _tree_specs(tree, mesh, logical_axes, rules))


def batch_parts(shape: Mapping[str, int]) -> int:
    """Into how many parts a mesh of these sizes cuts the rows of a batch."""
    return math.prod(shape[axis] for axis in BATCH_AXES)


def parameter_parts(shape: Mapping[str, int]) -> int:
    """Into how many parts a mesh of these sizes cuts a matrix of the model."""
    return math.prod(shape[axis] for axis in (*RULES["embed"], *RULES["mlp"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis cut along the batch axes of the mesh."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def tree_shardings(tree: Any, mesh: Mesh, logical_axes: LogicalAxes) -> Any:
    """Shardings for a pytree of arrays or `ShapeDtypeStruct`s.

    Args:
      tree: parameters, or an optimizer state that mirrors them: leaves are found by the end of their path.
      mesh: the device mesh.
      logical_axes: end of a dotted path, `q.weight` -> logical names of its last axes; leading axes (stacked layers)
        stay whole. An axis that the mesh axis does not divide stays whole too.
    """
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), _tree_specs(tree, mesh, logical_axes, RULES))


def _tree_specs(tree: Any, mesh: Mesh | AbstractMesh, logical_axes: LogicalAxes, rules: Rules) -> Any:
    def one(path, leaf) -> PartitionSpec:
        axes = axes_of(path, logical_axes)[-leaf.ndim :] if leaf.ndim else ()
        return partition(leaf.shape, (*(None,) * (leaf.ndim - len(axes)), *axes), mesh, rules)

    return jax.tree_util.tree_map_with_path(one, tree)


def axes_of(path: tuple[Any, ...], logical_axes: LogicalAxes) -> tuple[str, ...]:
    """The axes of the longest end of a key path that has some; indices of lists don't count."""
    names = [name for name in path_names(path) if name != "value" and not name.isdigit()]
    ends = (".".join(names[start:]) for start in range(len(names)))
    return next((logical_axes[end] for end in ends if end in logical_axes), ())


def path_names(path: tuple[Any, ...]) -> list[str]:
    """The plain names along a key path."""
    return [jax.tree_util.keystr((key,), simple=True) for key in path]


def sharded_init(make: Callable[[], Any], mesh: Mesh, logical_axes: LogicalAxes) -> Any:
    """Runs `make` under jit so that every array is born with its sharding."""
    shardings = tree_shardings(jax.eval_shape(make), mesh, logical_axes)
    return jax.jit(make, out_shardings=shardings)()
