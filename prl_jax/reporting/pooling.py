"""Whether several runs are seeds of one experiment, so that a mean over them means something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prl_jax.files import leaves
from prl_jax.reporting.inputs import RunFiles

# Keys in which seeds of one experiment may differ beside the seed: where and how a run ran (a test compares them with
# those of a workdir).
FREE = ("mesh.", "profile.", "logging.", "limits.")
_SHOWN = 5


def obstacles(runs: Sequence[RunFiles]) -> list[str]:
    """Why the runs are not seeds of one experiment, in sentences; none where they are."""
    if len(runs) < 2:
        return []
    unknown = [run.label for run in runs if not run.settings]
    if unknown:
        has = "has" if len(unknown) == 1 else "have"
        return [f"No means over runs: {_and(unknown)} {has} no config.json to tell whether they are one experiment."]
    sentences = []
    for run in runs[1:]:
        different = _different(runs[0], run)
        if different:
            sentences.append(
                f"No means over runs: {runs[0].label} and {run.label} are different experiments, not seeds of one; "
                f"they differ in {_and(different)}."
            )
    seeds: dict[Any, list[str]] = {}
    for run in runs:
        seeds.setdefault(run.settings.get("seed"), []).append(run.label)
    for seed, labels in seeds.items():
        if len(labels) > 1:
            sentences.append(
                f"No means over runs: {_and(labels)} have the same seed ({seed}), so they are one seed, not several."
            )
    return sentences


def _different(one: RunFiles, other: RunFiles) -> list[str]:
    """Keys of the config with another value, and data files that have changed, with both values."""
    pairs = [(dict(leaves(one.settings)), dict(leaves(other.settings)), "")]
    pairs += [(dict(leaves(_data(one))), dict(leaves(_data(other))), "data file ")]
    found = []
    for first, second, prefix in pairs:
        for key in dict.fromkeys((*first, *second)):
            a, b = first.get(key, "absent"), second.get(key, "absent")
            if a != b and key != "seed" and not key.startswith(FREE):
                found.append(f"{prefix}{key} ({_short(a)} against {_short(b)})")
    return found if len(found) <= _SHOWN else [*found[:_SHOWN], f"{len(found) - _SHOWN} more keys"]


def _data(run: RunFiles) -> Mapping[str, Any]:
    """Fingerprints of the files that a run has read, where its config.json has them."""
    data = run.config.get("data")
    return data if "config" in run.config and isinstance(data, Mapping) else {}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
