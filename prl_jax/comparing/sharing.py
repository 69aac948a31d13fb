"""Stages that several runs have in common, such as SFT and judges: made by one of them, copied by the others."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from prl_jax.stages import KINDS


def places(config: ConfigDict, folder: Path) -> dict[str, Path]:
    """Where the stages of a run that others may have too are kept, by their names: `folder/NAME_DIGEST`.

    Two runs have a stage in common where its section is the same, and so are the seed, the data, the model, the judges
    and every stage that the section names. A policy that nothing but the last stage names is what a run is about: its
    own, as that stage is.
    """
    common = [config[name].to_dict() for name in ("gold", "model", "judges")]
    start = json.dumps([config.seed, *common], sort_keys=True, default=str)
    digests: dict[str, str] = {}
    names = {name: set(_texts(config[name].to_dict())) & set(config.stages) - {name} for name in config.stages}
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
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # another run has kept it in the meantime
            _copy(stage, place)


def _copy(source: Path, target: Path) -> None:
    """As a whole or not at all."""
    part = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        shutil.copytree(source, part, dirs_exist_ok=True)
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


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
