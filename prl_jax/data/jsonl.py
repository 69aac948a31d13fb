"""JSON Lines files, gzipped or not. Imports no jax."""

import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prl_jax.data.lines import Limits, Lines
from prl_jax.errors import UserError, quoted
from prl_jax.files import to_json, write_bytes

Row = tuple[str, dict[str, Any]]


class JsonLines(Sequence):
    """The rows of a JSON Lines file, gzipped or not, each with the place it came from ("file.jsonl:12"); a row is
    parsed when it is asked for. Blank lines are skipped.

    Errors: `UserError` for a file that `Lines` refuses; of a row, when it is no JSON object.
    """

    def __init__(self, path: Path, limits: Limits | None = None):
        self._path = Path(path)
        self.lines = Lines(self._path, limits or Limits())

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Row:
        number, line = self.lines[index]
        where = f"{self._path}:{number}"
        return where, _parse(line, where)

    def place(self, index: int) -> str:
        """Where a row stands: "file.jsonl:12"."""
        return f"{self._path}:{self.lines.number(index)}"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows, gzipped if `path` ends in `.gz`; the file appears whole or not at all.

    Raises:
      UserError: when the file cannot be written (no such folder, full disk).
    """
    data = b"".join(to_json(row) + b"\n" for row in rows)
    write_bytes(path, gzip.compress(data, mtime=0) if Path(path).suffix == ".gz" else data)


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        half = re.match(rb"\xed[\xa0-\xbf]", line[error.start :])
        what = "half of a surrogate pair" if half else "write the file as UTF-8"
        raise UserError(f"{where}: not UTF-8 text (byte {error.start + 1} of the line: {what})") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: malformed JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise UserError(f"{where}: malformed JSON: nested too deeply") from error
    except ValueError as error:  # repeated keys, numbers of thousands of digits
        raise UserError(f"{where}: malformed JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which no key stands twice: one of its values would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {quoted(repeated)} stands twice in one object (expected once)")
    return found
