"""JSON Lines: what is read back, and what each broken file says."""

from pathlib import Path

import pytest

from prl_jax.data.jsonl import JsonLines, write_jsonl
from prl_jax.errors import UserError

ROWS = [{"id": "1", "text": "é\u2028x"}, {"id": "2", "n": [1, {"a": None}]}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_jsonl(path, ROWS)
    assert list(JsonLines(path)) == [(f"{path}:1", ROWS[0]), (f"{path}:2", ROWS[1])]
    assert [file.name for file in tmp_path.iterdir()] == [name]  # no temporary file stays
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")


def test_lines_are_numbered_with_blank_ones_and_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n   \n{"a": 2}')
    assert list(JsonLines(path)) == [(f"{path}:1", {"a": 1}), (f"{path}:4", {"a": 2})]
    path.write_bytes(b"")
    assert list(JsonLines(path)) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', "malformed JSON: Expecting ',' delimiter (column 8)"),
        (b"prompt,chosen", "malformed JSON: Expecting value (column 1)"),
        (b'{"a": "\xff"}', "not UTF-8 text (byte 8 of the line: write the file as UTF-8)"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8 text (byte 8 of the line: half of a surrogate pair)"),
        (b'{"a": 1, "b": 2, "a": 3}', 'malformed JSON: key "a" stands twice in one object (expected once)'),
        (b'{"m": {"k": 1, "k": 1}}', 'malformed JSON: key "k" stands twice in one object (expected once)'),
        (b"[1, 2]", "expected a JSON object, found list"),
        (b"null", "expected a JSON object, found NoneType"),
    ],
)
def test_malformed_lines(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(UserError) as caught:
        list(JsonLines(path))
    assert str(caught.value) == f"{path}:2: {message}"


@pytest.mark.parametrize("line", ['{"a":' + "[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_absurd_json_is_a_clear_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line)
    with pytest.raises(UserError, match=r"a\.jsonl:1: malformed JSON: ") as caught:
        list(JsonLines(path))
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        list(JsonLines(tmp_path / "none.jsonl"))
    assert str(caught.value) == f"{tmp_path}/none.jsonl: no such file"
    with pytest.raises(UserError) as caught:
        list(JsonLines(tmp_path))
    assert str(caught.value) == f"{tmp_path}: is a folder (expected a file of JSON lines)"


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, ROWS)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_jsonl(path, [{"a": 1}, {"a": object()}])
    assert path.read_bytes() == before
    with pytest.raises(UserError, match=r"cannot write \(No such file or directory"):
        write_jsonl(tmp_path / "none" / "a.jsonl", ROWS)
