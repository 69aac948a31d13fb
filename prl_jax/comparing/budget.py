"""The budget that arms of a run have taken: tokens that were sampled and trained on, rows that judges read, seconds."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from prl_jax.file_names import CONFIG_FILE, RESULT_FILE
from prl_jax.files import read_object
from prl_jax.metrics import read_result
from prl_jax.runs.context import StageContext
from prl_jax.runs.workdir import Workdir
from prl_jax.sharding import make_mesh
from prl_jax.stages import KINDS
from prl_jax.stages.kind import Checking
from prl_jax.stages.spent import Spent


def taken(workdir: Path) -> dict[str, float]:
    """Means over the policies of the final evaluation that the run has trained, by the names of `Spent` and "seconds";
    0 where it has trained none. Stages that arms have in common are not counted."""
    config = ConfigDict(read_object(workdir / CONFIG_FILE)["config"])
    evaluation = config[config.stages[-1]]
    arms = [name for name in evaluation.arms if name != evaluation.opponent]
    parts = [spent_by(config, name, workdir) for name in arms]
    total = sum((spent for spent, _ in parts), Spent())._asdict() | {"seconds": sum(seconds for _, seconds in parts)}
    return {name: value / max(len(arms), 1) for name, value in total.items()}


def spent_by(config: ConfigDict, name: str, workdir: Path) -> tuple[Spent, float]:
    """The work of a finished stage, and the seconds that it took; nothing where its work is no part of a budget."""
    kind = KINDS[config[name].kind]
    if kind.spent is None:
        return Spent(), 0.0
    context = StageContext(name, config, Workdir(workdir, config), make_mesh())
    return kind.spent(context, Checking(config, KINDS)), read_result(workdir / name / RESULT_FILE)["seconds"]
