"""The lines of a text file of any size, gzipped or not: read once from end to end, then one by one. Imports no jax.

What stays in memory is where the lines begin and end. A gzip file is unpacked into an unnamed temporary file in
`$TMPDIR`, up to a limit: a few megabytes of gzip can unpack to any number of gigabytes.
"""

import hashlib
import os
import stat
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prl_jax.data.contents import GZIP, is_gzip, refuse_other_contents
from prl_jax.errors import UserError

_CHUNK = 2**20
_BOM = b"\xef\xbb\xbf"
_WRITTEN = np.array([not bytes([byte]).isspace() for byte in range(256)])  # bytes that make a line more than blank


@dataclass(frozen=True)
class Limits:
    """Bounds on a file, both of which a config key and a flag of the same name raise.

    Attributes:
      max_unpacked_mib: size of a gzip file when it is unpacked, in MiB.
      max_line_mib: length of a line, in MiB.
    """

    max_unpacked_mib: int = 2048
    max_line_mib: int = 64


class Lines:
    """The lines of a file that are not blank, each with its number in the file, counted from 1.

    Lines end in LF or CRLF; in a file without any LF (as old Macs wrote it) in CR.

    Attributes:
      size: of the file, in bytes, as it is on the disk.
      sha256: its checksum, in hexadecimal.

    Errors: `UserError` for a file that is missing, unreadable, no regular file, damaged, no text, or beyond a limit; on
    reading a line, where the file has been cut since.
    """

    def __init__(self, path: Path, limits: Limits = Limits()):
        self._path, self._limits = path, limits
        descriptor = _open(path)
        try:
            head = os.pread(descriptor, 2**16, 0)
            digest = hashlib.sha256()
            chunks = _read(descriptor, digest)
            if is_gzip(head):
                with _temporary(path) as file:
                    self._descriptor = os.dup(file.fileno())
                weakref.finalize(self, os.close, self._descriptor)
                chunks = self._unpacked(chunks)
            else:
                self._descriptor = os.dup(descriptor)
                weakref.finalize(self, os.close, self._descriptor)
            self._numbers, self._starts, self._ends = self._index(chunks)
            self.size, self.sha256 = os.fstat(descriptor).st_size, digest.hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot read: {error.strerror or error}") from error
        finally:
            os.close(descriptor)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> tuple[int, bytes]:
        """The number and the bytes of a line."""
        number, start, end = (int(column[index]) for column in (self._numbers, self._starts, self._ends))
        try:
            line = os.pread(self._descriptor, end - start, start)
        except OSError as error:
            raise UserError(f"{self._path}:{number}: cannot read: {error.strerror or error}") from error
        if len(line) < end - start:
            raise UserError(f"{self._path}:{number}: the file has been cut since it was opened; start again")
        return number, line

    def number(self, index: int) -> int:
        """The number of a line in the file, counted from 1."""
        return int(self._numbers[index])

    def _index(self, chunks: Iterator[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Number, start and end of each line that is not blank, `[N]` int64 each."""
        found, separator = [np.zeros((3, 0), np.int64)], b""
        number, start, filled, position = 1, 0, False, 0  # of the line that has begun; of the chunk
        for chunk in chunks:
            if not position:
                refuse_other_contents(self._path, chunk)
                separator = b"\r" if b"\r" in chunk and b"\n" not in chunk else b"\n"
                if chunk.startswith(_BOM):
                    start, chunk = len(_BOM), b" " * len(_BOM) + chunk[len(_BOM) :]
            if separator == b"\r":
                chunk = chunk.replace(b"\r", b"\n")
            # Arrays over the lines of the chunk, since a file may have a line a byte; the last one is still open.
            data = np.frombuffer(chunk, np.uint8)
            breaks = np.flatnonzero(data == ord(b"\n"))
            starts, ends = np.append(0, breaks + 1), np.append(breaks, len(data))
            holds = np.logical_or.reduceat(_WRITTEN[data], np.minimum(starts, len(data) - 1)) & (ends > starts)
            starts, ends = starts + position, ends + position
            starts[0], holds[0] = start, holds[0] or filled
            self._check_length(number, ends - starts)
            whole = np.flatnonzero(holds[:-1])
            found.append(np.stack([number + whole, starts[whole], ends[whole]]))
            number, start, filled, position = number + len(breaks), starts[-1], holds[-1], position + len(data)
        if filled:
            found.append(np.array([[number], [start], [position]], np.int64))
        numbers, starts, ends = np.concatenate(found, axis=1)
        return numbers, starts, ends

    def _check_length(self, number: int, lengths: np.ndarray) -> None:
        """Raises `UserError` where one of the lines from this number on is too long."""
        long = np.flatnonzero(lengths > self._limits.max_line_mib * 2**20)
        if len(long):
            raise UserError(
                f"{self._path}:{number + long[0]}: the line is longer than {self._limits.max_line_mib} MiB "
                "(expected one JSON object per line; a larger max_line_mib allows it)"
            )

    def _unpacked(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yields what gzip members hold, and writes it to the temporary file as well."""
        size, lines, longest = 0, 0, self._limits.max_unpacked_mib * 2**20
        try:
            for chunk in _gunzip(chunks):
                size += len(chunk)
                if size > longest:
                    raise UserError(
                        f"{self._path}: unpacks to more than {self._limits.max_unpacked_mib} MiB "
                        "(a larger max_unpacked_mib allows it)"
                    )
                _write(self._path, self._descriptor, chunk)
                lines += chunk.count(b"\n")
                yield chunk
        except _Damaged as error:
            raise UserError(
                f"{self._path}: not a whole gzip file ({error}); the first {lines} lines are intact: fetch it again"
            ) from error


class _Damaged(Exception):
    """An error that says what is wrong with a gzip file."""


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The contents of gzip members one after the other, in pieces of bounded size; zeros after a member are padding."""
    unpack, started, waiting = zlib.decompressobj(wbits=31), False, b""
    for chunk in chunks:
        waiting += chunk
        while waiting:
            if not started:
                waiting = waiting.lstrip(b"\0")
                if len(waiting) < len(GZIP):
                    break
                if not waiting.startswith(GZIP):
                    raise _Damaged("after its end follows something that is no gzip")
                unpack, started = zlib.decompressobj(wbits=31), True
            try:
                piece = unpack.decompress(waiting, _CHUNK)
            except zlib.error as error:
                raise _Damaged(str(error)) from error
            waiting, started = (unpack.unused_data, False) if unpack.eof else (unpack.unconsumed_tail, True)
            if piece:
                yield piece
    if started:
        raise _Damaged("it ends early")
    if waiting:
        raise _Damaged("after its end follows something that is no gzip")


def _open(path: Path) -> int:
    """Descriptor of a regular file; of anything else, nothing is opened: a named pipe would wait for its writer."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
        if kind == stat.S_IFREG:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read: {getattr(error, 'strerror', None) or error}") from error
    what = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe"}.get(kind, "a device or socket")
    raise UserError(f"{path}: is {what} (expected a file of JSON lines)")


def _read(descriptor: int, digest: "hashlib._Hash") -> Iterator[bytes]:
    while chunk := os.read(descriptor, _CHUNK):
        digest.update(chunk)
        yield chunk


def _temporary(path: Path):
    try:
        return tempfile.TemporaryFile(prefix="prl-")
    except OSError as error:
        raise UserError(f"{path}: nowhere to unpack it ({error.strerror or error}); set TMPDIR") from error


def _write(path: Path, descriptor: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        raise UserError(
            f"{path}: cannot unpack it in {tempfile.gettempdir()}: {error.strerror or error}; set TMPDIR to a folder "
            "with more room, or unpack it with gunzip"
        ) from error
