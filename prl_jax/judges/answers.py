"""Answers of an endpoint on a disk, so that none is asked for, and paid, twice."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any, NamedTuple

from prl_jax.errors import UserError
from prl_jax.files import make_directory, parse_json, target_of, to_json
from prl_jax.integrity import digest

_ROUNDING = 1e-3  # by which servers let a log-probability exceed 0
_MOST_TOKENS = 10**9  # of an answer; more is no count

Likeliest = tuple[tuple[str, float], ...]
"""Tokens with their log-probabilities, in nats."""


class Answer(NamedTuple):
    """An answer of a model.

    Attributes:
      text: all that it says.
      top: the likeliest tokens in the first place of the answer; empty where what the server gives is no such list,
        and None where it gives none.
      tokens_in, tokens_out: of the request and of the answer, as the server counts; 0 where it does not.
    """

    text: str
    top: Likeliest | None = None
    tokens_in: int = 0
    tokens_out: int = 0


class Answers:
    """The answers of one endpoint by the keys of their requests: a line of a JSONL file each, appended when it comes.

    A line that is damaged, or cut by a crash, is passed over, and its question asked again. Threads may add at once.

    Args:
      path: the file; it and its folder are made with the first answer.

    Attributes:
      damaged: lines of the file that were passed over.
    """

    def __init__(self, path: Path):
        self.path, self.damaged, self._lock = path, 0, threading.Lock()
        self._known: dict[str, Answer] = {}
        try:
            lines = target_of(path).read_bytes().splitlines(keepends=True) if path.exists() else []
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); move it, or name another cache") from error
        self._begin = b"\n" if lines and not lines[-1].endswith(b"\n") else b""  # behind a line that was cut
        for line in filter(bytes.strip, lines):
            row = _row_of(line)
            if row is None:
                self.damaged += 1
            else:
                self._known[row[0]] = row[1]

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Answer | None:
        """The answer to a request, where it is known."""
        return self._known.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Keeps an answer; it is with the operating system when this returns.

        Raises:
          UserError: the file cannot be written.
        """
        row = {"key": key, **answer._asdict()}
        line = to_json({**row, "crc": digest(row)}) + b"\n"
        with self._lock:
            make_directory(self.path.parent)
            try:
                with open(target_of(self.path), "ab", buffering=0) as file:
                    written = file.write(self._begin + line)
            except OSError as error:
                raise self._unwritable(error.strerror or str(error)) from error
            self._begin = b"" if written == len(self._begin) + len(line) else b"\n"
            if self._begin:
                raise self._unwritable("the disk is full")
            self._known[key] = answer

    def _unwritable(self, reason: str) -> UserError:
        return UserError(f"{self.path}: cannot write ({reason}); free some space, the same command goes on from there")


def likeliest(entries: Any) -> Likeliest:
    """Tokens with log-probabilities from `{"token": .., "logprob": ..}`; empty where any of them is none."""
    if not isinstance(entries, list):
        return ()
    found = []
    for entry in entries:
        token, value = (entry.get("token"), entry.get("logprob")) if isinstance(entry, dict) else (None, None)
        if not isinstance(token, str) or isinstance(value, bool) or not isinstance(value, int | float):
            return ()
        if not (math.isfinite(value) and value <= _ROUNDING):
            return ()
        found.append((token, min(float(value), 0.0)))
    return tuple(found)


def token_count(value: Any) -> int:
    """A number of tokens; 0 for what is none."""
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else 0


def _row_of(line: bytes) -> tuple[str, Answer] | None:
    """Key and answer of a line; None where it is damaged."""
    try:
        row = parse_json(line)
        found = row.pop("crc")
        if found != digest(row):
            return None
        top = None if row["top"] is None else tuple((str(token), float(value)) for token, value in row["top"])
        return str(row["key"]), Answer(str(row["text"]), top, int(row["tokens_in"]), int(row["tokens_out"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
