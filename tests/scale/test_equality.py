"""The same numbers on one device, on eight under any mesh, and in several processes."""

from pathlib import Path

import numpy as np
import pytest
from running import in_processes, on_virtual_devices
from scale.same import check, load

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("steps.py")
nightly = pytest.mark.nightly
MESHES = {"mixed": '{"data": 2, "fsdp": 2, "tensor": 2}'}
MORE_MESHES = [
    pytest.param('{"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2}', id="all", marks=nightly),
    pytest.param('{"data": 8}', id="data", marks=nightly),
    pytest.param('{"data": 1, "fsdp": 8}', id="fsdp", marks=nightly),
    pytest.param('{"data": 1, "fsdp": 4, "decode": 2}', id="decode", marks=nightly),
    pytest.param('{"data": 4, "tensor": 2}', id="tensor", marks=nightly),
    pytest.param('{"data": 4, "sequence": 2}', id="sequence", marks=nightly),
]
# Processes, devices of each, and the mesh; "tensor across" has both halves of a matrix in different processes.
PROCESSES = [
    pytest.param(4, 1, '{"data": 2, "tensor": 2}', id="tensor across"),
    pytest.param(2, 4, MESHES["mixed"], id="two", marks=nightly),
    pytest.param(4, 2, '{"data": 1, "fsdp": 8}', id="four", marks=nightly),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("equality")


@pytest.fixture(scope="module")
def one(folder):
    """What one device computes; the same script does what `MESHES` do."""
    on_virtual_devices(SCRIPT, folder, "one=null", *(f"{name}={sizes}" for name, sizes in MESHES.items()))
    return load(folder, "one")


@pytest.mark.long
@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_compute_what_one_does(one, folder, name):
    check(load(folder, name), one)


@pytest.mark.long
@pytest.mark.parametrize("sizes", MORE_MESHES)
def test_eight_devices_on_more_meshes_compute_what_one_does(one, folder, sizes):
    on_virtual_devices(SCRIPT, folder, f"more={sizes}")
    check(load(folder, "more"), one)


@pytest.mark.long
@pytest.mark.parametrize(("number", "devices", "sizes"), PROCESSES)
def test_processes_compute_what_one_does(one, folder, number, devices, sizes):
    in_processes(SCRIPT, folder, f"processes={sizes}", number=number, devices=devices)
    check(load(folder, "processes"), one)


@pytest.mark.long
def test_what_is_compared_is_there_and_moves(one):
    kinds = {name.split(": ")[0] for name in one}
    for task in ("sft", "direct", "bradley_terry", "generative", "adapters"):
        assert {f"{task}/gradient", f"{task}/parameter", f"{task}/metric"} <= kinds
    assert {"score/policy", "anchors/policy", "peer/policy", "score/critic", "greedy", "sampled", "reward"} <= kinds
    assert "peer/critic" not in kinds and one["peer/frozen: truncated"] > 0
    for name, array in one.items():
        if "/gradient: " in name:
            assert np.linalg.norm(array) > 1e-4, name
    assert np.unique(one["sampled: token"]).size > 5 and (one["sampled: token"] != one["greedy: token"]).any()
