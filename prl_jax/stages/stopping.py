"""SIGTERM, which schedulers send some time before they take a machine away: the run saves and ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from prl_jax.errors import Stopped


class StopSignal:
    """Whether the run was asked to end.

    In one process a handler of Python's notices (`caught`). In several, the service that `jax.distributed` starts does,
    and it lets all of them learn of it after the same number of questions; they ask at the same places. A second signal
    ends the process at once.
    """

    def __init__(self) -> None:
        self._asked, self._waits, self._questions = False, False, 0

    def __call__(self) -> bool:
        """Whether to end here; asked after each step, and before each piece and each stage."""
        import jax  # not before the handler is there
        from jax.experimental import multihost_utils

        if jax.process_count() > 1 and not self._asked:
            self._questions += 1
            if multihost_utils.reached_preemption_sync_point(self._questions):
                self._noticed()
        return self._asked

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """SIGTERM raises `Stopped` in here, or waits to be asked for."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only there can Python have handlers
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        signal.signal(signal.SIGTERM, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def after_steps(self) -> Iterator[None]:
        """In here the signal waits until somebody asks; elsewhere it ends the run wherever it is."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def _handle(self, *_: Any) -> None:
        self._noticed()
        if not self._waits:
            raise Stopped("what was saved before is kept")

    def _noticed(self) -> None:
        self._asked = True
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
