"""Runs the stages of a config, in order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from ml_collections import ConfigDict

from prl_jax.errors import UserError
from prl_jax.sharding import make_mesh
from prl_jax.stages import anchors, evaluation, ppo, reward_model, sft
from prl_jax.stages.context import StageContext
from prl_jax.stages.workdir import Workdir, make_directory

KINDS: Mapping[str, Callable[[StageContext], dict[str, float]]] = MappingProxyType(
    {
        "sft": sft.run,
        "bradley_terry": reward_model.run_bradley_terry,
        "generative": reward_model.run_generative,
        "anchors": anchors.run,
        "ppo": ppo.run,
        "evaluation": evaluation.run,
    }
)


def run_stages(config: ConfigDict, path: Path) -> Workdir:
    """Runs what is not finished in the workdir; an interrupted stage continues from its last checkpoint."""
    check_stages(config)
    workdir = Workdir(path, config)
    mesh = make_mesh(**config.mesh.to_dict())
    for name in config.stages:
        if workdir.finished(name):
            print(f"{name:<16} finished before, skipped", file=sys.stderr)
            continue
        make_directory(workdir.stage(name))
        start = time.monotonic()
        metrics = KINDS[config[name].kind](StageContext(name, config, workdir, mesh))
        workdir.finish(name, kind=config[name].kind, metrics=metrics, seconds=time.monotonic() - start)
    return workdir


def check_stages(config: ConfigDict) -> None:
    """Raises `UserError` for a list of stages that cannot run."""
    if not config.stages:
        raise UserError("stages: empty, expected the names of the stages to run")
    for name in config.stages:
        if name not in config or "kind" not in config[name]:
            raise UserError(f"stages: {name!r} has no section in the config")
        if config[name].kind not in KINDS:
            raise UserError(f"{name}.kind={config[name].kind!r}, expected one of {', '.join(KINDS)}")
