"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A mistake in what the user gave: files, configs, flags, a full disk, a diverged run.

    The message is one line that names the file and line, key or shape, says what was expected and what to do.
    The command line prints it without a traceback and exits with code 2.
    """
