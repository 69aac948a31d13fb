"""Judges by their names, as the config's section `judges` explains them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prl_jax.reporting.inputs import RunFiles

# How a judge is called that a reader would not know by its name alone.
_WORDS = {
    "python": "a function of yours ({path})",
    "verifier": "a verifier (check '{check}')",
    "remote": "the model {model} behind an endpoint",
    "density_ratio": "the density ratio of {strong} over {weak}",
    "annotator": "a noisy annotator of the built-in tasks",
}


def judges_of_config(run: RunFiles) -> Mapping[str, Any]:
    """The judges that the config names, each with its section; empty where it names none."""
    judges = run.settings.get("judges")
    return judges if isinstance(judges, Mapping) else {}


def is_exact(judges: Mapping[str, Any], judge: str) -> bool:
    """Whether a name is that of the exact judge of the built-in tasks."""
    return _section(judges, judge).get("kind") == "gold"


def model_behind(judges: Mapping[str, Any], judge: str) -> str:
    """The stage or model directory that answers under a judge's name; the name itself where none does."""
    section = _section(judges, judge)
    return str(section.get("model")) if section.get("kind") == "model" else judge


def answering(judges: Mapping[str, Any], judge: str) -> frozenset[str]:
    """Whoever answers under a judge's name, as `model_behind` has it: one, or the members of an ensemble."""
    members = _members(judges, judge)
    if not members:
        return frozenset([model_behind(judges, judge)])
    return frozenset().union(*(answering(judges, member) for member in members))


def is_learned(judges: Mapping[str, Any], judge: str) -> bool:
    """Whether a model answers under a judge's name, alone or as one of several."""
    members = _members(judges, judge)
    if members:
        return any(is_learned(judges, member) for member in members)
    return _section(judges, judge).get("kind", "model") in ("model", "remote", "density_ratio")


def in_words(judges: Mapping[str, Any], judge: str) -> str:
    """A judge's name, and what it is where the name alone does not say it."""
    section, members = _section(judges, judge), _members(judges, judge)
    if members:
        return f"{judge}, an ensemble of {', '.join(members)}"
    kind = str(section.get("kind", "model"))
    if kind == "model":
        return judge
    return f"{judge}, {_WORDS.get(kind, f'a judge of kind {kind!r}').format_map(_Known(section))}"


class _Known(dict):
    """The keys of a section; what it lacks stands as it is in a text."""

    def __missing__(self, key: str) -> str:
        return "?"


def _section(judges: Mapping[str, Any], judge: str) -> Mapping[str, Any]:
    """The section behind a judge's name; empty for a stage or a model directory.

    Workdirs from before judges had names knew the exact judge as "gold".
    """
    section = judges.get(judge, {"kind": "gold"} if judge == "gold" else {})
    return section if isinstance(section, Mapping) else {}


def _members(judges: Mapping[str, Any], judge: str) -> list[str]:
    """The judges of an ensemble; none of any other judge."""
    section = _section(judges, judge)
    return list(map(str, section["of"])) if section.get("kind") == "ensemble" and section.get("of") else []
