"""Files appear whole or not at all, where their names say, and never in place of what is no file."""

import errno
import json
import os
import socket
import stat
from pathlib import Path

import pytest

from prl_jax import files
from prl_jax.errors import UserError


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.parametrize(
    "text",
    ["gs://bucket/x", "s3://b", "file:///tmp/x", "hf://org/model", "gs:/bucket/x", "HTTPS://x/y", "abfss://c@a/x"],
)
def test_a_path_with_a_scheme_is_no_local_folder(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (files.local_path, files.make_directory, files.target_of, lambda p: files.write_json(p, {})):
        for path in (text, Path(text)):  # pathlib makes one slash of two
            with pytest.raises(UserError, match="with a scheme .* are not supported"):
                write(path)
    assert not list(tmp_path.iterdir())


def test_a_path_with_a_nul_character_is_one_line():
    with pytest.raises(UserError, match=r"x00b': holds a NUL character"):
        files.local_path("a\0b")


def test_other_paths_are_local():
    for text in ("a/b", "/a:/b", "./gs:/b", "a:b.jsonl", "C:/x", "~x", "2024-01-01T10:30/x"):
        assert files.local_path(text) == Path(text)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "x.json"
    files.write_json(path, {"a": "é"})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"x.json: cannot write \(No space left on device\); free some space"):
            files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": "é"}
    assert os.listdir(path.parent) == ["x.json"]


def test_modes_are_those_of_any_new_file(tmp_path, umask):
    files.write_text(tmp_path / "new", "x")
    assert _mode(tmp_path / "new") == 0o640
    (tmp_path / "new").chmod(0o604)
    files.write_text(tmp_path / "new", "y")
    assert _mode(tmp_path / "new") == 0o604 and (tmp_path / "new").read_text() == "y"


@pytest.mark.parametrize("make", [files.appearing, files.moving_into])
def test_folders_have_files_of_one_mode(make, tmp_path, umask):
    with make(tmp_path / "out") as folder:
        (folder / "open").write_text("a")
        os.close(os.open(folder / "closed", os.O_CREAT, 0o600))
        (folder / "deep").mkdir()
        os.close(os.open(folder / "deep" / "closed", os.O_CREAT, 0o600))
    assert {_mode(p) for p in (tmp_path / "out").rglob("*") if p.is_file()} == {0o640}
    assert sorted(os.listdir(tmp_path / "out")) == ["closed", "deep", "open"] and os.listdir(tmp_path) == ["out"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ZeroDivisionError), files.appearing(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
        raise ZeroDivisionError
    assert not os.listdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    with files.appearing(tmp_path / "link") as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "a").read_text() == "a"
    with pytest.raises(UserError, match="there: cannot write"), files.appearing(tmp_path / "there") as folder:
        (folder / "b").write_text("b")
    assert sorted(os.listdir(tmp_path)) == ["link", "there"]


def test_files_are_moved_over_those_of_their_names(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "other").write_text("kept")
    with files.moving_into(tmp_path) as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "a").read_text() == "new" and sorted(os.listdir(tmp_path)) == ["a", "other"]


def test_links_are_followed_and_stay(tmp_path):
    (tmp_path / "far").mkdir()
    for target in ("far/there", "far/not_yet"):
        link = tmp_path / f"link_{Path(target).name}"
        link.symlink_to(target)
        files.write_text(link, "x")
        assert link.is_symlink() and (tmp_path / target).read_text() == "x"
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(UserError, match="round: cannot write"):
        files.write_text(tmp_path / "round", "x")


def test_what_somebody_prepared_as_a_temporary_file_is_not_written_to(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("precious")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)
    (tmp_path / f".out.{'0' * 16}.tmp").symlink_to("mine")
    with pytest.raises(UserError, match=r"out: cannot write \(File exists\)"):
        files.write_text(tmp_path / "out", "x")
    assert (tmp_path / "mine").read_text() == "precious"
    assert (tmp_path / f".out.{'0' * 16}.tmp").is_symlink(), "nor removed"


def test_a_lock_follows_no_link_and_empties_no_file(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "link").symlink_to("mine")
    with pytest.raises(OSError):
        files.open_lock(tmp_path / "link")
    files.open_lock(tmp_path / "mine").close()
    files.open_lock(tmp_path / "new").close()
    assert (tmp_path / "mine").read_text() == "precious"


def test_what_is_no_regular_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("fifo")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "socket"))
    before = {p.name: p.lstat().st_ino for p in tmp_path.iterdir()}
    kinds = {"fifo": "a named pipe", "link": "a named pipe", "folder": "a folder", "socket": "a socket"}
    for name, kind in kinds.items():
        with pytest.raises(UserError, match=f"{name}: is {kind}; give the name of a regular file"):
            files.write_text(tmp_path / name, "x")
    with pytest.raises(UserError, match="null: is a device"):
        files.write_text("/dev/null", "x")
    assert {p.name: p.lstat().st_ino for p in tmp_path.iterdir()} == before


def test_leftovers_are_known_by_their_names(tmp_path):
    assert files.is_leftover(files.temporary_name(tmp_path / ("x" * 255)))
    assert len(files.temporary_name(tmp_path / ("x" * 255)).name) < 255
    assert not any(files.is_leftover(tmp_path / name) for name in ("x.tmp", ".x.tmp", ".git", "data"))


def test_json_has_no_number_that_json_lacks():
    value = {"a": [float("nan"), 1.5, (float("inf"),)], "b": {"c": -float("inf")}}
    assert json.loads(files.to_json(value)) == {"a": [None, 1.5, [None]], "b": {"c": None}}


def test_json_is_utf8_whatever_the_text():
    text = 'é \ud83d "\udc00'
    assert json.loads(files.to_json({"a": text}).decode("utf-8")) == {"a": text}


@pytest.mark.parametrize("depth", [files.MAX_NESTING + 1, 5000, 200_000])
@pytest.mark.parametrize("brackets", [("[", "]"), ('{"a":', "}")])
def test_json_that_is_nested_too_deep(depth, brackets):
    opening, closing = brackets
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        files.parse_json(opening * depth + "1" + closing * depth)
    assert files.parse_json(opening * 50 + "1" + closing * 50)
