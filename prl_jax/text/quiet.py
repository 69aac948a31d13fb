"""Keeping transformers off the terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from telling the terminal that it found no PyTorch; leaves its log level as it was."""
    logger = logging.getLogger("transformers")

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    filtered = [logger, *logger.handlers]  # records of its modules come by the handlers alone
    for part in filtered:
        part.addFilter(errors_only)
    try:
        yield
    finally:
        for part in filtered:
            part.removeFilter(errors_only)
