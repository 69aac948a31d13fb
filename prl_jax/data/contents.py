"""Tells what a file is by its first bytes, so that a file of another kind is called what it is. Imports no jax."""

import re
from pathlib import Path

from prl_jax.errors import UserError

GZIP = b"\x1f\x8b"

_TABLE = 'write it as JSON Lines, for example pandas.read_{0}(FILE).to_json("rows.jsonl", orient="records", lines=True)'
_UNPACK = "unpack it first"
_PARQUET, _FEATHER, _CSV = (_TABLE.format(name) for name in ("parquet", "feather", "csv"))
_STREAM = 'write it as JSON Lines, for example datasets.Dataset.from_file(FILE).to_json("rows.jsonl")'
# First bytes, what the file is, what to do.
_MAGIC = (
    (GZIP, "gzip inside gzip", "unpack it once with gunzip"),
    (b"PAR1", "a parquet file", _PARQUET),
    (b"ARROW1", "an Arrow file", _FEATHER),
    (b"FEA1", "a Feather file", _FEATHER),
    (b"\xff\xff\xff\xff", "an Arrow stream", _STREAM),
    (b"ORC", "an ORC file", _TABLE.format("orc")),
    (b"Obj\x01", "an Avro file", "write it as JSON Lines"),
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"PK\x05\x06", "an empty zip archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it with zstd -d"),
    (b"\xfd7zXZ\x00", "compressed by xz", "unpack it with xz -d"),
    (b"BZh", "compressed by bzip2", "unpack it with bzip2 -d"),
    (b"\x04\x22\x4d\x18", "compressed by lz4", "unpack it with lz4 -d"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\xff\x06\x00\x00sNaPpY", "compressed by snappy", _UNPACK),
    (b"SQLite format 3\x00", "an SQLite database", "write its rows as JSON Lines"),
    (b"\x89HDF", "an HDF5 file", "write its rows as JSON Lines"),
    (b"\x93NUMPY", "a NumPy array", "write it as JSON Lines"),
    (b"%PDF", "a PDF document", "write its texts as JSON Lines"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch the file with git lfs pull"),
)  # fmt: skip
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_UTF = (
    (b"\xff\xfe\x00\x00", "UTF-32"), (b"\x00\x00\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"),
    (b"{\x00\x00\x00", "UTF-32"), (b"\x00\x00\x00{", "UTF-32"), (b"{\x00", "UTF-16"), (b"\x00{", "UTF-16"),
)  # fmt: skip


def is_gzip(head: bytes) -> bool:
    """Whether a file that begins so is gzipped, whatever its name says."""
    return head.startswith(GZIP)


def refuse_other_contents(path: Path, head: bytes) -> None:
    """Raises `UserError` where a file that begins with `head` (when unpacked) is of a known kind other than JSON
    Lines."""
    found = _name(head)
    if found:
        raise UserError(f"{path}: is {found[0]} (expected JSON Lines, one object per line): {found[1]}")


def _name(head: bytes) -> tuple[str, str] | None:
    """Names a file that is no JSON Lines, and what to do with it; None for JSON Lines and for what is unknown."""
    for magic, what, advice in _MAGIC:
        if head.startswith(magic):
            return what, advice
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if _PICKLE.match(head):
        return "a Python pickle", "write it as JSON Lines"
    for mark, name in _UTF:
        if head.startswith(mark):
            return f"{name} text", f"write it as UTF-8, for example iconv -f {name} -t UTF-8 FILE > rows.jsonl"
    return _name_text(head.removeprefix(b"\xef\xbb\xbf").strip())


def _name_text(text: bytes) -> tuple[str, str] | None:
    """`_name` for what may be text: `text` begins with its first character that is not blank."""
    first, *following = re.split(rb"[\r\n]", text, maxsplit=1)
    if text.startswith(b"["):
        return "a JSON array", "write one object per line, for example jq -c '.[]' FILE > rows.jsonl"
    if following and first.startswith(b"{") and first.rstrip().endswith((b"{", b"[", b",", b":")):
        return "JSON over several lines", "write each object in one line, for example jq -c . FILE > rows.jsonl"
    if text.startswith(b"<"):
        return "a web page or XML", "fetch the file itself"
    if b"\x00" in text[:4096]:
        return "binary data", "give a text file"
    fields = re.split(rb"[,;\t]", first)
    if not text.startswith(b"{") and len(fields) > 1 and all(0 < len(field) <= 64 for field in fields):
        return "CSV or the like", _CSV
    return None
