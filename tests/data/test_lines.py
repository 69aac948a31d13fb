"""Files of lines: what is read whatever its form, what is called what it is, what is beyond a bound."""

import gzip
import io
import os
import random
import socket
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from prl_jax.data.lines import Limits, Lines
from prl_jax.errors import UserError

ROW = b'{"prompt": "q", "response": "a"}'


def refused(path: Path, limits: Limits | None = None) -> str:
    with pytest.raises(UserError) as caught:
        Lines(path, limits or Limits())
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}")


def read(path: Path, data: bytes) -> list[tuple[int, bytes]]:
    path.write_bytes(data)
    lines = Lines(path)
    return [lines[i] for i in range(len(lines))]


@pytest.mark.parametrize(
    ("data", "numbers"),
    [
        (ROW + b"\n" + ROW, [1, 2]),
        (ROW + b"\r\n\r\n" + ROW + b"\r\n", [1, 3]),
        (b"\xef\xbb\xbf" + ROW + b"\n  \n" + ROW, [1, 3]),
        (ROW + b"\r" + ROW + b"\r", [1, 2]),  # CR alone
        (b"\xef\xbb\xbf\r" + ROW + b"\r\r" + ROW, [2, 4]),
        (b"\xef\xbb\xbf\n\n", []),
        (b"", []),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_line_ends_and_marks(tmp_path: Path, data: bytes, numbers: list[int], pack: Any) -> None:
    found = read(tmp_path / "a.jsonl", pack(data))
    assert [(number, line.strip()) for number, line in found] == [(number, ROW) for number in numbers]


def test_contents_count_and_not_the_name(tmp_path: Path) -> None:
    expected = [(1, ROW), (2, ROW)]
    assert read(tmp_path / "named.gz", ROW + b"\n" + ROW) == expected
    assert read(tmp_path / "unnamed.jsonl", gzip.compress(ROW + b"\n" + ROW)) == expected


def test_gzip_members_and_padding(tmp_path: Path) -> None:
    members = gzip.compress(ROW + b"\n") + b"\0" * 700 + gzip.compress(b"") + gzip.compress(ROW) + b"\0" * 100
    assert read(tmp_path / "a.gz", members) == [(1, ROW), (2, ROW)]


def test_long_files_and_lines_across_reads(tmp_path: Path) -> None:
    """A line may begin in one piece of what is read at once, and end in another."""
    rows = [b'{"n": "%d%s"}' % (i, b"x" * (i * 37_000)) for i in range(12)] * 3
    for data in (b"\n".join(rows), gzip.compress(b"\n".join(rows), 1)):
        assert [line for _, line in read(tmp_path / "a.jsonl", data)] == rows


def test_damaged_gzip_says_what_is_intact(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    whole = gzip.compress(b"".join(b'{"n": %d}\n' % (i * 7919) for i in range(5000)))
    path.write_bytes(whole[:-5])
    assert refused(path) == ": not a whole gzip file (it ends early); the first 5000 lines are intact: fetch it again"
    path.write_bytes(whole[:4])
    assert "it ends early); the first 0 lines" in refused(path)
    path.write_bytes(gzip.compress(ROW + b"\n") + b"something else")
    assert "after its end follows something that is no gzip); the first 1 lines are intact" in refused(path)
    path.write_bytes(gzip.compress(ROW + b"\n") + b"\x1f")
    assert "after its end follows something" in refused(path)
    broken = bytearray(whole)
    broken[-6] ^= 1  # in the checksum
    path.write_bytes(broken)
    assert "not a whole gzip file (Error -3" in refused(path)


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jsonl", ROW)
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("a.jsonl")
        entry.size = len(ROW)
        archive.addfile(entry, io.BytesIO(ROW))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "what", "advice"),
    [
        (b"PAR1\x15\x04\x15", "a parquet file", "pandas.read_parquet(FILE)"),
        (b"ARROW1\0\0\xff", "an Arrow file", "pandas.read_feather(FILE)"),
        (b"\xff\xff\xff\xff\x10\0", "an Arrow stream", "Dataset.from_file(FILE)"),
        (b"prompt,chosen,rejected\nq,a,b\n", "CSV or the like", "pandas.read_csv(FILE)"),
        (b"prompt\tresponse\nq\ta\n", "CSV or the like", "pandas.read_csv(FILE)"),
        (b"\xef\xbb\xbf\n [" + ROW + b"]", "a JSON array", "jq -c '.[]' FILE"),
        (b'{\n  "prompt": "q"\n}\n', "JSON over several lines", "jq -c . FILE"),
        (b'{"data": [\n{"prompt": "q"}\n]}', "JSON over several lines", "jq -c . FILE"),
        (ROW.decode().encode("utf-16"), "UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
        (ROW.decode().encode("utf-16-be"), "UTF-16 text", "iconv"),
        (ROW.decode().encode("utf-32-le"), "UTF-32 text", "iconv"),
        (_zip(), "a zip archive", "unpack it first"),
        (_tar(), "a tar archive", "unpack it first"),
        (b"\x28\xb5\x2f\xfd\x24\x20", "compressed by zstd", "zstd -d"),
        (b"BZh91AY&SY", "compressed by bzip2", "bzip2 -d"),
        (b"\xfd7zXZ\x00\x00", "compressed by xz", "xz -d"),
        (gzip.compress(ROW, mtime=0), "gzip inside gzip", "gunzip"),
        (b"\x80\x04\x95\x10", "a Python pickle", "JSON Lines"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "a web page or XML", "fetch the file itself"),
        (b"\x07\x00\x01\x02", "binary data", "text file"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path: Path, data: bytes, what: str, advice: str) -> None:
    path = tmp_path / "a.jsonl"
    packed = gzip.compress(data)  # what is inside counts
    for stored in (packed,) if what.startswith("gzip") else (data, packed):
        path.write_bytes(stored)
        message = refused(path)
        assert message.startswith(f": is {what}") and "(expected JSON Lines, one object per line): " in message
        assert advice in message


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == ": is a named pipe (expected a file of JSON lines)"  # and does not wait
    assert refused(Path("/dev/null")) == ": is a device or socket (expected a file of JSON lines)"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert "is a device or socket" in refused(tmp_path / "s")
    assert refused(tmp_path) == ": is a folder (expected a file of JSON lines)"
    assert refused(tmp_path / "none") == ": no such file"
    (tmp_path / "loop").symlink_to("loop")
    assert refused(tmp_path / "loop") == ": cannot read: Too many levels of symbolic links"
    assert "cannot read: " in refused(tmp_path / "nul\0")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read(tmp_path / "link", ROW) == [(1, ROW)]


def test_what_a_gzip_file_unpacks_to_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress((ROW + b"\n") * 100_000))
    assert path.stat().st_size < 30_000
    message = ": unpacks to more than 1 MiB (a larger max_unpacked_mib allows it)"
    assert refused(path, Limits(max_unpacked_mib=1)) == message
    assert len(Lines(path, Limits(max_unpacked_mib=4))) == 100_000
    path.write_bytes(gzip.compress(b"\n" * 3 * 2**20))  # lines that are not kept count as well
    assert refused(path, Limits(max_unpacked_mib=2)).startswith(": unpacks to more than 2 MiB")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_lines_are_bounded(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(pack(ROW + b'\n{"a": "' + b"x" * 2**21 + b'"}\n'))
    assert refused(path, Limits(max_line_mib=2)) == (
        ":2: the line is longer than 2 MiB (expected one JSON object per line; a larger max_line_mib allows it)"
    )
    assert len(Lines(path, Limits(max_line_mib=3))) == 2


def test_memory_does_not_grow_with_the_contents(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress((b'{"a": "%s"}\n' % (b"x" * 2**18)) * 100))
    tracemalloc.start()
    try:
        lines = Lines(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(lines) == 100 and peak < 8 * 2**20 < 100 * 2**18


def test_a_file_that_is_cut_or_replaced_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(ROW + b"\n" + ROW)
    lines = Lines(path)
    (tmp_path / "b").write_bytes(b"other")
    os.replace(tmp_path / "b", path)
    assert lines[1] == (2, ROW)  # the file that was opened
    lines = Lines(path)
    os.truncate(path, 2)
    with pytest.raises(UserError, match=r"a\.jsonl:1: the file has been cut since it was opened; start again$"):
        lines[0]


def test_no_room_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(ROW))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: open("/dev/full", "r+b", buffering=0))
    assert "cannot unpack it in " in (message := refused(path)) and "No space left on device; set TMPDIR" in message


@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
def test_lines_are_those_of_python_wherever_reads_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("prl_jax.data.lines._CHUNK", chunk)
    draw, path = random.Random(chunk), tmp_path / "a.jsonl"
    for _ in range(20):
        data = b"{}" + bytes(draw.choice(b"\n\n\n \t\x0bab") for _ in range(draw.randrange(60)))
        path.write_bytes(data)
        expected = [(i, line) for i, line in enumerate(path.read_bytes().split(b"\n"), start=1) if line.strip()]
        assert list(Lines(path)) == expected
