"""Where records come from: JSONL files, TFDS builders, the built-in gold tasks. Imports no jax.

Records are read and parsed one by one when they are asked for, so that each of several processes does that with the
rows of a batch that are its own.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prl_jax.data.jsonl import JsonLines
from prl_jax.data.lines import Limits
from prl_jax.data.parsers import PARSERS
from prl_jax.data.records import Record
from prl_jax.errors import UserError
from prl_jax.files import local_path

KINDS = ("gold", "jsonl", "tfds")
_MOST_TIMES = 10_000  # that a mixture reads a part in an epoch


@dataclass(frozen=True)
class SourceSpec:
    """One data set.

    Attributes:
      kind: "gold" (built-in tasks), "jsonl" or "tfds".
      path: of the JSONL file, or the name (or directory) of a TFDS data set. `$NAME` stands for an environment
        variable, `{split}` for the split.
      split: "train", "validation" or "test"; a JSONL file has just one, which `{split}` may name.
      builder_args: keywords of the builder of gold tasks or of the TFDS builder.
      limit: at most so many records, the first ones; 0 means all.
      limits: bounds on a JSONL file.
    """

    kind: str
    path: str = ""
    split: str = "train"
    builder_args: Mapping[str, Any] = field(default_factory=dict)
    limit: int = 0
    limits: Limits = Limits()


@dataclass(frozen=True)
class Fingerprint:
    """Tells a file, or a prepared TFDS data set, from what it may become.

    Attributes:
      size: in bytes, as it is on the disk.
      sha256: checksum of these, in hexadecimal; of a TFDS data set, of its description and its files' sizes.
      rows: how many it holds, malformed ones included.
    """

    size: int
    sha256: str
    rows: int


class Records(Sequence):
    """Records by their number, read when they are asked for; slices too are of this kind.

    Args:
      read: gives the record of a row of the source; `UserError` where the row is malformed.
      rows: which rows, in this order.
      place: says where a row of the source stands, such as "file.jsonl:12".
      fingerprint: of the whole file, where the source is one.
    """

    def __init__(
        self,
        read: Callable[[int], Record],
        rows: Sequence[int] | np.ndarray,
        place: Callable[[int], str] = lambda row: f"row {row + 1}",
        fingerprint: Fingerprint | None = None,
    ):
        self._read, self._rows, self._place, self.fingerprint = read, rows, place, fingerprint

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Records(self._read, self._rows[index], self._place, self.fingerprint)
        return self._read(int(self._rows[index]))

    def take(self, indices: Sequence[int] | np.ndarray) -> "Records":
        """The records of these numbers."""
        return Records(self._read, np.asarray(self._rows)[indices], self._place, self.fingerprint)

    def with_unique_ids(self) -> "Records":
        """The same records; one whose id another one has as well is named by its place instead. Reads them all."""
        counts: Counter[str] = Counter()
        for i in range(len(self)):
            with contextlib.suppress(UserError):  # it is malformed, which shows when it is read again
                counts[self[i].id] += 1

        def read(row: int) -> Record:
            record = self._read(row)
            return record if counts[record.id] <= 1 else dataclasses.replace(record, id=self._place(row))

        return Records(read, self._rows, self._place, self.fingerprint)

    def place(self, index: int) -> str:
        """Where the record of this number stands in its source."""
        return self._place(int(self._rows[index]))


def mixed(parts: Sequence[Records], weights: Sequence[float]) -> Records:
    """Records of several sources, in shares as their weights.

    Every record of every part is there at least once: the part that is scarcest for its weight decides on the length,
    and the others start again from their first record. The parts are spread evenly over the whole.

    Args:
      parts: with at least one record each.
      weights: above 0, one a part.

    Raises:
      UserError: for weights so different that a part would be read more than 10,000 times.
    """
    sizes = [len(part) for part in parts]
    counts = mixed_rows(sizes, weights)
    which = np.repeat(np.arange(len(parts)), counts)
    within = np.concatenate([np.arange(count) for count in counts])
    order = np.argsort((within + 0.5) / counts[which], kind="stable")
    which, within = which[order], within[order]

    def read(row: int) -> Record:
        part = which[row]
        return parts[part][int(within[row]) % sizes[part]]

    def place(row: int) -> str:
        again, index = divmod(int(within[row]), sizes[which[row]])
        return parts[which[row]].place(index) + (f" (time {again + 1})" if again else "")

    return Records(read, range(len(order)), place)


def mixed_rows(sizes: Sequence[int], weights: Sequence[float]) -> np.ndarray:
    """How often each part of a mixture gives a record; `sizes` says how many it has."""
    shares = np.maximum(np.asarray(weights, np.float64) / np.max(weights), 1e-30)
    counts = np.max(np.asarray(sizes) / shares) * shares
    most = int(np.argmax(counts / sizes))
    if not counts[most] <= _MOST_TIMES * sizes[most]:
        raise UserError(
            f"weights {tuple(weights)}: for each record of the others to come once, the {sizes[most]} of part "
            f"{most + 1} would come more than {_MOST_TIMES:,} times; expected weights that differ less"
        )
    return np.maximum(np.rint(counts).astype(np.int64), sizes)


def load_records(spec: SourceSpec, what: str, *, data_dir: Path) -> Records:
    """The records of a source.

    Args:
      spec: the source.
      what: "preference", "sft" or "prompt".
      data_dir: where TFDS data sets are prepared.

    Raises:
      UserError: for an unknown kind, a missing file, an unset variable, or a data set without records. Malformed rows
        raise it when they are read.
    """
    if what not in PARSERS:
        raise ValueError(f"what={what!r}, expected one of {', '.join(PARSERS)}")
    if spec.kind not in KINDS:
        raise UserError(f'unknown data source kind "{spec.kind}": expected one of {", ".join(KINDS)}')
    if spec.limit < 0:
        raise UserError(f"data source limit {spec.limit}: expected 0 (all) or a positive number")
    if spec.kind == "gold":
        records = _gold(spec, what, data_dir)
    elif not spec.path:
        raise UserError(f'data source of kind "{spec.kind}" has no path')
    elif spec.kind == "jsonl":
        records = _jsonl(spec, what)
    else:
        records = _tfds(spec, what, data_dir)
    if not len(records):
        raise UserError(f"{spec.path or spec.kind}: the data set is empty (expected at least one {what} record)")
    return records[: spec.limit] if spec.limit else records


def file_path(spec: SourceSpec) -> Path:
    """The file of a source of kind "jsonl"."""
    return local_path(expand_path(spec.path.replace("{split}", spec.split)))


def expand_path(path: str) -> str:
    """`path` with `$NAME` and `${NAME}` replaced from the environment, and `~`.

    Raises:
      UserError: for a variable that is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        found = os.environ.get(name, "")
        if not found:
            raise UserError(f"{path}: environment variable {name} is not set (expected the folder that holds the data)")
        return found

    return os.path.expanduser(re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, path))


def _jsonl(spec: SourceSpec, what: str) -> Records:
    rows, parse = JsonLines(file_path(spec), spec.limits), PARSERS[what]

    def read(i: int) -> Record:
        where, row = rows[i]
        return parse(row, where)

    return Records(read, range(len(rows)), rows.place, Fingerprint(rows.lines.size, rows.lines.sha256, len(rows)))


def _gold(spec: SourceSpec, what: str, data_dir: Path) -> Records:
    from prl_jax.data.gold.builder import gold_records  # and with it TFDS

    records = gold_records(what, spec.split, data_dir=data_dir, **spec.builder_args)
    return Records(records.__getitem__, range(len(records)))


def _tfds(spec: SourceSpec, what: str, data_dir: Path) -> Records:
    """Rows of a prepared TFDS data set, read through `as_data_source` (array_record, no TensorFlow)."""
    path, parse = str(local_path(expand_path(spec.path))), PARSERS[what]
    builder = _builder(spec, path, data_dir)
    try:
        source = builder.as_data_source(split=spec.split)
    except Exception as error:
        raise UserError(f"{path}: cannot read split {spec.split}: {_first_line(error)}") from error

    def place(i: int) -> str:
        return f"{path}/{spec.split}:{i + 1}"

    def read(i: int) -> Record:
        try:
            row = _plain(source[i])
        except UnicodeDecodeError as error:
            raise UserError(f"{place(i)}: holds bytes that are not UTF-8 text") from error
        return parse(row, place(i))

    return Records(read, range(len(source)), place, _tfds_fingerprint(builder, len(source)))


def _builder(spec: SourceSpec, path: str, data_dir: Path) -> Any:
    """The builder of a prepared data set that has the split."""
    import tensorflow_datasets as tfds

    try:
        if Path(path).is_dir():
            builder = tfds.builder_from_directory(path)
        else:
            builder = tfds.builder(path, data_dir=str(data_dir), **spec.builder_args)
        splits = list(builder.info.splits or {})
    except Exception as error:  # unknown names, versions and configs raise many kinds
        raise UserError(f"{path}: cannot open the TFDS data set: {_first_line(error)}") from error
    if not splits:
        raise UserError(f"{path}: the TFDS data set is not prepared in {data_dir}: run its download_and_prepare first")
    name = spec.split.split("[")[0]
    if name not in splits:
        raise UserError(f'{path}: no split "{name}" (expected one of {", ".join(splits)})')
    return builder


def _tfds_fingerprint(builder: Any, rows: int) -> Fingerprint:
    """The fingerprint of a data set: names and sizes of its files, and the contents of those that describe it."""
    digest, size = hashlib.sha256(), 0
    for path in sorted(Path(builder.data_path).iterdir()):
        length = path.stat().st_size
        digest.update(f"{path.name} {length}\n".encode())
        digest.update(path.read_bytes() if path.suffix == ".json" else b"")
        size += length
    return Fingerprint(size, digest.hexdigest(), rows)


def _plain(value: Any) -> Any:
    """Returns a value of TFDS as plain Python: bytes become text, arrays lists, a dict of role and content
    columns a list of turns."""
    if isinstance(value, Mapping):
        plain = {key: _plain(item) for key, item in value.items()}
        if set(plain) == {"role", "content"} and isinstance(plain["role"], list):
            return [{"role": r, "content": c} for r, c in zip(plain["role"], plain["content"], strict=True)]
        return plain
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _first_line(error: Exception) -> str:
    return next(iter(str(error).split("\n")), "")[:200] or type(error).__name__
