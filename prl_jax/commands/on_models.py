"""What `prl judge`, `prl generate` and `prl export` do with a model directory."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from prl_jax.artifacts.cards import (
    EXPORT_FILE,
    Defaults,
    ModelCard,
    command_length,
    export_card,
    generation_lengths,
    read_card,
    sampling_config,
)
from prl_jax.artifacts.fingerprints import HUGGINGFACE_FILES
from prl_jax.artifacts.models import load_judge, load_model, load_policy, model_tokenizer
from prl_jax.commands.outputs import RowsFile, check_file, check_folder, digest_of, rows_file
from prl_jax.data.lines import Limits
from prl_jax.data.records import PreferenceRecord, PromptRecord
from prl_jax.data.sources import Records, SourceSpec, load_records
from prl_jax.errors import Stopped, UserError
from prl_jax.files import swapped_in, write_json
from prl_jax.judges import Judged
from prl_jax.measuring.records import Measured, invalid_rows, measure, unused_keys, unused_line
from prl_jax.models import Decoder, ScalarModel, merge, to_hf, with_param_dtype
from prl_jax.models.hf.peft import adapter_base, save_adapters
from prl_jax.processes import whole_batch
from prl_jax.progress import Progress
from prl_jax.runs.pieces import batches
from prl_jax.runs.stopping import StopSignal
from prl_jax.sampling import respond
from prl_jax.sharding import make_mesh
from prl_jax.stages.judging import judge_records, pair_metrics
from prl_jax.text.judging import JudgeTemplate

ON_LONG = ("error", "truncate", "skip")
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


def judge_file(
    model: Path, data: Path, out: Path, *, options: RowOptions = RowOptions(), stop: StopSignal | None = None
) -> dict[str, Any]:
    """Judges every pair of a file, writes `id, p_12, p_21, p_chosen` rows and returns the metrics.

    Raises:
      UserError: for whatever the user can mend, before anything is computed; and where judgements are not finite, once
        all are written.
      Stopped: `stop` said so; the rows that were judged are kept, and the same command continues.
    """
    mesh, stop = make_mesh(), StopSignal() if stop is None else stop
    card = _card(model, options, "judge")
    check_file(out, inputs=[data], models=_directories(model, card), overwrite=options.overwrite)
    records = _rows(data, "preference", options)
    template = None
    if card.template is not None:
        template = JudgeTemplate(**{**card.template, "verdicts": tuple(card.template["verdicts"])})
    measured = _measured("judge", records, model, options, template)
    pairs = np.maximum(measured.lengths["response"], measured.lengths["rejected"]) + measured.lengths["prompt"]
    needed = measured.judged if template else pairs
    chosen = _selected(records, measured, needed, command_length(card, options.max_length), options)
    judge = load_judge(
        model,
        mesh,
        batch_size=options.batch_size,
        max_length=chosen.length,
        defaults=options.defaults,
    )

    def ask(_: int, part: Sequence[PreferenceRecord]) -> list[dict[str, Any]]:
        return _judgements(part, judge_records(judge, part))

    made_from = _made_from("judge", model, card, records, options)
    with rows_file(out, made_from, overwrite=options.overwrite) as file:
        _work("judge", chosen.records, options.batch_size, ask, file, stop)
        file.finish()
    failed = sum(row["p_chosen"] is None for row in file.rows)
    _check_finite(failed, len(file.rows), "judgements", model, out)
    columns = (np.array([row[key] for row in file.rows], np.float64) for key in ("p_12", "p_21", "p_chosen"))
    return pair_metrics(*columns, list(chosen.records)) | dict(chosen.counts)


def _judgements(records: Sequence[PreferenceRecord], judged: Judged) -> list[dict[str, Any]]:
    finite = np.isfinite(judged.z_12) & np.isfinite(judged.z_21)
    names, columns = ("p_12", "p_21", "p_chosen"), (judged.p_12, judged.p_21, judged.p_first)
    numbers = zip(*(np.where(finite, column, np.nan).tolist() for column in columns), strict=True)
    return [
        {"id": record.id, **dict(zip(names, row, strict=True))} for record, row in zip(records, numbers, strict=True)
    ]


def generate_file(
    model: Path,
    prompts: Path,
    out: Path,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    options: RowOptions = RowOptions(),
    stop: StopSignal | None = None,
) -> dict[str, int]:
    """Writes a response to each prompt of a file: rows of `id, prompt, response, logp, truncated`.

    Returns:
      How many rows there are, and how many were truncated, skipped and invalid.

    Raises:
      UserError, Stopped: as of `judge_file`.
    """
    mesh, stop = make_mesh(), StopSignal() if stop is None else stop
    card = _card(model, options, "policy")
    check_file(out, inputs=[prompts], models=_directories(model, card), overwrite=options.overwrite)
    room, max_new_tokens = generation_lengths(card, max_new_tokens=max_new_tokens, max_length=options.max_length)
    values = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    tokenizer = model_tokenizer(model, options.defaults)
    config = sampling_config(card, tokenizer, max_new_tokens=max_new_tokens, **values)
    records = _rows(prompts, "prompt", options)
    measured = _measured("generate", records, model, options)
    chosen = _selected(records, measured, measured.lengths["prompt"], room, options)
    _, policy, _ = load_policy(model, mesh, defaults=options.defaults)
    size = whole_batch(min(options.batch_size, len(chosen.records)), mesh)

    def answer(first: int, part: Sequence[PromptRecord]) -> list[dict[str, Any]]:
        texts, rollout = respond(
            policy,
            tokenizer,
            [record.prompt for record in part],
            config=config,
            key=jax.random.key(seed),
            max_prompt=chosen.length,
            batch_size=size,
            mesh=mesh,
            first_row=first,
        )
        logp, cut = np.sum(rollout.logp, axis=1).tolist(), rollout.truncated.tolist()
        return [_response(*row) for row in zip(part, texts, logp, cut, strict=True)]

    sampled = {"seed": seed, "max_new_tokens": max_new_tokens, **values}
    made_from = _made_from("generate", model, card, records, options, **sampled)
    with rows_file(out, made_from, overwrite=options.overwrite) as file:
        _work("generate", chosen.records, size, answer, file, stop)
        file.finish()
    failed = sum(row["logp"] is None for row in file.rows)
    _check_finite(failed, len(file.rows), "responses' log-probabilities", model, out)
    return {"rows": len(file.rows), **chosen.counts}


def _response(record: PromptRecord, text: str, logp: float, cut: bool) -> dict[str, Any]:
    turns = [turn._asdict() for turn in record.prompt]
    # Where the log-probability is none, the tokens too were drawn from what is no distribution.
    text, number = (text, logp) if math.isfinite(logp) else (None, None)
    return {"id": record.id, "prompt": turns, "response": text, "logp": number, "truncated": cut}


def _card(model: Path, options: RowOptions, expected: str) -> ModelCard:
    card = read_card(model, options.defaults)
    if (card.kind == "policy") != (expected == "policy"):
        stages = "an sft or ppo stage" if expected == "policy" else "a bradley_terry or generative stage"
        raise UserError(f"{model}: holds a {card.kind}, expected a {expected} ({stages})")
    return card


def _directories(model: Path, card: ModelCard) -> list[Path]:
    """The directories that a model is read from."""
    bases = [adapter_base(model), None if card.base is None else model / card.base]
    return [model, *(base for base in bases if base is not None)]


def _made_from(
    command: str, model: Path, card: ModelCard, records: Records, options: RowOptions, **values: Any
) -> dict[str, Any]:
    """What the rows of an output depend on."""
    assert records.fingerprint is not None
    return {
        "command": command,
        "model": digest_of(_directories(model, card)),
        "data": dataclasses.asdict(records.fingerprint),
        **{key: getattr(options, key) for key in ("max_length", "on_long", "template_args")},
        **values,
    }


def _rows(path: Path, what: str, options: RowOptions) -> Records:
    """The records of a file, by ids that tell them apart."""
    spec = SourceSpec("jsonl", path=str(path), limits=options.limits)
    return load_records(spec, what, data_dir=path.parent).with_unique_ids()


def _measured(
    command: str, records: Records, model: Path, options: RowOptions, template: JudgeTemplate | None = None
) -> Measured:
    """Reads and measures all rows; too many that cannot be read are an error."""
    tokenizer = model_tokenizer(model, options.defaults)
    with Progress(f"{command}: reading", len(records), stream=sys.stderr, unit="row") as shown:
        update = shown.update if len(records) >= _SHOWN_ROWS else lambda done: None
        measured = measure(records, tokenizer, template=template, shown=update)
    invalid_rows([measured], options.skip_invalid, "--skip_invalid")
    unused = unused_line(unused_keys(records, measured), len(records))
    if unused:
        print(f"prl: {unused}", file=sys.stderr)
    return measured


def _selected(
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


def _work(command: str, records: Records, size: int, make: Any, file: RowsFile, stop: StopSignal) -> None:
    """Makes the rows that the file does not hold yet, batch by batch, with progress."""
    total, first = len(records), len(file.rows)
    step = -(-total // max(batches(total, size), 1))
    if first:
        print(f"prl: {file.path}: goes on behind the {first} rows that are there", file=sys.stderr)
    with Progress(command, total, stream=sys.stderr, unit="row") as shown, stop.after_steps():
        for start in range(first, total, step):
            file.add(make(start, list(records[start : start + step])))
            stop.done()
            shown.update(len(file.rows))
            if stop() and len(file.rows) < total:
                raise Stopped(f"{len(file.rows)} of {total} rows are kept in {file.path}")


def _check_finite(failed: int, total: int, what: str, model: Path, out: Path) -> None:
    if failed:
        raise UserError(
            f"{model}: {failed} of {total} {what} are not finite and stand as null in {out}; the model's parameters or "
            "activations hold NaN or infinities: use an earlier checkpoint or another dtype"
        )


def export_model(
    workdir: Path, stage: str, out: Path, *, adapters: bool, dtype: str, with_tokenizer: bool, overwrite: bool = False
) -> None:
    """Writes the model of a stage in Hugging Face's format, its adapters merged, or its adapters alone in PEFT's."""
    directory = workdir / stage
    check_folder(
        out, inputs=_directories(directory, read_card(directory)), overwrite=overwrite, written=HUGGINGFACE_FILES
    )
    card, model, tokenizer = load_model(directory, make_mesh())
    if adapters and (card.base is None or not isinstance(model, Decoder)):
        raise UserError(f"{directory}: --adapters exports a language model that was trained with lora.rank > 0")
    with swapped_in(out) as folder:
        if adapters:
            save_adapters(model, folder, base=str((directory / str(card.base)).resolve()))
            return
        if isinstance(model, ScalarModel):
            model.decoder = merge(model.decoder)
        else:
            model = merge(model)
        if dtype:
            model = with_param_dtype(model, dtype)
        kept = tokenizer if with_tokenizer else None
        to_hf(model, folder, tokenizer=kept, source=card.source, generation=card.generation)
        write_json(folder / EXPORT_FILE, export_card(card))
