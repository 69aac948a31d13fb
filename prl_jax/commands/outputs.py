"""Where a command writes: never over what it reads, over what is there only when asked to, and row by row, so that what
was computed outlives an interruption."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prl_jax.errors import UserError
from prl_jax.files import local_path, lock, parse_json, replacing, target_of, to_json

_OVERWRITE = "delete it, name another --out, or give --overwrite"


def check_file(out: Path, *, inputs: Sequence[Path], models: Sequence[Path], overwrite: bool) -> None:
    """Raises `UserError`, before any work, where a file must not or cannot be written.

    Args:
      out: the file.
      inputs: files that the command reads.
      models: model directories that it reads.
      overwrite: whether a file that is there may be replaced.
    """
    if str(out) == "-":
        raise UserError("--out -: rows are not written to the terminal; name a file")
    target = target_of(out)
    if not target.parent.is_dir():
        raise UserError(f"{out}: there is no folder {target.parent}; make it or choose another --out")
    for file in inputs:
        if _same(target, file):
            raise UserError(f"{out}: is the file that is read ({file}); name another --out")
    for model in models:
        if target.is_relative_to(model.resolve()) and (target.exists() or not _is_rows(target)):
            raise UserError(f"{out}: is inside the model that is read ({model}); name another --out")
    if target.exists():
        if any(_is_stream(target, number) for number in (0, 1, 2)):
            raise UserError(f"{out}: is where this command prints to; name another --out")
        if not overwrite and target.stat().st_size:
            raise UserError(f"{out}: is there already; {_OVERWRITE}")
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"{out}: cannot write there; choose another --out")


def check_folder(out: Path, *, inputs: Sequence[Path], overwrite: bool, written: Sequence[str]) -> None:
    """Raises `UserError`, before any work, where a folder must not or cannot be written.

    Args:
      out: the folder.
      inputs: folders that the command reads; `out` is none of them, nor around or inside one.
      overwrite: whether a folder that is there may be replaced, where all that it holds is of such names.
      written: patterns of the names that the command gives its files.
    """
    target = Path(os.path.realpath(local_path(out)))
    for folder in inputs:
        if target == folder.resolve() or folder.resolve().is_relative_to(target):
            raise UserError(f"{out}: holds the model that is read ({folder}); name another --out")
        if target.is_relative_to(folder.resolve()):
            raise UserError(f"{out}: is inside the model that is read ({folder}); name another --out")
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{out}: is no folder; name another --out")
    names = sorted(path.name for path in target.iterdir())
    if names and not overwrite:
        raise UserError(f"{out}: is there already; {_OVERWRITE}")
    foreign = [path for path in target.iterdir() if not path.is_file() or not any(map(path.match, written))]
    if foreign:
        raise UserError(f"{foreign[0]}: no export has written this; move it, or name another --out")


def _same(target: Path, other: Path) -> bool:
    """Whether both are one file, through whatever links."""
    with contextlib.suppress(OSError):
        return target.samefile(other)
    return target == Path(os.path.realpath(other))


def _is_stream(target: Path, number: int) -> bool:
    with contextlib.suppress(OSError):
        found = os.fstat(number)
        return stat.S_ISREG(found.st_mode) and os.path.samestat(found, target.stat())
    return False


def _is_rows(path: Path) -> bool:
    return path.name.endswith((".jsonl", ".jsonl.gz"))


def digest_of(directories: Iterable[Path]) -> str:
    """Tells whether model directories, or files, are those of an earlier command: names, sizes and times of files."""
    digest = hashlib.sha256()
    for directory in directories:
        root = directory.resolve()
        for path in sorted(path for path in (root, *root.rglob("*")) if path.is_file()):
            if not _is_rows(path):  # which a command may have put there
                found = path.stat()
                digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class RowsFile:
    """The rows of an output, of which those that are ready stand in a file beside it until all are.

    Attributes:
      rows: those that are ready; at first what an interrupted command with the same inputs and flags has left.
      path: the file beside the output.
    """

    def __init__(self, out: Path, file: io.FileIO, path: Path, rows: list[dict[str, Any]]):
        self.out, self.rows, self.path, self._file = out, rows, path, file

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keeps further rows; they are with the operating system when this returns."""
        data = b"".join(to_json(row) + b"\n" for row in rows)
        try:
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"{self.path}: cannot write ({reason}); free some space, the same command goes on from there"
            ) from error
        self.rows += [parse_json(line) for line in data.splitlines()]

    def finish(self) -> None:
        """Makes the output of them."""
        with replacing(self.out) as file:
            whole = gzip.GzipFile(fileobj=file, mode="wb", mtime=0) if self.out.suffix == ".gz" else file
            for row in self.rows:
                whole.write(to_json(row) + b"\n")
            if whole is not file:
                whole.close()
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def rows_file(out: Path, made_from: Mapping[str, Any], *, overwrite: bool) -> Iterator[RowsFile]:
    """The rows of `out`, to be continued or begun.

    Args:
      out: the output.
      made_from: what the rows depend on: inputs and flags, as JSON.
      overwrite: whether rows of another command, which was interrupted, may be thrown away.

    Raises:
      UserError: there are such rows; or the file cannot be written, or another command is writing it.
    """
    path = out.with_name(f"{out.name}.partial")
    header = json.loads(to_json({"made_from": made_from}))
    try:
        # No link is followed: whatever somebody has put there stays what it is.
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise UserError(f"{path}: cannot write ({error.strerror}); remove it or name another --out") from error
    with os.fdopen(number, "r+b", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise UserError(f"{path}: is no regular file; remove it or name another --out")
        if not lock(file):
            raise UserError(f"{path}: another command is writing it; wait, or name another --out")
        data, begin = file.read(), to_json(header) + b"\n"
        found, size = _whole_lines(data)
        if not found and not begin.startswith(data) or found and set(found[0]) != set(header):
            raise UserError(f"{path}: is in the way of the rows that are not finished; move it or name another --out")
        if found and found[0] != header and not overwrite:
            raise UserError(
                f"{path}: holds {len(found) - 1} rows of a command that was interrupted, with "
                f"{_changed(found[0], header)}; repeat that one, or {_OVERWRITE}"
            )
        if not found or found[0] != header:
            found, size = [header], 0
        file.truncate(size)
        file.seek(size)
        if not size:
            file.write(begin)
        rows = RowsFile(out, file, path, found[1:])
        try:
            yield rows
        finally:
            if not rows.rows:
                path.unlink(missing_ok=True)


def _whole_lines(data: bytes) -> tuple[list[Any], int]:
    """The rows of an unfinished file up to where it ends or was cut, and how many bytes they take."""
    found, size = [], 0
    for line in data.splitlines(keepends=True):
        try:
            row = parse_json(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(row, dict):
            break
        found.append(row)
        size += len(line)
    return found, size


def _changed(before: Any, now: Any) -> str:
    """Which of the things that rows are made from differ."""
    before = before.get("made_from") if isinstance(before, dict) else None
    before = before if isinstance(before, dict) else {}
    names = [name for name, value in now["made_from"].items() if before.get(name) != value]
    return f"another {' and '.join(names)}"
