"""Stages that several runs have in common, such as SFT and judges: made by one of them, copied by the others."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from prl_jax.errors import UserError
from prl_jax.files import appearing, make_directory
from prl_jax.stages import KINDS

# Parts of a config that decide where and how a run runs, and what its report is called.
_FREE = ("mesh", "profile", "logging", "limits", "title")


def places(config: ConfigDict, folder: Path) -> dict[str, Path]:
    """Where the stages of a run that others may have too are kept, by their names: `folder/NAME_DIGEST`.

    Two runs have a stage in common where its section is the same, and so is every part of the config that is no stage
    and decides numbers, and every stage that the section names, by itself or through a judge. Files that sections name
    are known by their names: a folder of shared stages is for runs on the same files. A policy that nothing but the
    last stage names is what a run is about: its own, as that stage is.
    """
    whole = config.to_dict()
    common = {key: value for key, value in whole.items() if key not in (*config.stages, "stages", *_FREE)}
    start = json.dumps(common, sort_keys=True, default=str)
    behind = {judge: set(_texts(section)) for judge, section in whole["judges"].items()}
    digests: dict[str, str] = {}
    names = {name: _named(set(_texts(whole[name])), behind) & set(config.stages) - {name} for name in config.stages}
    read = set().union(*(names[name] for name in config.stages[:-1]))
    for name in config.stages[:-1]:
        section, named = config[name], names[name]
        own = KINDS[section.kind].family == "policy" and name not in read
        if own or not named <= digests.keys():
            continue
        text = json.dumps([start, name, section.to_dict(), [digests[one] for one in sorted(named)]], sort_keys=True)
        digests[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {name: folder / f"{name}_{digest}" for name, digest in digests.items()}


def take(place: Path, stage: Path) -> bool:
    """Copies a finished stage that another run has kept; returns whether there is one."""
    if not place.is_dir():
        return False
    shutil.rmtree(stage, ignore_errors=True)
    _copy(place, stage)
    return True


def keep(stage: Path, place: Path) -> None:
    """Keeps a finished stage for other runs, unless one is kept already."""
    if place.exists():
        return
    make_directory(place.parent)
    try:
        _copy(stage, place)
    except UserError:
        if not place.exists():  # else another run has kept it in the meantime
            raise


def _copy(source: Path, target: Path) -> None:
    """As a whole or not at all."""
    with appearing(target) as part:
        shutil.copytree(source, part, dirs_exist_ok=True)


def _named(texts: set[str], behind: Mapping[str, set[str]]) -> set[str]:
    """Texts, and those of the judges that they name, however many stand behind each other."""
    found: set[str] = set()
    while texts - found:
        found |= texts
        texts = set().union(*(behind.get(text, set()) for text in texts))
    return found


def _texts(value: Any) -> Iterator[str]:
    """All texts in a section but kinds: values, and the keys of its parts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if key != "kind":
                yield from _texts(one)
                yield str(key)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
