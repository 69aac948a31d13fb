"""The measurements of a run: each source once for each model that reads it, by all processes, from the workdir where
they were made before."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import read_card
from prl_jax.artifacts.models import model_tokenizer
from prl_jax.config.rules import value_at
from prl_jax.data.sources import Records
from prl_jax.errors import Stopped, UserError
from prl_jax.file_names import DATA_DIR, MEASURED_DIR
from prl_jax.inputs.readings import Reader
from prl_jax.measuring.apart import measure_fast
from prl_jax.measuring.files import identity, keep_measured, read_measured, versions
from prl_jax.measuring.records import Lengths, Measured, Measurer, look, measure_with
from prl_jax.processes import agreed, all_rows
from prl_jax.runs.context import StageContext, run_tokenizer, source_key
from prl_jax.runs.workdir import Workdir
from prl_jax.text.tokenizer import Tokenizer

_WORTH_KEEPING = 500  # rows; fewer are measured again before the file would be read
_BLOCK = 2**13  # rows after which several processes ask together whether to stop
_SILENT_SECONDS, _EVERY_SECONDS = 2.0, 0.2  # before the first line of progress, and between two


class Measurements:
    """Measures the sources of a run, each once for each of its readers."""

    def __init__(self) -> None:
        self._tokenizers: dict[str, Tokenizer] = {}
        self._lengths: dict[str, Lengths] = {}
        self._identities: dict[str, str] = {}
        self._records: dict[tuple[Any, ...], Records] = {}
        self._found: dict[tuple[tuple[Any, ...], Reader], Measured] = {}
        self._to_keep: list[tuple[dict[str, Any], Measured]] = []

    def records(self, context: StageContext, key: str, what: str) -> Records:
        """All the records of a stage's source. Errors: `UserError` for a file that cannot be opened."""
        name = source_key(value_at(context.section, key), what)
        if name not in self._records:
            self._records[name] = context.all_records(value_at(context.section, key), what)
        return self._records[name]

    def __call__(self, context: StageContext, key: str, what: str, reader: Reader) -> Measured:
        """Measures all the records of a stage's source `key` as a reader takes them. Errors: `UserError` for a
        file that cannot be opened."""
        name = (source_key(value_at(context.section, key), what), reader)
        if name not in self._found:
            self._found[name] = self._measured(context, key, what, self.records(context, key, what), reader)
        return self._found[name]

    def tokenizer(self, context: StageContext, name: str) -> Tokenizer:
        """The tokenizer of a model directory, or of the run (see `Reader`); any context of the run will do."""
        if name not in self._tokenizers:
            found = model_tokenizer(Path(name), context.defaults) if name else run_tokenizer(context)
            self._tokenizers[name] = found
        return self._tokenizers[name]

    def keep(self, workdir: Workdir) -> None:
        """Writes what has been measured to the workdir."""
        for made_from, measured in self._to_keep:
            keep_measured(_folder(workdir), made_from, measured)

    def _measured(self, context: StageContext, key: str, what: str, records: Records, reader: Reader) -> Measured:
        source, lengths = value_at(context.section, key), None
        if reader.tokenizer is not None:
            tokenizer = self.tokenizer(context, reader.tokenizer)
            lengths = self._lengths.setdefault(reader.tokenizer, Lengths(tokenizer))
        kept = records.fingerprint is not None and len(records) >= _WORTH_KEEPING
        made_from = self._made_from(context, source, what, records, reader) if kept else {}
        found = read_measured(_folder(context.workdir), made_from, len(records)) if kept else None
        if agreed(found is not None):
            assert found is not None
            return found
        with _progress(context, key, len(records)) as progress:
            measurer = Measurer(lengths, *reader[1:])
            arguments = _template_args(context, reader.tokenizer)
            found = _measure_together(records, measurer, arguments, progress, context.stop)
        if kept:
            self._to_keep.append((made_from, found))
        return found

    def _made_from(
        self, context: StageContext, source: ConfigDict, what: str, records: Records, reader: Reader
    ) -> dict[str, Any]:
        """Returns all that the numbers follow from, as JSON holds it."""
        name, fingerprint = reader.tokenizer, records.fingerprint
        assert fingerprint is not None
        if name is not None and name not in self._identities:
            self._identities[name] = identity(self.tokenizer(context, name))
        template = None if reader.template is None else dataclasses.asdict(reader.template)
        made_from = {
            "data": dataclasses.asdict(fingerprint),
            "rows": [source.skip, len(records)],
            "what": what,
            "tokenizer": None if name is None else self._identities[name],
            "template_args": _template_args(context, name),
            "reader": {**reader._asdict(), "tokenizer": None, "template": template},
            "versions": versions(),
        }
        return json.loads(json.dumps(made_from))


def _template_args(context: StageContext, name: str | None) -> dict[str, Any]:
    """Returns what the chat template of a reader's tokenizer is given beside the conversation."""
    card = read_card(Path(name), context.defaults) if name else context.defaults
    return dict(card.template_args)


def _folder(workdir: Workdir) -> Path:
    return workdir.path / DATA_DIR / MEASURED_DIR


def _measure_together(
    records: Records,
    measurer: Measurer,
    template_args: Mapping[str, Any],
    progress: Callable[[int], None],
    stop: Callable[[], bool],
) -> Measured:
    """Each process of the run measures a part of the records, and has the numbers of all; a single one uses all
    cores."""
    number, index = jax.process_count(), jax.process_index()
    if number == 1:  # where a signal ends the run at once
        return measure_fast(records, measurer, template_args, progress)
    parts = []
    for first in range(0, len(records), _BLOCK * number):
        if stop():
            raise Stopped("the data have been read in part; nothing has been done yet")
        block = records[first : first + _BLOCK * number]
        measured_here = measure_with(block[index::number], measurer)
        progress(first + len(block))
        parts.append(all_rows(measured_here.rows, len(block)))
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

    def progress(done: int) -> None:
        nonlocal last, line
        now = time.monotonic()
        if now - last >= _EVERY_SECONDS:
            last, line = now, line or context.progress(total, name=f"{context.name}.{key}", unit="row")
            line.update(done)

    try:
        yield progress
    finally:
        if line is not None:
            line.close()
