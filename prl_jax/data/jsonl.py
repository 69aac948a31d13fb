"""JSON Lines files, plain or gzipped. Imports no jax."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prl_jax.errors import UserError
from prl_jax.files import to_json, write_bytes

Row = tuple[str, dict[str, Any]]


class JsonLines(Sequence):
    """The rows of a `.jsonl` or `.jsonl.gz` file, each with the place it came from ("file.jsonl:12"); a row is parsed
    when it is asked for. Blank lines are skipped.

    Attributes:
      size: of the file, in bytes, as it is on the disk.
      sha256: its checksum, in hexadecimal.

    Errors: `UserError` for a missing or unreadable file or a `.gz` that is not gzip; of a row, when it is no JSON
    object.
    """

    def __init__(self, path: Path):
        self._path = Path(path)
        self._data, stored = _read(self._path)
        self.size, self.sha256 = len(stored), hashlib.sha256(stored).hexdigest()
        ends = np.append(np.flatnonzero(np.frombuffer(self._data, np.uint8) == ord("\n")), len(self._data))
        starts = np.concatenate([[0], ends[:-1] + 1])
        filled = [bool(self._data[start:end].strip()) for start, end in zip(starts, ends, strict=True)]
        self._numbers = np.flatnonzero(filled)
        self._starts, self._ends = starts[filled], ends[filled]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Row:
        where = self.place(index)
        return where, _parse(self._data[self._starts[index] : self._ends[index]], where)

    def place(self, index: int) -> str:
        """Where a row stands: "file.jsonl:12"."""
        return f"{self._path}:{self._numbers[index] + 1}"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows, gzipped if `path` ends in `.gz`; the file appears whole or not at all.

    Raises:
      UserError: when the file cannot be written (no such folder, full disk).
    """
    data = b"".join(to_json(row) + b"\n" for row in rows)
    write_bytes(path, gzip.compress(data, mtime=0) if Path(path).suffix == ".gz" else data)


def _read(path: Path) -> tuple[bytes, bytes]:
    """The lines, and the file as it is stored."""
    try:
        stored = data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(stored)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}): drop the .gz ending or fetch it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or error}") from error
    return data, stored


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start + 1} of the line)") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: malformed JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise UserError(f"{where}: malformed JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row
