"""The rows of a file, read, measured and worked on batch by batch, for `prl judge` and `prl generate`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from prl_jax.artifacts.cards import Defaults, ModelCard, read_card
from prl_jax.artifacts.models import model_tokenizer
from prl_jax.commands.outputs import RowsFile, digest_of
from prl_jax.data.lines import Limits
from prl_jax.data.sources import Records, SourceSpec, load_records
from prl_jax.errors import Stopped, UserError
from prl_jax.measuring.records import Measured, invalid_rows, measure, unused_keys, unused_line
from prl_jax.models.hf.peft import adapter_base
from prl_jax.progress import Progress
from prl_jax.runs.pieces import batches
from prl_jax.runs.stopping import StopSignal
from prl_jax.stages import KINDS
from prl_jax.text.judging import JudgeTemplate

_MULTIPLE = 64  # of tokens: rows of a file are as long as its longest, rounded up to this
_SHOWN_ROWS = 2000  # reading fewer takes no time worth a line of progress


@dataclasses.dataclass(frozen=True)
class RowOptions:
    """How `judge` and `generate` treat the rows of a file.

    Attributes:
      batch_size: rows of a batch.
      max_length: tokens of a row, at most; 0 for the model's own context.
      on_long: what becomes of a row that has more: "error", "truncate" or "skip".
      skip_invalid: how many rows that cannot be read are left out, before it is an error.
      template_args: what the chat template is given beside the conversation.
      overwrite: whether an output that is there is replaced.
      limits: bounds on the file of rows.
    """

    batch_size: int = 256
    max_length: int = 0
    on_long: str = "error"
    skip_invalid: int = 0
    template_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    overwrite: bool = False
    limits: Limits = Limits()

    @property
    def defaults(self) -> Defaults:
        return Defaults(template_args=dict(self.template_args))


DEFAULT_OPTIONS = RowOptions()


@dataclasses.dataclass(frozen=True)
class Selected:
    """The rows of a file that are worked on.

    Attributes:
      records: without those that were left out.
      length: tokens that the longest takes, rounded up, at most what is allowed.
      counts: `truncated`, `skipped` and `invalid` rows.
    """

    records: Records
    length: int
    counts: Mapping[str, int]


def command_card(model: Path, options: RowOptions, expected: str) -> ModelCard:
    card = read_card(model, options.defaults)
    if (card.kind == "policy") != (expected == "policy"):
        kinds = [kind for kind in KINDS.values() if kind.writes and (kind.writes == "policy") == (expected == "policy")]
        stages = " or ".join(kind.name for kind in kinds)
        raise UserError(f"{model}: holds a {card.kind}, expected a {expected} (of a stage of kind {stages})")
    return card


def directories(model: Path, card: ModelCard) -> list[Path]:
    """The directories that a model is read from."""
    bases = [adapter_base(model), None if card.base is None else model / card.base]
    return [model, *(base for base in bases if base is not None)]


def origin_of(
    command: str, model: Path, card: ModelCard, records: Records, options: RowOptions, **values: Any
) -> dict[str, Any]:
    """Returns all that the rows of an output depend on."""
    assert records.fingerprint is not None
    return {
        "command": command,
        "model": digest_of(directories(model, card)),
        "data": dataclasses.asdict(records.fingerprint),
        **{key: getattr(options, key) for key in ("max_length", "on_long", "template_args")},
        **values,
    }


def read_rows(path: Path, what: str, options: RowOptions) -> Records:
    """The records of a file, by ids that tell them apart."""
    spec = SourceSpec("jsonl", path=str(path), limits=options.limits)
    return load_records(spec, what, data_dir=path.parent).with_unique_ids()


def measured_rows(
    command: str,
    records: Records,
    model: Path | None,
    options: RowOptions,
    template: JudgeTemplate | None = None,
    *,
    gold: bool = False,
) -> Measured:
    """Reads all rows, and measures them for a model; too many that cannot be read are an error.

    With `gold`, prompts that are none of the built-in tasks cannot be read.
    """
    tokenizer = None if model is None else model_tokenizer(model, options.defaults)
    with Progress(f"{command}: reading", len(records), stream=sys.stderr, unit="row") as progress:
        update = progress.update if len(records) >= _SHOWN_ROWS else lambda done: None
        measured = measure(records, tokenizer, template=template, gold=gold, progress=update)
    invalid_rows([measured], options.skip_invalid, "--skip_invalid")
    unused = unused_line(unused_keys(records, measured), len(records))
    if unused:
        print(f"prl: {unused}", file=sys.stderr)
    return measured


def selected_rows(
    records: Records, measured: Measured, needed: Int[np.ndarray, "N"], limit: int, options: RowOptions
) -> Selected:
    """The rows that are worked on, of those that were read; `needed` are their tokens."""
    keep = np.ones(len(records), bool)
    keep[list(measured.problems)] = False
    long = keep & (needed > limit)
    if long.any() and options.on_long == "error":
        first = int(np.argmax(long))
        raise UserError(
            f"{_place(records, first)}: takes {needed[first]} tokens, the model has room for {limit} "
            f"({_of(int(long.sum()), records)} too long); shorten them, or give --on_long truncate or skip"
        )
    if options.on_long == "skip":
        keep &= ~long
    if not keep.any():
        raise UserError(f"none of the {len(records)} rows can be used: all are too long or cannot be read")
    counts = {
        "truncated": int(long.sum()) if options.on_long == "truncate" else 0,
        "skipped": int(long.sum()) if options.on_long == "skip" else 0,
        "invalid": len(measured.problems),
    }
    length = min(limit, -(-int(needed[keep].max()) // _MULTIPLE) * _MULTIPLE)
    return Selected(records.take(np.flatnonzero(keep)), length, counts)


def _of(number: int, records: Records) -> str:
    return f"{number} of {len(records)} rows {'is' if number == 1 else 'are'}"


def _place(records: Records, index: int) -> str:
    """A row by its file and line, and by its id where it has one."""
    place, name = records.place(index), records[index].id
    return place if name == place else f"{place} ({name!r})"


def work(command: str, records: Records, size: int, make: Any, file: RowsFile, stop: StopSignal) -> None:
    """Makes the rows that the file does not hold yet, batch by batch, with progress."""
    total, first = len(records), len(file.rows)
    step = -(-total // max(batches(total, size), 1))
    if first:
        print(f"prl: {file.path}: goes on behind the {first} rows that are there", file=sys.stderr)
    with Progress(command, total, stream=sys.stderr, unit="row") as progress, stop.after_steps():
        for start in range(first, total, step):
            file.add(make(start, list(records[start : start + step])))
            stop.done()
            progress.update(len(file.rows))
            if stop() and len(file.rows) < total:
                raise Stopped(f"{len(file.rows)} of {total} rows are kept in {file.path}")


def check_finite(failed: int, total: int, what: str, model: Path, out: Path) -> None:
    if failed:
        raise UserError(
            f"{model}: {failed} of {total} {what} are not finite and stand as null in {out}; the model's parameters or "
            "activations hold NaN or infinities: use an earlier checkpoint or another dtype"
        )
