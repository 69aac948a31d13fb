"""Checks of the files that a run reads, before it starts. Checks of its config are in checks.py.

Every record is parsed, rendered and measured by the tokenizers of the models that will read it, so that a conversation
that a chat template refuses shows with its file and line before the first stage, not in the middle of one.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from prl_jax.artifacts.fingerprints import looks, model_files
from prl_jax.artifacts.models import has_tokenizer
from prl_jax.config.rules import sources_in, value_at, whole_of
from prl_jax.data.sources import file_path
from prl_jax.errors import UserError, naming
from prl_jax.inputs.layout import check_layout
from prl_jax.inputs.measurements import Measurements
from prl_jax.inputs.readings import Reading, prompt_room, readings
from prl_jax.measuring.records import IDENTICAL, PLAIN, TIE, Measured, invalid_rows, unused_keys, unused_line
from prl_jax.processes import is_leader
from prl_jax.runs.context import (
    OF_STAGE,
    StageContext,
    first_model,
    is_directory,
    source_key,
    source_spec,
    trains_from_text,
)
from prl_jax.runs.judges import JUDGES, behind
from prl_jax.runs.models import named_judge, surroundings
from prl_jax.stages import KINDS
from prl_jax.text.chat import Turn, encode_prompt, fit_turns
from prl_jax.text.judging import encode_judge_row
from prl_jax.text.tokenizer import Tokenizer

LeftOut = Mapping[tuple[Any, ...], Sequence[int]]


def check_inputs(
    contexts: Sequence[StageContext], measurements: Measurements, *, absent: bool = False
) -> dict[str, LeftOut]:
    """Raises `UserError` for what the stages will not be able to use: their data, their batches on the mesh, their
    verdict words. Says in one line a stage what of their data will be cut or left out, and which keys nothing reads.

    Args:
      contexts: of the stages that will run.
      measurements: of their data, which are made where they are not there yet.
      absent: files of data and tokenizers that are not there are left for later (`prl plan`).

    Returns:
      For each stage, the records to leave out (`StageContext.left_out`).
    """
    left_out: dict[str, LeftOut] = {}
    named: set[tuple[str, str]] = set()
    for context in contexts:
        section, said = context.section, []
        check_layout(context.config, context.name, context.mesh)
        found = left_out[context.name] = {}
        for key, what in sources_in(section, KINDS[section.kind].rules):
            source = value_at(section, key)
            if source.kind == "gold" or _to_come(context, source):  # made when the run does; nothing is wrong with them
                said += [f"{key}: {line}" for line in _room_for_any(context, key, measurements, absent)]
                if not absent and source.kind == "gold":
                    _check_judges(context, key, what)
                continue
            if absent and not _exists(source):
                continue
            with naming(f"{context.name}.{key}"):
                bad, lines = _check_source(context, key, what, measurements, named, absent)
            merged = {*found.get(source_key(source, what), ()), *bad}
            found[source_key(source, what)] = sorted(merged)
            if not absent:
                _check_judges(dataclasses.replace(context, left_out=found), key, what)
            said += [f"{key}: {line}" for line in lines]
        if trains_from_text(section) and not (absent and _no_tokenizer(context, first_model(context))):
            _check_words(context, measurements.tokenizer(context, first_model(context)))
        if said and is_leader():
            print(f"{context.name:<16} {'; '.join(said)}", file=sys.stderr)
    return left_out


def check_finished(contexts: Sequence[StageContext]) -> None:
    """Raises `UserError` where a file that a finished stage has read is another one now. One that is gone is not."""
    for context in contexts:
        for key, what in sources_in(context.section, KINDS[context.section.kind].rules):
            source = value_at(context.section, key)
            if _exists(source):
                with naming(f"{context.name}.{key}"):
                    context.all_records(source, what)


def recognise_models(context: StageContext) -> None:
    """Raises `UserError` where a model directory that the config names, or a file that one of its judges is made of, is
    not what it was when the run began. A directory that is gone is left to whoever needs it."""
    for name in dict.fromkeys(_directories(context.config)):
        files = model_files(Path(name))
        if files:
            context.workdir.recognise_model(name, files)
    for name, section in context.config.judges.items():
        if files := looks(JUDGES[section.kind].files(section)):
            context.workdir.recognise_model(f"judges.{name}", files)


def _directories(values: Any) -> Iterator[str]:
    """Whatever could name a model directory in a config: the words with a slash, as keys and as values."""
    if isinstance(values, Mapping | ConfigDict):
        for key, value in values.items():
            yield from (*_directories(key), *_directories(value))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _directories(value)
    elif isinstance(values, str) and is_directory(values):
        yield values


def _to_come(context: StageContext, source: ConfigDict) -> bool:
    """Whether a source is one that an earlier stage has yet to make."""
    return source.kind == OF_STAGE and not context.pairs_file(source).is_file()


def _exists(source: ConfigDict) -> bool:
    """Whether a source is a file that is there."""
    try:
        return source.kind == "jsonl" and file_path(source_spec(source)).exists()
    except UserError:  # a variable that is not set
        return False


def _no_tokenizer(context: StageContext, name: str | None) -> bool:
    """Whether the tokenizer of a `Reader` is not there, or would have to be trained."""
    section = context.config.tokenizer
    if name == "":
        return section.kind == "bpe" or (section.kind == "huggingface" and not has_tokenizer(Path(section.path)))
    return name is not None and not has_tokenizer(Path(name))


def _check_source(
    context: StageContext,
    key: str,
    what: str,
    measurements: Measurements,
    named: set[tuple[str, str]],
    absent: bool,
) -> tuple[list[int], list[str]]:
    """Which records of a source to leave out, and what to say of it. Of each file, a key that nothing reads is named
    once: `named` has those that have been."""
    section, source = context.section, value_at(context.section, key)
    readers = readings(context, key)
    if absent:
        readers = [
            Reading(
                reader._replace(tokenizer=None, template=None) if _no_tokenizer(context, reader.tokenizer) else reader
            )
            for reader, _ in readers
        ]
    measured = [measurements(context, key, what, reading.reader) for reading in readers]
    bad, line = invalid_rows(measured, context.config.skip_invalid)
    lines = [line] if bad else []
    kept = np.delete(np.arange(len(measured[0])), bad)
    if not len(kept):
        raise UserError(f"{source.path}: no row is left; {line}")
    if what == "preference":
        _check_pairs(section, source.path, measured[0].kinds[kept])
    if what == "sft":
        count, undecided = len(kept), measured[0].kinds[kept] == TIE
        kept = kept[~undecided]
        if undecided.any():
            lines.append(f"{undecided.sum()} of {count} rows left out: pairs without a better response to imitate")
        if not len(kept):
            raise UserError(
                f"{source.path}: no row is left: none of its {count} pairs has a better response to imitate (ties, or "
                "p_chosen of at most 0.5)"
            )
    batches = KINDS[section.kind].rules.batches
    if key in batches and len(kept) < (size := value_at(section, batches[key])):
        lines.append(f"{len(kept)} rows do not fill a batch of {size}, which repeats some")
    lines += [line for reading, numbers in zip(readers, measured, strict=True) for line in _cut(reading, numbers, kept)]
    unused = unused_keys(measurements.records(context, key, what), measured[0])
    line = unused_line({k: n for k, n in unused.items() if (source.path, k) not in named}, len(measured[0]))
    named.update((source.path, k) for k in unused)
    return bad, list(dict.fromkeys([*lines, line] if line else lines))


def _check_judges(context: StageContext, key: str, what: str) -> None:
    """Raises `UserError` where a judge would be asked about a prompt of a source that it cannot judge."""
    section, judges = context.section, context.config.judges
    asked = [reads.model for reads in KINDS[section.kind].reads(context.name, section, whole_of(key))]
    for name in dict.fromkeys(one for judge in asked for one in behind(judges, judge) if one in judges):
        check = JUDGES[judges[name].kind].check_prompts
        if check is not None:
            load = functools.partial(named_judge, context, batch_size=1)
            with naming(f"{context.name}.{key}: judges.{name}"):
                prompts = (record.prompt for record in context.records(value_at(section, key), what))
                check(judges[name], surroundings(context, load), prompts)


def _check_words(context: StageContext, tokenizer: Tokenizer) -> None:
    """Checks that a stage's template and the chat template leave room in a row, and that its words are tokens."""
    section, words = context.section, KINDS[context.section.kind].words
    if "max_prompt" in section:
        with naming(f"{context.name}.max_prompt"):
            fit_turns(tokenizer, (Turn("user", ""),), section.max_prompt)
    if words is not None:
        with naming(context.name):
            words(section, tokenizer)


def _check_pairs(section: ConfigDict, path: str, kinds: np.ndarray) -> None:
    """Raises `UserError` where there is no pair to learn from, or to be right about."""
    identical, ties = (int((kinds == kind).sum()) for kind in (IDENTICAL, TIE))
    if (kinds == PLAIN).any() or (ties and section.get("soft_labels", False)):
        return
    raise UserError(
        f"{path}: none of its {len(kinds)} pairs has a better response (pairs of identical responses: {identical}, "
        f"ties: {ties}); expected at least one that has"
    )


def _cut(reading: Reading, measured: Measured, kept: np.ndarray) -> list[str]:
    """Lines that say how many records there is not enough room for."""
    lines = []
    for limit in reading.limits:
        lengths = limit.lengths(measured)[kept]
        over = int((lengths > limit.tokens).sum())
        if over and limit.written:
            lines.append(
                f"{limit.key}={limit.tokens} may cut comparisons on {over} of {len(kept)} prompts: two responses of "
                f"{limit.written} tokens and what is written around them take up to {lengths.max()}"
            )
        elif over:
            lines.append(f"{limit.key}={limit.tokens} cuts {over} of {len(kept)} rows (the longest: {lengths.max()})")
    return lines


def _room_for_any(context: StageContext, key: str, measurements: Measurements, absent: bool) -> list[str]:
    """A line about each generative judge whose rows may not hold all that a policy will read and write, of prompts that
    nobody has measured."""
    lines, question = [], (Turn("user", ""),)
    for (name, template, *_), limits in readings(context, key):
        for limit in limits:
            if limit.written and template and not (absent and _no_tokenizer(context, name)):
                tokenizer = measurements.tokenizer(context, name)
                bare = len(encode_judge_row(tokenizer, template, question, "", "", max_length=2**30).ids)
                content = max(prompt_room(context, key) - len(encode_prompt(tokenizer, question)), 0)
                if (needed := bare + content + 2 * limit.written) > limit.tokens:
                    lines.append(
                        f"{limit.key}={limit.tokens} may cut comparisons: a prompt of {content} tokens, two responses "
                        f"of {limit.written} and what is written around them take {needed}"
                    )
    return lines
