"""Meshes and shardings by name here; what needs several devices in a process of its own."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_decoder, one_device
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec
from running import on_virtual_devices

from prl_jax.errors import UserError
from prl_jax.models import LOGICAL_AXES
from prl_jax.processes import put_batch
from prl_jax.sharding import (
    AXES,
    BATCH_AXES,
    SPREAD,
    arrange,
    batch_sharding,
    constrain,
    constrain_tree,
    make_mesh,
    partition,
    parts,
    path_names,
    platform,
    replicated,
    tree_shardings,
)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device as far as a mesh looks at it."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "chip"


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One that knows of no slices."""

    id: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "gpu"


def test_a_mesh_has_five_axes_of_which_one_may_be_free():
    count, one = len(jax.devices()), {"data": 1}
    for sizes in ({}, {**one, "fsdp": -1}, {**one, "tensor": -1}, {**one, "sequence": -1}, {"data": count, "fsdp": 1}):
        mesh = make_mesh(**sizes)
        assert mesh.axis_names == AXES and mesh.size == count
        assert set(AXES) == {"data", "fsdp", "decode", "tensor", "sequence"}
        assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("wrong", [{"data": 2}, {"data": -1, "fsdp": -1}, {"fsdp": 3}, {"tensor": 0}], ids=str)
def test_sizes_that_do_not_fit_are_named(wrong):
    with pytest.raises(UserError, match="mesh: sizes .* do not multiply to the 1 devices") as error:
        make_mesh(devices=jax.devices()[:1], **wrong)
    assert all(f"{name}={size}" in str(error.value) for name, size in wrong.items())


@pytest.mark.parametrize(
    ("shape", "across"),
    [
        ((2, 2, 1, 2), (2, 1, 1, 1)),  # copies of the parameters across the slices
        ((1, 4, 1, 2), (1, 2, 1, 1)),  # no copies: parts of the parameters
        ((1, 1, 2, 4), (1, 1, 2, 1)),
        ((1, 1, 1, 8), (1, 1, 1, 2)),
    ],
)
@pytest.mark.parametrize("device", [Chip, Gpu])
def test_the_first_axes_run_across_slices_and_the_others_stay_inside(shape, across, device):
    """Two slices of four chips, or hosts of four GPUs, whose devices are not listed in order."""
    devices = [device(i, *[i % 2] * (1 + (device is Chip))) for i in range(8)]
    found = arrange(shape, devices)
    assert found.shape == shape and set(found.flat) == set(devices)
    inner = tuple(size // cuts for size, cuts in zip(shape, across, strict=True))
    blocks = {}
    for index in np.ndindex(shape):
        block = tuple(i // n for i, n in zip(index, inner, strict=True))
        blocks.setdefault(block, set()).add(found[index].process_index)
    assert sorted(map(sorted, blocks.values())) == [[0], [1]]


def test_devices_of_one_slice_and_processes_of_one_machine_keep_their_order():
    for devices in ([Chip(i, i // 2, 0) for i in range(8)], [Gpu(i, 0) for i in range(8)]):
        assert [device.id for device in arrange((2, 2, 1, 2), devices).flat] == list(range(8))


def test_an_axis_that_does_not_divide_is_cut_less_or_stays_whole():
    mesh = AbstractMesh((2, 2, 2, 1, 2), AXES)
    cut = lambda size, axis, **rules: partition((size,), (axis,), mesh, **rules)[0]  # noqa: E731
    assert [cut(size, "batch") for size in (16, 8, 4, 2, 3)] == [*[BATCH_AXES] * 2, ("data", "fsdp"), "data", None]
    assert [cut(size, "vocab") for size in (6, 5)] == ["tensor", None]
    assert [cut(size, "vocab", rules=SPREAD) for size in (16, 4, 6, 5)] == [
        ("tensor", "decode", "fsdp"),
        ("tensor", "decode"),
        "tensor",
        None,
    ]
    assert cut(8, None) is None and cut(8, "layers") is None and cut(8, "stream") is None


def test_nothing_is_laid_out_without_a_mesh():
    x, tree = jnp.ones((4, 2)), {"q": {"weight": jnp.ones((4, 2))}}
    assert constrain(x, "batch", "stream") is x and constrain_tree(tree, LOGICAL_AXES) is tree
    with jax.set_mesh(one_device()):
        assert constrain(x, "batch", "stream") is x and parts("batch") == 1
    with jax.sharding.use_abstract_mesh(AbstractMesh((2,), ("other",))):
        assert constrain(x, "batch", "stream") is x and parts("batch") == 1


def test_the_platform_is_that_of_the_mesh_in_use():
    """Also while a function is traced: what is planned for TPUs here is what they would run."""
    tpu = AbstractDevice(device_kind="TPU v5e", num_cores=1, platform="tpu")
    auto = (AxisType.Auto,) * len(AXES)  # as `make_mesh` has them; what is the default depends on the release of JAX
    seen = []
    assert platform() == jax.default_backend()
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,) * len(AXES), AXES, axis_types=auto, abstract_device=tpu)):
        jax.eval_shape(jax.jit(lambda x: seen.append(platform()) or x), jnp.ones(()))
        assert platform() == "tpu"
    assert seen == ["tpu"]


def test_shardings_go_by_the_name_of_a_leaf_wherever_it_stands():
    """Optimizer moments repeat the names of the parameters; leading axes and unknown names stay whole."""
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)  # noqa: E731
    axes = {"up": ("embed", "mlp"), "table": ("vocab", "embed")}
    tree = {
        "up": leaf(4, 6),
        "stacked": {"up": leaf(3, 4, 6)},
        "moments": [{"table": leaf(8, 4), "count": leaf()}],
        "scale": leaf(4),
    }
    specs = jax.tree.map(lambda sharding: sharding.spec, tree_shardings(tree, one_device(), axes))
    assert specs == {
        "up": PartitionSpec(("fsdp", "decode"), "tensor"),
        "stacked": {"up": PartitionSpec(None, ("fsdp", "decode"), "tensor")},
        "moments": [{"table": PartitionSpec("tensor", ("fsdp", "decode")), "count": PartitionSpec()}],
        "scale": PartitionSpec(None),
    }


def test_every_matrix_of_a_decoder_is_cut_along_two_axes():
    model = make_decoder(tied_embeddings=False)
    shardings = jax.tree_util.tree_flatten_with_path(tree_shardings(model, one_device(), LOGICAL_AXES))[0]
    for (path, sharding), leaf in zip(shardings, jax.tree.leaves(model), strict=True):
        matrix = leaf.ndim == 2 + ("blocks" in path_names(path))
        assert set(sharding.spec) - {None} == ({("fsdp", "decode"), "tensor"} if matrix else set())


def test_batches_are_cut_along_all_axes_of_rows():
    mesh = one_device()
    batch = put_batch({"x": np.arange(6).reshape(3, 2)}, mesh)
    assert batch["x"].sharding == batch_sharding(mesh) and batch_sharding(mesh).spec == PartitionSpec(BATCH_AXES)
    assert replicated(mesh).spec == PartitionSpec()
    np.testing.assert_array_equal(batch["x"], np.arange(6).reshape(3, 2))


@pytest.mark.slow
def test_rows_13_17_a_step_on_eight_devices_is_the_step_on_one():
    """Gradients, their clipped norm and the update, with data, parameters and matrices cut in two each."""
    assert on_virtual_devices(Path(__file__).with_name("sharded_step.py")) == "equal\n"
