"""Rough memory and time of each stage of a config, estimated before it starts, without compiling anything.

What a stage keeps on the devices is exact, from abstract arrays; the rest is estimated (`costs.work`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from prl_jax.costs.models import AbstractModels, held_bytes
from prl_jax.costs.work import Call, Estimate
from prl_jax.stages import KINDS
from prl_jax.stages.kind import Checking

# A process on a CPU keeps part of what its functions have freed: 1.6 to 2.3 times what the largest one needs was
# resident in runs of own_model's recipe.
_KEPT_BY_A_CPU = 1.5


class Work(NamedTuple):
    """The memory and time of a stage.

    Attributes:
      stage: its name.
      held: bytes of a device that it keeps, by what they are.
      calls: its functions.
    """

    stage: str
    held: Mapping[str, float]
    calls: tuple[Call, ...]

    @property
    def largest(self) -> Call | None:
        """The function that needs the most memory."""
        return max(self.calls, key=lambda call: call.temporary, default=None)

    @property
    def peak(self) -> float:
        """Bytes of a device at the most, about."""
        return sum(self.held.values(), 0.0) + (self.largest.temporary if self.largest else 0.0)

    @property
    def flops(self) -> float:
        return sum((call.flops * call.calls for call in self.calls), 0.0)


def expected_work(config: ConfigDict, mesh: Mesh, examples: Callable[[str, str], int]) -> list[Work]:
    """Returns the memory and time of each stage.

    Args:
      config: with all lengths given.
      mesh: of the devices.
      examples: how many records the source of a stage has, by their names.
    """
    models = AbstractModels(config, mesh, Checking(config, KINDS).card)
    estimate, found = Estimate(models, examples), []
    kept = _KEPT_BY_A_CPU if estimate.cpu else 1.0
    for name in config.stages:
        costs = KINDS[config[name].kind].costs
        each = (held_bytes(held) for held in costs.held(models, name))
        held = max(each, key=lambda held: sum(held.values()), default={})
        calls = tuple(call._replace(temporary=kept * call.temporary) for call in costs.calls(estimate, name))
        found.append(Work(name, held, calls))
    return found
