"""The functions of a config, stage by stage, traced from abstract arrays."""

from __future__ import annotations

from collections.abc import Iterator

from jax.sharding import Mesh
from ml_collections import ConfigDict

from prl_jax.costs.functions import Step
from prl_jax.costs.models import AbstractModels
from prl_jax.stages import KINDS
from prl_jax.stages.kind import Checking


def abstract_steps(config: ConfigDict, mesh: Mesh) -> Iterator[Step]:
    """Every function that costs something, of every stage, in the order in which a run first calls it.

    Call it, and lower and compile what it yields, inside `jax.set_mesh(mesh)`, as a run does.

    Args:
      config: the model directories that it names need no more than their `config.json`.
      mesh: of any devices, those of a machine that is not there included.
    """
    models = AbstractModels(config, mesh, Checking(config, KINDS).card)
    for name in config.stages:
        yield from KINDS[config[name].kind].costs.functions(models, name)
