"""`prl judge`: what a judge says of the pairs of a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import ModelCard, command_length
from prl_jax.artifacts.fingerprints import looks
from prl_jax.artifacts.models import load_judge
from prl_jax.commands.outputs import check_file, rows_file
from prl_jax.commands.rows import (
    DEFAULT_OPTIONS,
    RowOptions,
    Selected,
    check_finite,
    command_card,
    directories,
    measured_rows,
    origin_of,
    read_rows,
    selected_rows,
    work,
)
from prl_jax.config.declare import build
from prl_jax.data.records import PreferenceRecord
from prl_jax.data.sources import Records
from prl_jax.errors import UserError
from prl_jax.files import local_path
from prl_jax.judges import Judge, Judged
from prl_jax.measuring.records import Measured
from prl_jax.runs.judges import JUDGES
from prl_jax.runs.judges.kind import JudgeKind, Surroundings
from prl_jax.runs.stopping import StopSignal
from prl_jax.sharding import make_mesh
from prl_jax.stages.judging import judge_counters, judge_records, pair_metrics
from prl_jax.text.judging import JudgeTemplate


class Asked(NamedTuple):
    """Whom a command asks about which rows.

    Attributes:
      load: makes the judge.
      rows: the rows that it is asked about.
      origin: what the output depends on.
    """

    load: Callable[[], Judge]
    rows: Selected
    origin: dict[str, Any]


def judge_file(
    judge: str, data: Path, out: Path, *, options: RowOptions = DEFAULT_OPTIONS, stop: StopSignal | None = None
) -> dict[str, Any]:
    """Judges every pair of a file, writes `id, p_12, p_21, p_chosen` rows and returns the metrics.

    Args:
      judge: the directory of a judge, "gold", a function as `FILE.py:FUNCTION`, or an endpoint as `URL#MODEL`.
      data: preference pairs.
      out: where the judgements go.
      options: how rows are treated.
      stop: tells whether to end early.

    Raises:
      UserError: for whatever the user can mend, before anything is computed; and where judgements are not finite, once
        all are written.
      Stopped: `stop` said so; the rows that were judged are kept, and the same command continues.
    """
    stop = StopSignal() if stop is None else stop
    kind, section = _named(judge)
    model = kind.model(section)
    asked = _model(model, data, out, options) if model else _rule(kind, section, judge, data, out, options)

    def ask(_: int, part: Sequence[PreferenceRecord]) -> list[dict[str, Any]]:
        return _judgements(part, judge_records(loaded, part))

    loaded = asked.load()
    with rows_file(out, asked.origin, overwrite=options.overwrite) as file:
        work("judge", asked.rows.records, options.batch_size, ask, file, stop)
        file.finish()
    failed = sum(row["p_chosen"] is None for row in file.rows)
    check_finite(failed, len(file.rows), "judgements", Path(judge), out)
    columns = (np.array([row[key] for row in file.rows], np.float64) for key in ("p_12", "p_21", "p_chosen"))
    return pair_metrics(*columns, list(asked.rows.records)) | dict(asked.rows.counts) | judge_counters(loaded)


def _named(judge: str) -> tuple[JudgeKind, ConfigDict]:
    """The kind of the judge that a command line names, and its section."""
    kind, keys = next((kind, keys) for kind in JUDGES.values() if (keys := kind.word(judge)) is not None)
    section = ConfigDict(kind.declare(**keys))
    kind.check(section)
    return kind, section


def _rule(kind: JudgeKind, section: ConfigDict, judge: str, data: Path, out: Path, options: RowOptions) -> Asked:
    """A judge without a model, which reads rows of any length."""
    for flag in ("max_length", "on_long", "template_args"):
        if (given := getattr(options, flag)) != getattr(DEFAULT_OPTIONS, flag):
            raise UserError(f"--{flag}={given}: {judge} has no model, and reads rows of any length; leave the flag out")
    files = kind.files(section)
    check_file(out, inputs=[data, *files], models=[], overwrite=options.overwrite)
    records = read_rows(data, "preference", options)
    measured = measured_rows("judge", records, None, options, gold=kind.built_in_tasks)
    rows = selected_rows(records, measured, np.zeros(len(records), np.int64), 0, options)
    assert records.fingerprint is not None
    origin = {"command": "judge", "judge": judge, "code": looks(files), "data": dataclasses.asdict(records.fingerprint)}
    return Asked(lambda: kind.load(section, Surroundings(build({}), _no_model, _no_source, out.parent)), rows, origin)


def _no_model(name: str) -> Judge:
    raise AssertionError(f"{name}: a judge without a model asks for one")


def _no_source(section: ConfigDict, what: str) -> Records:
    raise AssertionError(f"{section}: a judge without a source reads one")


def _model(judge: str, data: Path, out: Path, options: RowOptions) -> Asked:
    """A trained judge."""
    model, mesh = local_path(judge), make_mesh()
    card = command_card(model, options, "judge")
    check_file(out, inputs=[data], models=directories(model, card), overwrite=options.overwrite)
    records = read_rows(data, "preference", options)
    template = None
    if card.template is not None:
        template = JudgeTemplate(**{**card.template, "verdicts": tuple(card.template["verdicts"])})
    measured = measured_rows("judge", records, model, options, template)
    limit = command_length(card, options.max_length)
    needed = measured.judged if template else _scored_tokens(card, measured, limit)
    chosen = selected_rows(records, measured, needed, limit, options)
    length = dict(batch_size=options.batch_size, max_length=chosen.length, defaults=options.defaults)
    origin = origin_of("judge", model, card, records, options)
    return Asked(lambda: load_judge(model, mesh, **length), chosen, origin)


def _scored_tokens(card: ModelCard, measured: Measured, limit: int) -> Int[np.ndarray, "N"]:
    """Tokens that each pair needs of a scalar judge's row of `limit`.

    Without a context of its own a model is asked as it was trained: what is too long for its part of the row is too
    long, however short the other part is.
    """
    if card.context:
        return measured.scored
    responses = np.maximum(measured.lengths["response"], measured.lengths["rejected"])
    beyond = np.maximum(measured.lengths["prompt"] - card.max_prompt, responses - card.max_response)
    return np.where(beyond > 0, limit + beyond, measured.scored)


def _judgements(records: Sequence[PreferenceRecord], judged: Judged) -> list[dict[str, Any]]:
    finite = np.isfinite(judged.z_12) & np.isfinite(judged.z_21)
    names, columns = ("p_12", "p_21", "p_chosen"), (judged.p_12, judged.p_21, judged.p_first)
    numbers = zip(*(np.where(finite, column, np.nan).tolist() for column in columns), strict=True)
    return [
        {"id": record.id, **dict(zip(names, row, strict=True))} for record, row in zip(records, numbers, strict=True)
    ]
