"""The rules of a kind of stage, as data. A config is held against it before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

RESULTS = ("last", "best")  # which parameters of a stage are its result
NONE = "none"  # beside families of stages: the empty name
MIX = "mix"  # the kind of a source that has parts, and the key of these


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules of one kind of stage. Keys are dotted names inside its section.

    Attributes:
      stages: key -> what it may name: families of earlier stages, or what these write (`Kind.family`, `Kind.writes`),
        `NONE`.
      sources: key of a data source -> the kind of record that is read from it.
      choices: key -> the words that it may be.
      lengths: durations that count the data, so that epochs and examples mean something.
      durations: durations that are parts of the stage.
      optimizers: keys of optimizers.
      at_least: key -> its smallest value.
      from_data: lengths that may be 0: as long as the data need.
      models: keys that name models which the stage holds on its devices; the value of a key may be a list of them.
      batches: key of a source that is gone over in batches of one size -> key of that size.
      unions: sections whose keys depend on what they say themselves; `Kind.checks` hold them against it.
      evaluates: the duration between two evaluations, where the stage may give on the best one (`result`).
      unused: a section -> keys that it does not look at, as it stands.
    """

    stages: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    choices: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    lengths: Sequence[str] = ()
    durations: Sequence[str] = ()
    optimizers: Sequence[str] = ()
    at_least: Mapping[str, int] = dataclasses.field(default_factory=dict)
    from_data: Sequence[str] = ()
    models: Sequence[str] = ()
    batches: Mapping[str, str] = dataclasses.field(default_factory=dict)
    evaluates: str = ""
    unions: Sequence[str] = ()
    unused: Callable[[ConfigDict], Sequence[str]] = lambda section: ()


def value_at(section: ConfigDict, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        section = section[part]
    return section


def sources_in(section: ConfigDict, rules: Rules) -> Iterator[tuple[str, str]]:
    """The keys of the sources that a section reads, each with its kind of record; of a mixture, those of its parts
    (`data.mix.own`). Without keys that the section does not look at."""
    unused = rules.unused(section)
    for key, what in rules.sources.items():
        if key not in unused:
            yield from ((one, what) for one in parts_of(section, key))


def parts_of(section: ConfigDict, key: str) -> Sequence[str]:
    """The keys of the parts of a source, where it is a mixture; else its own key."""
    source = value_at(section, key)
    return [f"{key}.{MIX}.{name}" for name in source[MIX]] if source.kind == MIX else [key]


def whole_of(key: str) -> str:
    """`data.mix.own -> data`: the key of the source that this is a part of, or is."""
    return key.partition(f".{MIX}.")[0]


def names_at(section: ConfigDict, key: str) -> tuple[str, ...]:
    """The names that a key holds, one or several; none where it is empty, or the section has no such key."""
    *path, last = key.split(".")
    for part in path:
        section = section.get(part, {})
    value = section.get(last, ())
    return tuple(name for name in ((value,) if isinstance(value, str) else value) if name)
