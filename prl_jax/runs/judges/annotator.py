"""An annotator of the built-in tasks, who errs as those do who labelled the built-in pairs."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from prl_jax.config.declare import filled
from prl_jax.data.gold import label_distribution, make_arguments
from prl_jax.errors import UserError
from prl_jax.judges import AnnotatorJudge
from prl_jax.runs.context import gold_arguments
from prl_jax.runs.judges.kind import JudgeKind, Surroundings

AS_GOLD = -1.0  # what the config's section `gold` says
_MOST = {"noise": 0.5, "ties": 1.0}


def declare(**values: Any) -> dict[str, Any]:
    """Returns the section of an annotator."""
    defaults = dict(
        kind="annotator",
        noise=AS_GOLD,  # how often a verdict is flipped; -1 is what the section `gold` says
        ties=AS_GOLD,  # the probability of a tie where both responses are equally good; -1 is what `gold` says
        seed=0,  # of the draws: another seed is another annotator
    )
    return filled(defaults, values, "judge")


def check(section: ConfigDict) -> None:
    """Raises `UserError` for what is no probability, or no seed."""
    for key, most in _MOST.items():
        if section[key] != AS_GOLD and not 0 <= section[key] <= most:
            raise UserError(f"{key}={section[key]}, expected 0 to {most:g}, or -1: what the section gold says")
    if section.seed < 0:
        raise UserError(f"seed={section.seed}, expected at least 0")


def load(section: ConfigDict, around: Surroundings) -> AnnotatorJudge:
    """The annotator of the tasks as the config has them."""
    gold = make_arguments(gold_arguments(around.config))
    noise, ties = (getattr(gold, key) if section[key] == AS_GOLD else section[key] for key in _MOST)

    how = dict(noise=noise, ties=ties, intransitivity=gold.intransitivity, sharpness=gold.scale)

    def labels(prompt: str, first: str, second: str) -> tuple[float, float, float]:
        return label_distribution(prompt, first, second, **how)

    return AnnotatorJudge(labels, seed=section.seed)


KIND = JudgeKind(name="annotator", declare=declare, load=load, check=check, built_in_tasks=True)
