"""Files in which a person says which of two responses is better: one line per comparison, CSV or JSON Lines, by the
ending of the name. Imports no jax.

The columns are `COLUMNS`; `preferred` is empty until somebody writes 1, 2 or tie there.

CSV is written for spreadsheets: in UTF-8 with a byte order mark, with every field in quotes, and with an apostrophe in
front of a text that they would take for a formula, a date or a number. It is read as they save it: with or without that
mark, with any line breaks, with commas, semicolons or tabs, with empty rows and columns added, and without empty fields
at the end of a line.
"""

import csv
import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prl_jax.data.fields import wrong
from prl_jax.data.jsonl import JsonLines, write_jsonl
from prl_jax.data.lines import Limits
from prl_jax.data.records import PreferenceRecord
from prl_jax.errors import UserError, quoted
from prl_jax.files import write_bytes
from prl_jax.text.chat import prompt_text

DEFAULT_LIMITS = Limits()
PREFERENCES = ("1", "2", "tie")
_DELIMITERS = ",;\t"
_SPREADSHEET = "save it as CSV in UTF-8, with the columns as they were"
# What a spreadsheet takes for a formula, for a number that it writes otherwise, a date or a truth value, behind
# apostrophes that the text itself begins with: with one more in front it is of this kind still.
_CHANGED = re.compile(
    r"'*+(?:[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"
    r"|(?!(?:0|[1-9]\d{0,14})\Z)(?=[., ]*\d)[\d.,:/% e-]+\Z"
    r"|(?:true|false)\Z)",
    re.IGNORECASE,
)
_BREAK = re.compile(r"\r\n?")


@dataclass(frozen=True)
class Comparison:
    """One line of a file of labels.

    Attributes:
      id: names the pair.
      prompt: as plain text.
      response_1, response_2: the responses in the order presented.
      preferred: one of `PREFERENCES`, "" while nobody has decided.
      comment: whatever the person says about it.
    """

    id: str
    prompt: str
    response_1: str
    response_2: str
    preferred: str = ""
    comment: str = ""

    @property
    def filled(self) -> bool:
        """Whether a person has written anything here."""
        return bool(self.preferred or self.comment.strip())


COLUMNS = tuple(one.name for one in dataclasses.fields(Comparison))
_OPTIONAL = ("preferred", "comment")  # empty where a line lacks them


@dataclass(frozen=True)
class Labels:
    """The lines of a file of labels.

    Attributes:
      path: the file.
      lines: the comparison that begins in each line, by the line's number, counted from 1.
      problems: what is wrong with other lines, by their number; each says the place and what is expected.
    """

    path: Path
    lines: dict[int, Comparison] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)

    def place(self, number: int) -> str:
        return f"{self.path}:{number}"

    def refuse_problems(self) -> None:
        """Raises `UserError` with the first problem and the count of the others, if there is any."""
        if self.problems:
            others = len(self.problems) - 1
            more = f" ({others} other {'line is' if others == 1 else 'lines are'} wrong too)" if others else ""
            raise UserError(f"{self.problems[min(self.problems)]}{more}")


def presented(record: PreferenceRecord, seed: int) -> Comparison:
    """The comparison of a pair, to be filled in.

    The response whose checksum with seed, id and prompt is the lower one stands first. So the order depends on the two
    texts, but not on which of them is `chosen`, and tells nothing about it; nor does it depend on other pairs.
    """
    prompt = prompt_text(record.prompt)

    def checksum(response: str) -> bytes:
        return hashlib.sha256(json.dumps([seed, record.id, prompt, response]).encode()).digest()

    return Comparison(record.id, prompt, *sorted((record.chosen, record.rejected), key=checksum))


def slot_of_chosen(comparison: Comparison, record: PreferenceRecord) -> int | None:
    """1 or 2, where `chosen` of the pair stands in a comparison; None where that is about other texts.

    Line breaks may have become others, as spreadsheets make them, as long as it stays clear which response is which.
    """
    prompt, chosen, rejected = prompt_text(record.prompt), record.chosen, record.rejected
    for form in (tuple, _with_plain_breaks):
        shown = form((comparison.prompt, comparison.response_1, comparison.response_2))
        orders = {1: form((prompt, chosen, rejected)), 2: form((prompt, rejected, chosen))}
        slots = [slot for slot, texts in orders.items() if texts == shown]
        if len(slots) == 1 or (slots and chosen == rejected):
            return slots[0]
    return None


def _with_plain_breaks(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(_BREAK.sub("\n", text) for text in texts)


def is_csv(path: Path) -> bool:
    """Whether a file of labels is CSV, and not JSON Lines. Errors: `UserError` for any other ending."""
    name = path.name.lower()
    if not name.endswith((".csv", ".jsonl", ".jsonl.gz")):
        raise UserError(f"{path}: labels are CSV or JSON Lines, expected a name that ends in .csv or .jsonl")
    return name.endswith(".csv")


def write_labels(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Writes a file of labels, which appears whole or not at all.

    Raises:
      UserError: when it cannot be written.
    """
    if not is_csv(path):
        write_jsonl(path, map(dataclasses.asdict, comparisons))
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_escaped(value) for value in dataclasses.astuple(one)] for one in comparisons)
    write_bytes(path, text.getvalue().encode("utf-8-sig"))


def read_labels(path: Path, limits: Limits = DEFAULT_LIMITS) -> Labels:
    """The lines of a file of labels, wrong ones included: `Labels.refuse_problems` tells them.

    Raises:
      UserError: the file as a whole cannot be read, or has other columns.
    """
    labels = Labels(path)
    first: dict[str, int] = {}
    for number, row in _csv_rows(path, limits) if is_csv(path) else _json_rows(path, limits):
        try:
            if isinstance(row, UserError):
                raise row
            one = _comparison(row, labels.place(number))
            if first.setdefault(one.id, number) != number:
                where = f"{labels.place(number)}: id {quoted(one.id)}"
                raise UserError(f"{where} stands in line {first[one.id]} too (expected once)")
            labels.lines[number] = one
        except UserError as error:
            labels.problems[number] = str(error)
    return labels


def _comparison(row: Mapping[str, Any], where: str) -> Comparison:
    _check_columns(row, where)
    texts = {name: _text(row.get(name), name, where) for name in COLUMNS}
    preferred = texts["preferred"].strip().lower()
    if preferred not in ("", *PREFERENCES):
        raise UserError(
            f'{where}: field "preferred" is {quoted(texts["preferred"])} (expected 1, 2 or tie, or nothing)'
        )
    if not texts["id"].strip():
        raise UserError(f'{where}: field "id" is empty (expected the id that the line was exported with)')
    return Comparison(**texts | {"preferred": preferred})


def _check_columns(names: Sequence[str] | Mapping[str, Any], where: str) -> None:
    expected = f"expected {', '.join(COLUMNS)}"
    for name in COLUMNS:
        if name not in names and name not in _OPTIONAL:
            raise UserError(f"{where}: there is no column {quoted(name)} ({expected})")
    for name in names:
        if name not in COLUMNS:
            raise UserError(f"{where}: unknown column {quoted(name)} ({expected}; a remark goes into comment)")


def _text(value: Any, name: str, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # as an editor of JSON may write 1 or 2
    if not isinstance(value, str):
        raise wrong(where, name, "a string", value)
    if not _is_unicode(value):
        raise UserError(f'{where}: field "{name}" is no text in UTF-8 (expected UTF-8): {_SPREADSHEET}')
    return value


def _json_rows(path: Path, limits: Limits) -> Iterator[tuple[int, Mapping[str, Any] | UserError]]:
    rows = JsonLines(path, limits)
    for i in range(len(rows)):
        try:
            yield rows.lines.number(i), rows[i][1]
        except UserError as error:
            yield rows.lines.number(i), error


def _csv_rows(path: Path, limits: Limits) -> Iterator[tuple[int, Mapping[str, Any] | UserError]]:
    """The fields of each row below the header by their columns, or what is wrong, by the line in which it begins."""
    text = _contents(path, limits)
    delimiter, header = _header(path, text)
    rows = _split(path, text, delimiter)
    next(rows)
    for number, row in rows:
        if isinstance(row, UserError):
            yield number, row
            continue
        if len(row) > len(header) or not {*header[len(row) :]} <= {*_OPTIONAL, ""}:
            yield number, UserError(f"{path}:{number}: has {len(row)} columns (expected {len(header)}, as the header)")
        else:
            fields = zip(header, row, strict=False)
            yield number, {name: _unescaped(value) for name, value in fields if name or value.strip()}


def _header(path: Path, text: str) -> tuple[str, list[str]]:
    """The delimiter of the fields, and the names of the columns; "" for one that should be empty."""
    for delimiter in _DELIMITERS:
        number, row = next(_split(path, text, delimiter), (1, []))
        header = [] if isinstance(row, UserError) else [name.strip().lower() for name in row]
        names = [name for name in header if name]
        if {"id", "preferred"} <= set(names):
            _check_columns(names, f"{path}:{number}")
            if len(set(names)) < len(names):
                raise UserError(f"{path}:{number}: a column stands twice (expected {', '.join(COLUMNS)})")
            return delimiter, header
    what = "is no header of labels" if _is_unicode(text) else "is no text in UTF-8"
    raise UserError(f"{path}:1: {what} (expected {', '.join(COLUMNS)}): {_SPREADSHEET}")


def _split(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str] | UserError]]:
    """The fields of each row that is not empty, or what ends the reading, with the number of the line in which it
    begins."""
    # Lines are counted as editors do it: those of a file without any LF end in CR.
    lines = io.StringIO(text, newline="\n" if "\n" in text else "")
    reader, number = csv.reader(lines, delimiter=delimiter, strict=True), 1
    try:
        while (row := _next_row(reader, len(text))) is not None:
            if any(value.strip() for value in row):
                yield number, row
            number = reader.line_num + 1
    except csv.Error as error:
        yield number, UserError(f"{path}:{number}: malformed CSV: {error} (expected whole fields): {_SPREADSHEET}")


def _next_row(reader: Iterator[list[str]], longest: int) -> list[str] | None:
    """The next row, whose fields may have this length: the limit of the module csv is that of the whole process."""
    before = csv.field_size_limit(max(longest, 1))
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


def _contents(path: Path, limits: Limits) -> str:
    """The text of a file; bytes that are not UTF-8 become halves of surrogate pairs, which `_is_unicode` finds."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no regular file (expected a file of labels)")
        if path.stat().st_size > limits.max_unpacked_mib * 2**20:
            raise UserError(
                f"{path}: has more than {limits.max_unpacked_mib} MiB (a larger max_unpacked_mib allows it)"
            )
        return path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or error}") from error


def _is_unicode(text: str) -> bool:
    return not re.search(r"[\ud800-\udfff]", text)


def _escaped(text: str) -> str:
    """A text that no spreadsheet takes for a formula; `_unescaped` gives it back, whatever it is."""
    return f"'{text}" if _CHANGED.match(text) else text


def _unescaped(text: str) -> str:
    return text[1:] if text.startswith("'") and _CHANGED.match(text) else text
