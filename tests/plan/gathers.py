"""Programs whose collectives one can count by hand, for the devices of a topology. As a script: their HLO on CPUs."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LENGTH, WIDTH, DEVICES = 5, 256, 4


def laid_out_anew(devices: list[Any]) -> jax.stages.Lowered:
    """What the compiler can only do by copying an array to every device first; it says so."""
    mesh = Mesh(np.array(devices[:8]).reshape(2, 4), ("x", "y"))
    sharding = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))  # noqa: E731
    rows = jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=sharding(("x", "y")))
    cut = sharding(None, "y", "x")
    function = lambda x: jax.lax.with_sharding_constraint(jnp.sin(x).reshape(16, 4, 8), cut)  # noqa: E731
    return jax.jit(function).lower(rows)


def compiled(devices: list[Any], name: str) -> jax.stages.Compiled:
    """`gathers`: a scan over weights that are cut in 4 parts and gathered one by one; `stack`: gathered all at once;
    `sums`: a gradient that is summed over rows that are cut in 4."""
    mesh = Mesh(np.array(devices[:DEVICES]), ("x",))
    sharding = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))  # noqa: E731
    weights = jax.ShapeDtypeStruct((LENGTH, WIDTH, WIDTH), jnp.float32, sharding=sharding(None, "x"))
    rows = jax.ShapeDtypeStruct((DEVICES * 8, WIDTH), jnp.float32, sharding=sharding("x"))
    whole = lambda w: jax.lax.with_sharding_constraint(w, sharding())  # noqa: E731

    def gathers(weights, rows):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ whole(w)), None), rows, weights)[0]

    def stack(weights, rows):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), rows, whole(weights))[0]

    def sums(weights, rows):
        return jax.grad(lambda w: jnp.tanh(rows @ w).sum())(whole(weights[0] + 1.0))

    function = {"gathers": gathers, "stack": stack, "sums": sums}[name]
    return jax.jit(function).lower(weights, rows).compile()


if __name__ == "__main__":
    print(json.dumps({name: compiled(jax.devices(), name).as_text() for name in ("gathers", "stack", "sums")}))
