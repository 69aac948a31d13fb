"""Measuring in several processes: where there are many records, templates and tokenizers keep a core busy for long.

The processes get lines of JSON on their standard input, and answer so: nothing is forked (JAX has threads) or pickled,
and the program that measures need not be importable. Imports no jax.

    python -m prl_jax.measuring.apart
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

import prl_jax
from prl_jax.data.records import PreferenceRecord, PromptRecord, Record, SFTRecord
from prl_jax.data.sources import Records
from prl_jax.errors import UserError
from prl_jax.measuring.records import COLUMNS, Lengths, Measured, Measurer, measure_with
from prl_jax.text.chat import Turn
from prl_jax.text.judging import JudgeTemplate
from prl_jax.text.tokenizer import load_tokenizer

_TRIAL = 200  # records that are measured here, to see how long the others would take
_WORTH_SECONDS = 20.0  # of those, from which on it is worth it to start processes
_MOST = 16  # processes
_CHUNK = 128  # records that a process is given at once
_KINDS = {kind.__name__: kind for kind in (PreferenceRecord, PromptRecord, SFTRecord)}


def measure_fast(
    records: Records, measurer: Measurer, template_args: Mapping[str, Any], progress: Callable[[int], None]
) -> Measured:
    """`measure_with`, by all cores where that saves time; `template_args` as of `measure_apart`."""
    start, trial = time.monotonic(), records[:_TRIAL]
    first = measure_with(trial, measurer, progress)
    following, cores = records[_TRIAL:], min(len(os.sched_getaffinity(0)), _MOST)
    seconds = (time.monotonic() - start) * len(following) / len(records[:_TRIAL])
    onward = lambda done: progress(len(trial) + done)  # noqa: E731
    if seconds < _WORTH_SECONDS or cores < 2 or measurer.lengths is None:
        remainder = measure_with(following, measurer, onward)
    else:
        remainder = measure_apart(following, measurer, template_args, cores, onward)
    return Measured.of(np.concatenate([first.rows, remainder.rows]), first.reason or remainder.reason)


def measure_apart(
    records: Records, measurer: Measurer, template_args: Mapping[str, Any], number: int, progress: Callable[[int], None]
) -> Measured:
    """`measure_with`, by `number` processes. This one reads the records, and ends the others however it ends itself.

    Args:
      records: of one source.
      measurer: how a model reads them; it has a tokenizer.
      template_args: what the tokenizer's chat template is given beside the conversation.
      number: of processes.
      progress: told how many records are done.
    """
    assert measurer.lengths is not None
    rows = np.zeros((len(records), len(COLUMNS)), np.int32)
    starts, lock, ended = iter(range(0, len(records), _CHUNK)), threading.Lock(), threading.Event()
    done: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()

    def serve(worker: subprocess.Popen[str]) -> None:
        try:
            while True:
                with lock:
                    start = next(starts, None)
                if start is None or ended.is_set():
                    return
                part = records[start : start + _CHUNK]
                rows[start : start + _CHUNK] = _rows_of(worker, part, measurer)
                done.put(len(part))
        except BaseException as error:
            done.put(error)

    with tempfile.TemporaryDirectory(prefix="prl-") as folder:
        measurer.lengths.tokenizer.save(Path(folder))
        template = None if measurer.template is None else dataclasses.asdict(measurer.template)
        job = {"folder": folder, "arguments": dict(template_args), **measurer._asdict(), "template": template}
        with _workers(number, json.dumps(job | {"lengths": None})) as workers:
            threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in workers]
            for thread in threads:
                thread.start()
            try:
                _wait(done, len(records), progress)
            finally:
                ended.set()
                for worker, thread in zip(workers, threads, strict=True):
                    worker.kill()
                    thread.join()
    first = np.flatnonzero(rows[:, -1])[:1]
    # The process names the folder that it was given, this one the user's.
    reason = measure_with(records.take(first), measurer).reason if len(first) else ""
    return Measured.of(rows, reason)


def _wait(done: queue.SimpleQueue[int | BaseException], total: int, progress: Callable[[int], None]) -> None:
    """Returns when so many records are measured; raises what a thread has met."""
    count = 0
    while count < total:
        found = done.get()
        if isinstance(found, BaseException):
            raise found
        count += found
        progress(count)


def _rows_of(worker: subprocess.Popen[str], records: Records, measurer: Measurer) -> Int[np.ndarray, "n C"]:
    """The numbers of records, from a process, or made here where it has failed."""
    read: dict[int, Record] = {}
    rows = np.zeros((len(records), len(COLUMNS)), np.int32)
    rows[:, -1] = 1  # as long as nothing else is known
    for i in range(len(records)):
        with contextlib.suppress(UserError):
            read[i] = records[i]
    try:
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(json.dumps([_plain(record) for record in read.values()]) + "\n")
        worker.stdin.flush()
        rows[list(read)] = np.array(json.loads(worker.stdout.readline()), np.int32).reshape(-1, len(COLUMNS))
    except (OSError, ValueError):
        return measure_with(records, measurer).rows
    return rows


@contextlib.contextmanager
def _workers(number: int, job: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that have been told their job."""
    path = [str(Path(prl_jax.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    workers: list[subprocess.Popen[str]] = []
    try:
        for _ in range(number):
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "prl_jax.measuring.apart"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for this process, which ends them
                )
            )
            pipe = workers[-1].stdin
            with contextlib.suppress(OSError):
                pipe.write(job + "\n")
                pipe.flush()
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                with contextlib.suppress(OSError):  # what was not sent
                    pipe.close()


def _plain(record: Record) -> dict[str, Any]:
    """A record as JSON holds it, without what is not measured."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {**fields, "meta": {}, "kind": type(record).__name__}


def _record(plain: dict[str, Any]) -> Record:
    kind = _KINDS[plain.pop("kind")]
    return kind(**{**plain, "prompt": tuple(Turn(*turn) for turn in plain["prompt"]), "unused": tuple(plain["unused"])})


def _answer(measurer: Measurer, plain: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The numbers of records; of one that cannot be read, that."""
    answers = []
    for item in plain:
        try:
            answers.append(list(measurer(_record(item))))
        except UserError:
            answers.append([*[0] * (len(COLUMNS) - 1), 1])
    return answers


def main() -> None:
    """Measures what standard input asks for, until it ends."""
    job = json.loads(sys.stdin.readline())
    tokenizer = load_tokenizer(Path(job.pop("folder")), job.pop("arguments"))
    if job["template"] is not None:
        job["template"] = JudgeTemplate(**{**job["template"], "verdicts": tuple(job["template"]["verdicts"])})
    measurer = Measurer(**{**job, "lengths": Lengths(tokenizer)})
    for line in sys.stdin:
        print(json.dumps(_answer(measurer, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
