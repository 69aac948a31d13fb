"""The speed and memory of accelerators, per JAX device."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

_GIB = 2**30


class Chip(NamedTuple):
    """Limits of a device.

    Attributes:
      name: as Google calls it.
      hbm: bytes that a program may use, as the compiler says when one does not fit ("exceeds available HBM"): the
        memory of the chip but for what the runtime keeps.
      flops: peak bfloat16 operations a second.
      bandwidth: of the HBM, bytes a second.
      interconnect: bytes a second that a device can send to the others over all its links.
      largest: chips of the largest slice along each of its dimensions.
      config: libtpu's name of how the cores of a chip make devices; "" is its own choice.
    """

    name: str
    hbm: int
    flops: float
    bandwidth: float
    interconnect: float
    largest: tuple[int, ...]
    config: str = ""


# HBM: asked of libtpu 0.0.42 and 0.0.50, which differ by a few MiB; the lesser. The other columns:
# docs.cloud.google.com/tpu/docs/v5e, v5p and v6e (the bandwidth between chips is given for both directions there, half
# of it is one device's sending), and for v4 table 4 of arXiv 2304.01433.
# The two cores of a v4 or v5p chip work as one device ("megacore"), as they do on Cloud TPU.
TPUS: Mapping[str, Chip] = MappingProxyType(
    {
        "v4": Chip("TPU v4", int(30.75 * _GIB), 275e12, 1200e9, 300e9, (16, 16, 16), "megacore"),
        "v5e": Chip("TPU v5e", int(15.75 * _GIB), 197e12, 819e9, 200e9, (16, 16)),
        "v5p": Chip("TPU v5p", int(95.73 * _GIB), 459e12, 2765e9, 600e9, (16, 16, 24)),
        "v6e": Chip("TPU v6e", int(31.24 * _GIB), 918e12, 1638e9, 400e9, (16, 16)),
    }
)
