"""How the package writes files, and how it reads JSON: everything that it leaves on a disk goes through here.

A file appears whole or not at all. It is written beside its place, under a name that nobody can have prepared, and then
renamed; a link is followed to the file that it names, and stays a link; whatever is no regular file is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO

from prl_jax.errors import UserError

AnyPath = str | os.PathLike[str]
MAX_NESTING = 100  # of JSON that the package reads; nothing that it writes comes near
MAX_OBJECT = 256 * 1024**2  # bytes of a JSON file that is read at once; the index of a large model has some millions
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?:/|$)")
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.tmp", re.DOTALL)
_SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def local_path(text: AnyPath) -> Path:
    """A path on this machine.

    Raises:
      UserError: for `gs://`, `s3://`, `hf://`, `file://` and the like, which would become a local folder called "gs:";
        for a NUL character.
    """
    text = os.fspath(text)
    if "\0" in text:
        raise UserError(f"{text!r}: holds a NUL character, which no path can have; take it out")
    scheme = _SCHEME.match(text)
    if scheme:
        if scheme[1].lower() == "file":
            advice = "give the path without it"
        else:
            advice = "copy it to a disk of this machine, or mount it"
        raise UserError(f"{text}: paths with a scheme ({scheme[1]}:) are not supported; {advice}")
    return Path(text)


def target_of(path: AnyPath) -> Path:
    """The place that a path names, links followed; nothing or a regular file is there.

    Raises:
      UserError: something else is there, such as a folder, a named pipe or a device; or it cannot be looked at.
    """
    target = Path(os.path.realpath(local_path(path)))
    try:
        kind = stat.S_IFMT(os.stat(target).st_mode)
    except FileNotFoundError:
        return target
    except OSError as error:
        raise _unwritable(path, error) from error
    if kind != stat.S_IFREG:
        what = _SPECIAL.get(kind, "no regular file")
        raise UserError(f"{path}: is {what}; give the name of a regular file, or a new one")
    return target


@contextlib.contextmanager
def replacing(path: AnyPath) -> Iterator[BinaryIO]:
    """A binary file to write into, which takes the place of `path` when all is written.

    It has the mode of any new file, or that of the file that it replaces.

    Raises:
      UserError: it cannot be written, or the place belongs to something that is no regular file.
    """
    target, temporary = target_of(path), None
    try:
        temporary, file = create(target)
        with file:
            yield file
            file.flush()
            with contextlib.suppress(OSError):  # it is new, or the file system has no modes
                os.fchmod(file.fileno(), stat.S_IMODE(os.stat(target).st_mode))
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def create(target: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `target`, under a name that is not there yet and cannot be guessed."""
    path = temporary_name(target)
    return path, os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb")


def temporary_name(target: Path) -> Path:
    """A name beside `target` that nobody can have prepared."""
    return target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")


def is_leftover(path: Path) -> bool:
    """Whether a file is what a killed process leaves of one that it was writing."""
    return _TEMPORARY.fullmatch(path.name) is not None


@contextlib.contextmanager
def appearing(path: AnyPath) -> Iterator[Path]:
    """A folder to write into, which is renamed to `path` when all is written; there is no or an empty folder yet.

    What was written there has the mode of any new file, whatever a library gave it.

    Raises:
      UserError: it cannot be written.
    """
    target = Path(os.path.realpath(local_path(path)))
    folder = temporary_name(target)
    try:
        folder.mkdir(parents=True)
        yield folder
        _share(folder)
        folder.rename(target)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def swapped_in(path: AnyPath) -> Iterator[Path]:
    """The name of a folder to make, which takes the place of what is at `path` when it is complete."""
    target = Path(os.path.realpath(local_path(path)))
    new, old = temporary_name(target), temporary_name(target)
    try:
        yield new
        if target.exists():
            target.rename(old)
        new.rename(target)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def moving_into(directory: AnyPath) -> Iterator[Path]:
    """A folder to write into, whose files are moved into `directory` when all are written; it is made if missing.

    Raises:
      UserError: it cannot be written.
    """
    make_directory(directory)
    target = Path(os.path.realpath(directory))
    folder = temporary_name(target / "new")
    try:
        folder.mkdir()
        yield folder
        _share(folder)
        for source in sorted(path for path in folder.rglob("*") if path.is_file()):
            place = target / source.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, place)
    except OSError as error:
        raise _unwritable(directory, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _share(folder: Path) -> None:
    """Lets the same people read the files of a new folder as the folder: some libraries write for the owner alone."""
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def user_cache() -> Path:
    """The folder in which the package keeps what it can make or fetch anew."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prl_jax"


def make_directory(path: AnyPath) -> None:
    """Makes a folder and its parents. Errors: `UserError` when it cannot."""
    try:
        local_path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot make this folder ({error.strerror}); choose another one") from error


def open_lock(path: Path) -> TextIO:
    """A file to lock, made if missing; it is not written to, and a link there is not followed."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    return os.fdopen(number, "r+")


def lock(file: IO[Any]) -> bool:
    """Whether no other process has locked a file; this one has then, until it closes the file or ends in any way. On a
    file system without locks nobody has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Writes a file as `replacing` does."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: AnyPath, text: str) -> None:
    """Writes a file in UTF-8 as `replacing` does."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: AnyPath, value: Any, *, indent: int | None = 1) -> None:
    """Writes a JSON file as `replacing` does, and makes its folder if missing; the text is that of `to_json`."""
    make_directory(local_path(path).parent)
    write_bytes(path, to_json(value, indent=indent) + b"\n")


def to_json(value: Any, *, indent: int | None = None) -> bytes:
    """JSON in UTF-8. NaN and infinities, which JSON lacks, become null; halves of surrogate pairs are escaped."""
    text = json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")  # which writes such a half as JSON does: \ud800


def finite(value: Any) -> Any:
    """A JSON value with None in place of NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a JSON object and of those within it, by their dotted keys, such as `mesh.data`."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def parse_json(data: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
      ValueError: it is malformed, or nested more than `MAX_NESTING` deep.
    """
    too_deep = f"nested more than {MAX_NESTING} deep"
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise ValueError(too_deep) from error
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return value
    raise ValueError(too_deep)


def read_object(path: AnyPath) -> dict[str, Any]:
    """The object that a small JSON file holds, such as a `config.json`.

    Raises:
      UserError: the file cannot be read, is larger than `MAX_OBJECT`, or holds something else.
    """
    path = local_path(path)
    try:
        size = path.stat().st_size
        if size > MAX_OBJECT:
            raise UserError(f"{path}: has {size} bytes, expected at most {MAX_OBJECT}")
        value = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # of what is no UTF-8 too
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def _unwritable(path: AnyPath, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(f"{os.fspath(path)}: cannot write ({reason}); free some space or choose another place")
