"""The exceptions that a user is meant to read."""

import contextlib
import json
from collections.abc import Iterator


class UserError(Exception):
    """A mistake in what the user gave: files, configs, flags, a full disk, a diverged run.

    The message is one line that names the file and line, key or shape, says what was expected and what to do.
    The command line prints it without a traceback and exits with code 2.
    """


class Stopped(BaseException):
    """A run was asked to end (SIGTERM) and does so, at a point from which the same command continues.

    The message says what was saved; the command line prints it and exits with code 75. No `except Exception` between
    takes it for a failure.
    """


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Puts the key or the row that it is about in front of the message of a `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


def quoted(text: str) -> str:
    """A text of the user's in quotes, fit for a message: in one line, and not longer than one."""
    return json.dumps(text if len(text) <= 80 else f"{text[:80]}...", ensure_ascii=False)
