"""Names of slices, and what they are refused with."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from running import says

from prl_jax.errors import UserError
from prl_jax.plan import topology
from prl_jax.plan.chips import TPUS
from prl_jax.plan.quiet import said_to_stderr
from prl_jax.plan.topology import find_topology


@pytest.mark.parametrize(
    ("name", "count"),
    [("v5e:8x8", 64), ("v5e:16x16", 256), ("v5p:4x4x4", 64), ("v6e:8x8", 64), ("v4:2x2x2", 8)],
)
def test_a_slice_has_a_device_a_chip(name, count, capfd):
    found = find_topology(name)
    assert len(found.devices) == count and {device.platform for device in found.devices} == {"tpu"}
    assert found.chip == TPUS[name.split(":")[0]]
    assert capfd.readouterr() == ("", "")  # libtpu would complain that this is no TPU


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_table_has_the_memory_that_the_compiler_knows(name):
    found = find_topology(name)
    sharding = jax.sharding.SingleDeviceSharding(found.devices[0])
    huge = jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32, sharding=sharding)
    with said_to_stderr(), pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as error:
        jax.jit(lambda x: x * 2).lower(huge).compile()
    (limit,) = re.findall(r"exceeds available HBM \(([\d.]+)G\)", str(error.value))
    # Releases of the compiler keep a few MiB more or less for themselves; the table has the least that they leave.
    assert 0 <= float(limit) - round(found.chip.hbm / 2**30, 2) < 0.015


def test_cpus():
    found = find_topology("cpu:1")
    assert (found.devices, found.chip) == (jax.devices("cpu")[:1], None)
    with pytest.raises(UserError, match="started with 1 CPU devices"):
        find_topology("cpu:64")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e", ["'v5e'", "unknown", "v5e:8x8"]),
        ("v9:2x2", ["unknown"]),
        ("v5e:axb", ["unknown"]),
        ("cpu:0", ["unknown"]),
        ("v5e:2x2x2", ["16x16 at most"]),
        ("v5e:100x100", ["16x16 at most"]),
        ("v5p:4x4", ["16x16x24 at most"]),
        ("v5e:3x3", ["not divisible"]),
    ],
)
def test_no_such_slice(name, words):
    with pytest.raises(UserError) as error:
        find_topology(name)
    says(str(error.value), "--topology", *words)


def test_the_compiler_may_be_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'prl_jax\[tpu\]'"):
        find_topology("v5e:8x8")


def test_a_machine_without_sysfs_is_told_before_the_compiler_ends_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(topology, "_CPU_LIST", tmp_path / "possible")
    with pytest.raises(UserError, match="mount -t sysfs sysfs /sys"):
        find_topology("v5e:8x8")
