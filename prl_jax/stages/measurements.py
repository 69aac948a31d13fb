"""The measurements of a run: each source once for each model that reads it, by all processes, from the workdir where
they were made before."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from prl_jax.data.sources import Records
from prl_jax.errors import Stopped, UserError
from prl_jax.processes import agreed, all_rows
from prl_jax.stages.artifacts import model_tokenizer
from prl_jax.stages.cards import read_card
from prl_jax.stages.context import StageContext, run_tokenizer, source_key
from prl_jax.stages.measured_files import identity, keep_measured, read_measured, versions
from prl_jax.stages.measuring import Lengths, Measured, Measurer, look, measure_with
from prl_jax.stages.readings import Reader
from prl_jax.stages.rules import value_at
from prl_jax.text.tokenizer import Tokenizer

_WORTH_KEEPING = 500  # rows; fewer are measured again before the file would be read
_BLOCK = 2**13  # rows after which several processes ask together whether to stop
_SILENT_SECONDS, _EVERY_SECONDS = 2.0, 0.2  # before the first line of progress, and between two


class Measurements:
    """Measures sources, each once.

    Args:
      contexts: of the stages that read them.
      tokenizer: that of the models that are made from scratch, where it is known already.
    """

    def __init__(self, contexts: Sequence[StageContext], tokenizer: Tokenizer | None):
        self._tokenizers: dict[str, Tokenizer] = {} if tokenizer is None else {"": tokenizer}
        self._contexts = contexts
        self._lengths: dict[str, Lengths] = {}
        self._found: dict[tuple[Any, ...], Measured] = {}
        self._identities: dict[str, str] = {}
        self._to_keep: list[tuple[dict[str, Any], Measured]] = []

    def __call__(self, context: StageContext, key: str, what: str, records: Records, reader: Reader) -> Measured:
        """What the records of a stage's source `key` are to a reader."""
        name = (source_key(value_at(context.section, key), what), reader)
        if name not in self._found:
            self._found[name] = self._measured(context, key, what, records, reader)
        return self._found[name]

    def tokenizer(self, name: str) -> Tokenizer:
        """That of a model directory, or of the run (see `Reader`)."""
        if name not in self._tokenizers:
            context = self._contexts[0]
            found = model_tokenizer(Path(name), context.defaults) if name else run_tokenizer(context)
            self._tokenizers[name] = found
        return self._tokenizers[name]

    def _lengths_of(self, name: str | None) -> Lengths | None:
        if name is None:
            return None
        return self._lengths.setdefault(name, Lengths(self.tokenizer(name)))

    def keep(self) -> None:
        """Writes what has been measured to the workdir."""
        for made_from, measured in self._to_keep:
            keep_measured(self._folder, made_from, measured)

    @property
    def _folder(self) -> Path:
        return self._contexts[0].workdir.path / "data" / "measured"

    def _measured(self, context: StageContext, key: str, what: str, records: Records, reader: Reader) -> Measured:
        measurer = Measurer(self._lengths_of(reader.tokenizer), *reader[1:])
        kept = records.fingerprint is not None and len(records) >= _WORTH_KEEPING
        made_from = self._made_from(value_at(context.section, key), what, records, reader) if kept else {}
        found = read_measured(self._folder, made_from, len(records)) if kept else None
        if agreed(found is not None):
            assert found is not None
            return found
        with _progress(context, key, len(records)) as shown:
            found = _measure_together(records, measurer, shown, context.stop)
        if kept:
            self._to_keep.append((made_from, found))
        return found

    def _made_from(self, source: ConfigDict, what: str, records: Records, reader: Reader) -> dict[str, Any]:
        """What the numbers follow from, as JSON holds it."""
        name, fingerprint = reader.tokenizer, records.fingerprint
        if name is not None and name not in self._identities:
            self._identities[name] = identity(self.tokenizer(name))
        template = None if reader.template is None else dataclasses.asdict(reader.template)
        return json.loads(
            json.dumps(
                {
                    "data": None if fingerprint is None else dataclasses.asdict(fingerprint),
                    "rows": [source.skip, len(records)],
                    "what": what,
                    "tokenizer": None if name is None else self._identities[name],
                    "template_args": self._template_args(name),
                    "reader": {**reader._asdict(), "tokenizer": None, "template": template},
                    "versions": versions(),
                }
            )
        )

    def _template_args(self, name: str | None) -> dict[str, Any]:
        defaults = self._contexts[0].defaults
        return dict(read_card(Path(name), defaults).template_args if name else defaults.template_args)


def _measure_together(
    records: Records, measurer: Measurer, shown: Callable[[int], None], stop: Callable[[], bool]
) -> Measured:
    """Each process measures a part of the records, and has the numbers of all."""
    number, index = jax.process_count(), jax.process_index()
    if number == 1:  # where a signal ends the run at once
        return measure_with(records, measurer, shown)
    parts = []
    for first in range(0, len(records), _BLOCK * number):
        if stop():
            raise Stopped("the data have been read in part; nothing has been done yet")
        block = records[first : first + _BLOCK * number]
        parts.append(measure_with(block[index::number], measurer).rows)
        shown(first + len(block))
        parts[-1] = all_rows(parts[-1], len(block))
    found = Measured.of(np.concatenate(parts), "")
    return dataclasses.replace(found, reason=_reason(records, measurer, found.problems))


def _reason(records: Records, measurer: Measurer, problems: Sequence[int]) -> str:
    """Why the first of them cannot be read: every process says the same."""
    for i in problems[:1]:
        try:
            look(records, i, measurer)
        except UserError as error:
            return str(error)
    return ""


@contextlib.contextmanager
def _progress(context: StageContext, key: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many records are done, where it takes long."""
    start, line = time.monotonic(), None
    last = start + _SILENT_SECONDS - _EVERY_SECONDS

    def shown(done: int) -> None:
        nonlocal last, line
        now = time.monotonic()
        if now - last >= _EVERY_SECONDS:
            last, line = now, line or context.progress(total, name=f"{context.name}.{key}", unit="row")
            line.update(done)

    try:
        yield shown
    finally:
        if line is not None:
            line.close()
