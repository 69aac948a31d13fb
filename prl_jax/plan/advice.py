"""Where a function does not fit: what takes the most, and which keys of the config change that."""

from __future__ import annotations

from ml_collections import ConfigDict

from prl_jax.plan.knobs import helpful_keys
from prl_jax.plan.plan import Function, Plan
from prl_jax.sharding import parameter_parts


def largest_consumer(function: Function) -> tuple[str, float]:
    """Returns what takes the most of a device's memory, and its bytes."""
    memory = function.memory
    found = {**function.held, "rows": memory.rows, "cache": memory.cache, "temporary memory": memory.temporary}
    name = max(found, key=lambda what: found[what])
    return name, found[name]


def knobs(plan: Plan, function: Function, config: ConfigDict) -> list[str]:
    """Keys that help where a function does not fit, with the direction; those that help most come first."""
    what = largest_consumer(function)[0]
    too = plan.chip is not None and function.memory.known - function.memory.cache < plan.chip.hbm
    found = helpful_keys(config, function.name, what, plan.mesh, batches_too=too)
    if parameter_parts(plan.mesh) >= plan.devices:
        found.append("a larger --topology with mesh.fsdp=-1")
    if what == "temporary memory" and plan.mesh["tensor"] == 1:
        found.append("mesh.tensor up")
    return found
