"""Files of a run: `metrics.jsonl`, samples and TensorBoard events while it runs, `result.json` at the end."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import RecordWriter

from prl_jax.errors import UserError
from prl_jax.file_names import METRICS_FILE
from prl_jax.files import parse_json, read_object, target_of, to_json, write_bytes

_EVENTS_FLUSH_SECONDS = 5.0


class JsonlLog:
    """Appends rows with a `step` to a JSONL file.

    Each row is one line, handed to the operating system before `write` returns, so that a killed process loses no
    finished line. NaN and infinities, which JSON lacks, are `null`. No step stands twice: a run that resumes from the
    checkpoint of `resume_step` first drops the lines after it; one that starts from scratch (None) drops all.

    A silent log touches no file: of several processes, one writes.

    Errors: `UserError` when the file cannot be written (a full disk, a read-only directory).
    """

    def __init__(self, path: Path, *, resume_step: int | None, silent: bool = False):
        self.path = path
        self._file: io.FileIO | None = None
        if silent:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if resume_step is None:
                path.unlink(missing_ok=True)
            elif path.exists():
                _drop_steps(path, resume_step + 1)
            # Unbuffered: closing has nothing left that could fail.
            self._file = open(target_of(path), "ab", buffering=0)
        except OSError as error:
            raise _unwritable(path, error) from error

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows: a `step` (int) and whatever else JSON holds."""
        if self._file is None:
            return
        lines = b"".join(to_json(row) + b"\n" for row in rows)
        try:
            _write_all(self._file, lines)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> JsonlLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MetricsWriter:
    """Appends metrics of one stage to `metrics.jsonl` and to TensorBoard event files, in the same directory.

    Each line is one JSON object, `{"step": int, "<name>": float, ...}`, under the promises of `JsonlLog`; the event
    files hold NaN and infinities as they are.

    Errors: `UserError` when the files cannot be written (a full disk, a read-only directory).
    """

    def __init__(self, directory: Path, *, resume_step: int | None, silent: bool = False):
        """Opens the files.

        Args:
          directory: created when missing.
          resume_step: the step of the checkpoint that the run continues from; lines with a greater step are dropped.
            None starts from scratch: whatever an earlier attempt left is dropped.
          silent: touches no file.
        """
        self.path = directory / METRICS_FILE
        self._lines = JsonlLog(self.path, resume_step=resume_step, silent=silent)
        self._events: _EventFile | None = None
        if silent:
            return
        try:
            self._events = _EventFile(directory, 0 if resume_step is None else resume_step + 1)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line.

        Args:
          step: the number of steps that are done; later calls give greater numbers.
          metrics: name -> number (a Python float, or anything `float()` takes, such as a 0-d array).
        """
        if self._events is None:
            return
        values = {name: float(value) for name, value in metrics.items()}
        self._lines.write([{"step": int(step), **values}])
        try:
            self._events.write(int(step), values)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def flush(self) -> None:
        """Brings the event files up to date; call it when a checkpoint is saved."""
        try:
            if self._events is not None:
                self._events.flush()
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        self._lines.close()
        try:
            if self._events is not None:
                self._events.close()
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except UserError:
            if error is None:  # else the first error is the one to report
                raise


class _EventFile:
    """TensorBoard scalars, written by the caller's thread.

    `tensorboardX.SummaryWriter` hands events to a thread through a bounded queue; when that thread dies of a full disk,
    the next `add_scalar` blocks for ever. Writing here instead lets the error reach the caller.
    """

    def __init__(self, directory: Path, purge_step: int):
        # The running number keeps two openings within one second (the name's resolution) apart.
        number = sum(1 for _ in directory.glob("events.out.tfevents.*"))
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{number}"
        open(directory / name, "xb").close()  # nothing is there that the writer, which knows no such mode, could follow
        self._writer: RecordWriter | None = RecordWriter(str(directory / name))
        self._flushed = time.monotonic()
        self._add(event_pb2.Event(file_version="brain.Event:2"))
        # TensorBoard hides events of earlier files from this step on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(event_pb2.Event(step=purge_step, session_log=start))
        self.flush()

    def _add(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        if self._writer is not None:
            self._writer.write(event.SerializeToString())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=scalars)))
        if time.monotonic() - self._flushed > _EVENTS_FLUSH_SECONDS:  # each flush is an fsync
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def read_result(path: Path) -> dict[str, Any]:
    """Returns what a finished stage says of itself: its `kind`, its `metrics`, the `seconds` that it took.

    Raises:
      UserError: the file is damaged.
    """
    advice = "delete it, and prl run will finish the stage again"
    try:
        value = read_object(path)
    except UserError as error:
        raise UserError(f"{error}; {advice}") from error
    seconds = value.get("seconds")
    whole = bool(value.get("kind")) and isinstance(value["kind"], str) and isinstance(value.get("metrics"), dict)
    if not whole or isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise UserError(f"{path}: is damaged (expected an object with kind, metrics and seconds); {advice}")
    return value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl`.

    A last line that a killed process left half-written is ignored.

    Returns:
      One dict a line: `step` (int) and name -> float, or None where the value was not finite.

    Errors: `UserError` when the file is missing or another line is not a JSON object with a `step`.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot read the metrics ({error.strerror}); expected a stage directory") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parse_line(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):  # only the very last piece has no newline after it
            raise UserError(f'{path}:{number}: not a metrics line; expected {{"step": int, ...}}; remove the line')
    return rows


def latest_metrics(path: Path, *, until: int | None = None) -> dict[str, float]:
    """The newest finite value of each metric, up to a step: the same for a run that was interrupted as for one that was
    not."""
    rows = [row for row in read_metrics(path) if until is None or row["step"] <= until]
    return {name: value for row in rows for name, value in row.items() if name != "step" and value is not None}


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _drop_steps(path: Path, first_dropped: int) -> None:
    """Atomically rewrites the file without lines of `first_dropped` or a later step and without a half line."""
    kept = [row for row in read_metrics(path) if row["step"] < first_dropped]
    text = b"".join(to_json(row) + b"\n" for row in kept)
    if text == path.read_bytes():
        return
    write_bytes(path, text)


def _write_all(file: Any, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot write ({error.strerror}); make room or permit writing, then run the command again"
    )
