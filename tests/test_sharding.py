"""Meshes and shardings by name here; what needs several devices in a process of its own."""

from pathlib import Path

import jax
import numpy as np
import pytest
from fakes import make_decoder, one_device
from jax.sharding import AxisType, PartitionSpec
from running import on_virtual_devices

from prl_jax.errors import UserError
from prl_jax.models import LOGICAL_AXES
from prl_jax.processes import put_batch
from prl_jax.sharding import batch_sharding, make_mesh, path_names, replicated, tree_shardings


def test_a_mesh_has_three_axes_of_which_one_may_be_free():
    count = len(jax.devices())
    for sizes in ({}, {"data": 1, "fsdp": -1}, {"data": 1, "tensor": -1}, {"data": count, "fsdp": 1}):
        mesh = make_mesh(**sizes)
        assert mesh.axis_names == ("data", "fsdp", "tensor") and mesh.size == count
        assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("wrong", [{"data": 2}, {"data": -1, "fsdp": -1}, {"fsdp": 3}, {"tensor": 0}], ids=str)
def test_sizes_that_do_not_fit_are_named(wrong):
    with pytest.raises(UserError, match="mesh: sizes .* do not multiply to the 1 devices") as error:
        make_mesh(devices=jax.devices()[:1], **wrong)
    assert all(f"'{name}': {size}" in str(error.value) for name, size in wrong.items())


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
        "up": PartitionSpec("fsdp", "tensor"),
        "stacked": {"up": PartitionSpec(None, "fsdp", "tensor")},
        "moments": [{"table": PartitionSpec("tensor", "fsdp"), "count": PartitionSpec()}],
        "scale": PartitionSpec(None),
    }


def test_every_matrix_of_a_decoder_is_cut_along_two_axes():
    model = make_decoder(tied_embeddings=False)
    shardings = jax.tree_util.tree_flatten_with_path(tree_shardings(model, one_device(), LOGICAL_AXES))[0]
    for (path, sharding), leaf in zip(shardings, jax.tree.leaves(model), strict=True):
        matrix = leaf.ndim == 2 + ("blocks" in path_names(path))
        assert set(sharding.spec) - {None} == ({"fsdp", "tensor"} if matrix else set())


def test_batches_are_cut_along_data_and_fsdp():
    mesh = one_device()
    batch = put_batch({"x": np.arange(6).reshape(3, 2)}, mesh)
    assert batch["x"].sharding == batch_sharding(mesh) and batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
    assert replicated(mesh).spec == PartitionSpec()
    np.testing.assert_array_equal(batch["x"], np.arange(6).reshape(3, 2))


def test_rows_13_17_a_step_on_eight_devices_is_the_step_on_one():
    """Gradients, their clipped norm and the update, with data, parameters and matrices cut in two each."""
    assert on_virtual_devices(Path(__file__).with_name("sharded_step.py")) == "equal\n"
