"""A checkpoint of any kind of training goes on on another mesh, and in another number of processes."""

from pathlib import Path

import pytest
from running import in_processes, on_virtual_devices
from scale.same import check, load

pytestmark = pytest.mark.long
SCRIPT = Path(__file__).with_name("continued.py")


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """On eight devices, with a checkpoint on the way, and what follows on that on fewer and on others."""
    folder = tmp_path_factory.mktemp("eight")
    words = [
        'eight={"mesh": {"data": 2, "fsdp": 2, "tensor": 2}}',
        'one={"mesh": {"data": 1}, "from": "eight"}',
        'other={"mesh": {"data": 1, "fsdp": 4, "tensor": 2}, "from": "eight"}',
    ]
    on_virtual_devices(SCRIPT, folder, *words)
    return folder


@pytest.mark.parametrize("name", ["one", "other"])
def test_on_another_mesh(eight, name):
    check(load(eight, name), load(eight, "eight"))


def test_in_two_processes_instead_of_one(eight):
    in_processes(SCRIPT, eight, 'two={"mesh": {"data": 4, "fsdp": 2}, "from": "eight"}', number=2, devices=4)
    check(load(eight, "two"), load(eight, "eight"))


@pytest.mark.nightly
def test_in_one_process_instead_of_two(tmp_path):
    in_processes(SCRIPT, tmp_path, 'two={"mesh": {"data": 1, "fsdp": 2}}', number=2, devices=1)
    on_virtual_devices(SCRIPT, tmp_path, 'one={"mesh": {"data": 1}, "from": "two"}', devices=1)
    check(load(tmp_path, "one"), load(tmp_path, "two"))
    assert float(load(tmp_path, "one")["policy/rest: kl_coef"]) != 0.1
