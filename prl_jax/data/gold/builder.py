"""The TFDS builder of the built-in tasks (array_record, no TensorFlow) and the records read from it."""

import contextlib
import fcntl
import io
import json
import random
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from prl_jax.data.gold import candidates, families, preferences
from prl_jax.data.gold.arguments import KINDS, SPLITS, GoldArguments, make_arguments
from prl_jax.data.gold.families import GoldTask
from prl_jax.data.records import PreferenceRecord, PromptRecord, SFTRecord
from prl_jax.errors import UserError
from prl_jax.files import open_lock
from prl_jax.text.chat import Turn

SOURCE = "gold"
_TEXTS = {"preference": ("chosen", "rejected"), "sft": ("response",), "prompt": ("reference",)}


class _LocalInfo(tfds.core.DatasetInfo):
    """Data that nobody else has prepared: TFDS would ask Google's servers, and leave an empty folder in /tmp."""

    def initialize_from_bucket(self) -> None:
        pass


class PrlGold(tfds.core.GeneratorBasedBuilder):
    """Built-in gold tasks. One config per kind of record (preference, sft, prompt) and set of arguments."""

    VERSION = tfds.core.Version("1.0.0")  # goes up whenever other rows come out for the same arguments
    RELEASE_NOTES = {"1.0.0": "First version."}
    url_infos = None  # nothing is downloaded; TFDS would look for checksums with a package that it does not require

    def __init__(self, *, kind: str, arguments: GoldArguments, **kwargs: Any):
        self.kind = kind
        self.arguments = arguments
        config = tfds.core.BuilderConfig(
            name=f"{kind}-{arguments.digest()}", description=f"{kind} rows from {arguments}"
        )
        super().__init__(config=config, file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        # Few columns: their number decides how long TFDS takes. Numbers in JSON keep all their digits.
        features = {name: tfds.features.Text() for name in ("prompt", *_TEXTS[self.kind], "meta")}
        if self.kind == "preference":
            features["tie"] = tfds.features.Scalar(np.bool_)
        return _LocalInfo(
            builder=self,
            description="Short text tasks with an exact utility and an exact preference between any two responses.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # rows are independent already, and families stay evenly spread over any prefix
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        make = {"preference": _preference_row, "sft": _sft_row, "prompt": _prompt_row}[self.kind]
        rng = random.Random(f"{self.arguments.seed} {self.kind} {split}")
        tasks = _tasks(
            rng, self.arguments, split, self.arguments.rows(self.kind, split), distinct=self.kind == "prompt"
        )
        for index, task in enumerate(tasks):
            row = make(rng, task, self.arguments)
            yield index, {**row, "meta": json.dumps(row["meta"])}


def _tasks(rng: random.Random, args: GoldArguments, split: str, rows: int, *, distinct: bool) -> Iterator[GoldTask]:
    """`rows` tasks of the split, families and difficulties in turn; fewer where distinct ones run out."""
    cells = [(family, difficulty) for difficulty in args.difficulties for family in args.families]
    taken: set[GoldTask] = set()
    made = 0
    while made < rows and cells:
        for cell in list(cells):
            task = candidates.sample_split_task(rng, *cell, split, taken)
            if task is None:
                cells.remove(cell)
                continue
            if distinct:
                taken.add(task)
            made += 1
            yield task
            if made == rows:
                return


def _meta(task: GoldTask) -> dict[str, Any]:
    return {"family": task.family, "difficulty": task.difficulty, "form": task.form}


def _sft_row(rng: random.Random, task: GoldTask, args: GoldArguments) -> dict[str, Any]:
    prompt = families.render(task)
    response = candidates.demonstration(rng, task, args)
    meta = _meta(task) | {"utility": preferences.utility(prompt, response)}
    return {"prompt": prompt, "response": response, "meta": meta}


def _prompt_row(rng: random.Random, task: GoldTask, args: GoldArguments) -> dict[str, Any]:
    prompt = families.render(task)
    gold = args.reference == "gold"
    reference = families.answer(task) if gold else candidates.demonstration(rng, task, args)
    meta = _meta(task) | {"utility_reference": preferences.utility(prompt, reference)}
    return {"prompt": prompt, "reference": reference, "meta": meta}


def _preference_row(rng: random.Random, task: GoldTask, args: GoldArguments) -> dict[str, Any]:
    pair = candidates.sample_pair(rng, task, args)
    prompt = families.render(pair.task)
    how = dict(intransitivity=args.intransitivity, sharpness=args.scale)
    p_star = preferences.preference(prompt, pair.first, pair.second, **how)
    p_first, p_tie, _ = preferences.annotate(p_star, noise=args.noise, ties=args.ties)
    draw = rng.random()
    tie = p_first <= draw < p_first + p_tie
    slot = 1 if draw < p_first + p_tie else 2  # a tie lists the responses in the order in which they were shown
    chosen, rejected = (pair.first, pair.second) if slot == 1 else (pair.second, pair.first)
    expected = p_first + p_tie / 2
    p_chosen = expected if slot == 1 else 1.0 - expected
    meta = _meta(pair.task) | {
        "kind": pair.kind,
        "p_chosen": p_chosen,
        "slot": slot,
        "p_star": p_star if slot == 1 else 1.0 - p_star,
        "utility_chosen": preferences.utility(prompt, chosen),
        "utility_rejected": preferences.utility(prompt, rejected),
    }
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "tie": tie, "meta": meta}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS announces what it does on stdout and through absl; the caller's terminal is not its place."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process, however it ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with open_lock(directory / ".prl_gold.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prepared_builder(kind: str, arguments: GoldArguments, data_dir: Path) -> PrlGold:
    """The builder with its files in `data_dir`, written now if they are not there.

    TFDS writes into a directory of another name and renames it at the end, so a directory of the right name is
    complete, even after `kill -9`. A lock keeps processes apart; what a killed one left is removed.

    Raises `UserError` where `data_dir` cannot be written or is full; nothing half-written is left then.
    """
    try:
        with _quiet():
            builder = PrlGold(kind=kind, arguments=arguments, data_dir=data_dir)
            if builder.is_prepared():
                return builder
            with _locked(data_dir):
                final = Path(builder.data_dir)
                for leftover in final.parent.glob("incomplete.*"):
                    shutil.rmtree(leftover)
                builder = PrlGold(kind=kind, arguments=arguments, data_dir=data_dir)
                with tempfile.TemporaryDirectory() as nothing_downloaded:
                    builder.download_and_prepare(download_dir=nothing_downloaded)
                return builder
    except OSError as error:
        raise UserError(f"cannot write the built-in data to {data_dir}: {error.strerror or error}") from error
    except RuntimeError as error:  # array_record has no other way to say that the disk is full
        failure = re.search(r"write\(\) failed: ([^;\n]*)", str(error))
        if failure is None:
            raise
        raise UserError(f"cannot write the built-in data to {data_dir}: {failure[1]}") from error


def _record(kind: str, name: str, row: dict[str, Any]) -> PreferenceRecord | SFTRecord | PromptRecord:
    texts = {column: row[column].decode() for column in _TEXTS[kind]}
    prompt = (Turn("user", row["prompt"].decode()),)
    meta = json.loads(row["meta"])
    if kind == "sft":
        return SFTRecord(id=name, prompt=prompt, source=SOURCE, meta=meta, **texts)
    if kind == "prompt":
        return PromptRecord(id=name, prompt=prompt, source=SOURCE, meta=meta, **texts)
    p_chosen, slot = meta.pop("p_chosen"), meta.pop("slot")
    return PreferenceRecord(
        id=name,
        prompt=prompt,
        tie=bool(row["tie"]),
        p_chosen=p_chosen,
        slot=slot,
        source=SOURCE,
        meta=meta,
        **texts,
    )


def gold_records(
    what: str, split: str, *, data_dir: str | Path, **builder_args: Any
) -> Sequence[PreferenceRecord] | Sequence[SFTRecord] | Sequence[PromptRecord]:
    """Records of the built-in tasks, in an order that depends on the arguments alone.

    Args:
      what: "preference", "sft" or "prompt".
      split: "train", "validation" or "test"; no prompt content is in two of them.
      data_dir: where the TFDS files are kept; they are written on first use (about a second per 10,000 rows).
      **builder_args: see `GoldArguments`.

    Returns:
      Pairs carry the sampled label (`chosen`, `tie`, `slot`), its expectation `p_chosen`, and in `meta` the noise-free
      `p_star` of the chosen response and both utilities. Prompt rows are distinct: there are fewer of them than asked
      for where the chosen families have no more.

    Raises `UserError` for an unknown kind, split or argument.
    """
    for name, value, known in (("kind", what, KINDS), ("split", split, SPLITS)):
        if value not in known:
            raise UserError(f"built-in data: unknown {name} {value!r} (known: {', '.join(known)})")
    builder = prepared_builder(what, make_arguments(builder_args), Path(data_dir))
    with _quiet():
        source = builder.as_data_source(split=split)
        rows = source.__getitems__(range(len(source)))
    return [_record(what, f"{SOURCE}-{what}-{split}-{index}", row) for index, row in enumerate(rows)]
