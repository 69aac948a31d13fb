"""A kind of judge is one object. Whoever looks at the judges of a config asks the kind of each, and knows no names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from prl_jax.data.sources import Records
from prl_jax.judges import Judge, PolicyReader
from prl_jax.text.chat import Prompt


def _no_policy(name: str, criteria: str) -> PolicyReader:
    raise AssertionError(f"{name}: a judge without policies asks for one")


class Surroundings(NamedTuple):
    """The surroundings in which a judge is loaded.

    Attributes:
      config: the whole config.
      judge: loads a judge by its name: of the config's judges, of a stage, or a model directory.
      records: reads a section of a source as records of a kind ("prompt").
      folder: where it may keep files of its own.
      policy: loads a policy by its name, a stage or a model directory, as a reader of responses with some criteria.
    """

    config: ConfigDict
    judge: Callable[[str], Judge]
    records: Callable[[ConfigDict, str], Records]
    folder: Path
    policy: Callable[[str, str], PolicyReader] = _no_policy


@dataclasses.dataclass(frozen=True)
class JudgeKind:
    """All that the package knows of a kind of judge.

    Attributes:
      name: `kind` of a section of `judges`.
      declare: makes a section: its keys with their defaults, some of them replaced.
      load: makes the judge.
      check: raises `UserError`, which begins with a key of the section, for one that cannot be loaded.
      model: section -> the stage or model directory behind the judge; "" where none is.
      members: key of the section that holds the names of the judges that it asks; "" where it asks none.
      policies: keys of the section that each name a policy, a stage or a model directory, whose log-probabilities it
        reads.
      sources: keys of sources that it reads.
      scores: section -> whether it scores single responses too, where no model or members behind it tell.
      files: section -> the files that it is made of, where no model is behind it.
      word: what a command line may call a judge -> the keys of its section; None for what is none of this kind.
      built_in_tasks: whether it knows no other prompts than those of the built-in tasks.
      check_prompts: raises `UserError` for the first of some prompts that the judge cannot be asked about; None of a
        kind that can be asked about any.
    """

    name: str
    declare: Callable[..., dict[str, Any]]
    load: Callable[[ConfigDict, Surroundings], Judge]
    check: Callable[[ConfigDict], None] = lambda section: None
    model: Callable[[ConfigDict], str] = lambda section: ""
    members: str = ""
    policies: Sequence[str] = ()
    sources: Sequence[str] = ()
    scores: Callable[[ConfigDict], bool] = lambda section: False
    files: Callable[[ConfigDict], Sequence[Path]] = lambda section: ()
    word: Callable[[str], Mapping[str, Any] | None] = lambda word: None
    built_in_tasks: bool = False
    check_prompts: Callable[[ConfigDict, Surroundings, Iterable[Prompt]], None] | None = None
