"""The devices of a slice of accelerators by its name; they need not be there."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from prl_jax.errors import UserError
from prl_jax.plan.chips import TPUS, Chip
from prl_jax.plan.quiet import said_to_stderr

EXPECTED = "expected cpu:8 or a TPU slice such as v4:2x2x2, v5e:8x8, v5p:4x4x4, v6e:8x8"
# libtpu looks for the machine that it thinks it is on, and complains on the terminal when it finds none. What it is
# told here is no more than what silences it: the topology has its own name. Several plans may be made at once.
_NO_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "1",  # warnings: the plan reads them
    "TPU_MIN_LOG_LEVEL": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


# libtpu's allocator counts the CPUs there when it is loaded, and ends the process where it cannot.
_CPU_LIST = Path("/sys/devices/system/cpu/possible")


class Topology(NamedTuple):
    """Devices to compile for.

    Attributes:
      name: `v5e:8x8`.
      devices: of JAX, one a chip.
      chip: their limits; None for CPUs, which have none that a plan could know.
    """

    name: str
    devices: list[Any]
    chip: Chip | None


def find_topology(name: str) -> Topology:
    """The devices of a topology.

    Raises:
      UserError: there is no such topology, or its compiler is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind == "cpu" and re.fullmatch(r"[1-9]\d*", shape):
        return Topology(name, _cpus(int(shape)), None)
    if kind not in TPUS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise UserError(f"--topology {name!r}: unknown; {EXPECTED}")
    chip, sides = TPUS[kind], sorted(map(int, shape.split("x")))
    if len(sides) != len(chip.largest) or any(side > most for side, most in zip(sides, chip.largest, strict=True)):
        # libtpu ends the process where a slice is larger.
        largest = "x".join(map(str, chip.largest))
        raise UserError(f"--topology {name!r}: a {kind} slice is {largest} at most; {EXPECTED}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU compiler is not installed; it runs on any machine: pip install 'prl_jax[tpu]'")
    if not _CPU_LIST.exists():
        raise UserError(f"the TPU compiler reads {_CPU_LIST}, which is missing; run: mount -t sysfs sysfs /sys")
    with _without_a_machine(), said_to_stderr():
        try:
            options = {"chip_config_name": chip.config} if chip.config else {}
            found = topologies.get_topology_desc(name, platform="tpu", **options)
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).split(": ", 1)[-1]
            raise UserError(f"--topology {name!r}: {reason}; {EXPECTED}") from error
    return Topology(name, list(found.devices), chip)


def _cpus(count: int) -> list[Any]:
    # Where JAX has started already, the devices are what they are.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--topology cpu:{count}: JAX has started with {len(devices)} CPU devices in this process")
    return devices[:count]


@contextlib.contextmanager
def _without_a_machine() -> Iterator[None]:
    """libtpu reads its environment when it is loaded, which is in here."""
    missing = {key: value for key, value in _NO_MACHINE.items() if key not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for key in missing:
            os.environ.pop(key, None)
