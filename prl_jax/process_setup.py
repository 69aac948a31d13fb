"""The set-up of a command's process, before anything else.

It checks that flax and JAX go together, quiets libraries, and has the heap keep its pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import logging

from prl_jax.errors import UserError

_STARTED_ANEW = "PRL_JAX_STARTED_ANEW"  # in the environment: the user's GLIBC_TUNABLES
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h


def check_versions() -> None:
    """Refuses releases of flax and JAX that cannot be imported together, before anything imports them.

    An installation of prl_jax never ends with such a pair (pyproject.toml); a later one of something else may.

    Raises:
      UserError: flax is older than 0.12.9 and jax is 0.11.1 or newer.
    """
    flax, jax = metadata.version("flax"), metadata.version("jax")
    if _release(flax) < (0, 12, 9) and _release(jax) >= (0, 11, 1):
        raise UserError(f"flax {flax} cannot be imported with jax {jax}; run: pip install --upgrade flax")


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def quiet() -> None:
    """Libraries keep to themselves: what they log is not for the user's terminal, which shows the error itself."""
    logging.set_verbosity(logging.FATAL)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Nothing fails since nobody listens: a standard stream that is closed leads nowhere in here, and an error of
    writing to standard error, which shows progress and messages, is no error. One of standard output still is."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would take its place, and whatever libraries print
            os.open(os.devnull, os.O_RDWR)
    out, err = sys.stdout, sys.stderr
    sys.stdout = open(os.devnull, "w") if out is None else out
    sys.stderr = _Tolerant(open(os.devnull, "w") if err is None else err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err
        for number, stream in ((1, out), (2, err)):
            _give_up(number, stream)


def nobody_reads() -> bool:
    """Whether standard output is a pipe of which the other end is closed, as `head` closes it when it has enough."""
    with contextlib.suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return False


class _Tolerant:
    """A text stream that takes everything, whether it can pass it on or not."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:  # from Python 3.12 on a protocol does not see what `__getattr__` finds
        return self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _give_up(number: int, stream: Any) -> None:
    """Drops what a stream still holds and cannot hand on: Python would say so when it ends."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            if stream.fileno() == number:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)


def in_huge_pages() -> None:
    """Starts the program anew, before it has done anything, with a heap in huge pages where Linux has them.

    glibc takes the setting from the environment, and only before `main`. Where XLA's CPU backend allocates more than
    `keep_heap` can keep, 2 GiB, each step faults in all its pages anew, and a huge one takes the place of 512. The
    programs that this one starts are not told.
    """
    if _STARTED_ANEW in os.environ:
        return _restore_tunables()
    given = os.environ.get("GLIBC_TUNABLES", "")
    # A program inside another one, such as a notebook's kernel, is not this one to start.
    own = bool(sys.executable) and sys.orig_argv[len(sys.orig_argv) - len(sys.argv) + 1 :] == sys.argv[1:]
    if own and "glibc.malloc.hugetlb" not in given and _has_huge_pages():
        os.environ[_STARTED_ANEW] = given
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (given, "glibc.malloc.hugetlb=1")))
        with contextlib.suppress(OSError):
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        _restore_tunables()


def _restore_tunables() -> None:
    """Leaves the environment as the user had it, for the programs that this one starts."""
    if before := os.environ.pop(_STARTED_ANEW):
        os.environ["GLIBC_TUNABLES"] = before
    else:
        os.environ.pop("GLIBC_TUNABLES", None)


def _has_huge_pages() -> bool:
    """Whether glibc can ask the kernel for them, from release 2.35 on, and the kernel grants them."""
    try:
        library, release = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        given = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except (AttributeError, ValueError, OSError):
        return False
    return library == "glibc" and _release(release) >= (2, 35) and "[never]" not in given


def keep_heap() -> None:
    """Tells glibc to keep freed memory instead of handing it back to the kernel after every step.

    XLA's CPU backend allocates a step's buffers anew each time; clearing and mapping fresh pages took half of the time
    of a training step of the built-in configs. Other C libraries have no such call, and nothing happens there.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    largest = 2**31 - 1
    mallopt(_M_MMAP_THRESHOLD, largest)
    mallopt(_M_TRIM_THRESHOLD, largest)
    mallopt(_M_ARENA_MAX, 1)  # the arenas of further threads are too small for such buffers and map each one anew
