"""SIGTERM, which schedulers send some time before they take a machine away: the run saves and ends."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from prl_jax.errors import Stopped

_KEPT = "what was saved before is kept"
# A stage starts: nothing is lost by an end; it is at work: a step or piece waits to be saved; it saves.
_STARTS, _WORKS, _ENDS = "starts", "works", "ends"
_PATIENCE = 2.0  # seconds in which Python hears a signal, unless a library is at work


class StopSignal:
    """Whether the run was asked to end.

    In one process a handler of Python's notices (`caught`). In several, the service that `jax.distributed` starts does,
    and it lets all of them learn of it after the same number of questions; they ask at the same places. A second signal
    ends the process at once.

    Args:
      leave: ends the process where there is nothing to save; called in another thread where the main one does not hear,
        since XLA compiles or computes. None raises `Stopped` when the main thread hears.
    """

    def __init__(self, leave: Callable[[Stopped], None] | None = None) -> None:
        self._asked, self._questions, self._phase = False, 0, _STARTS
        self._leave, self._heard = leave, threading.Event()

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
            with self._watched():
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def starts(self) -> None:
        """A stage starts: until something is `done`, the signal ends the run wherever it is."""
        self._phase = _STARTS

    def done(self) -> None:
        """A step or piece is made: inside `after_steps` the signal waits from here on until somebody asks."""
        self._phase = _WORKS

    @contextlib.contextmanager
    def after_steps(self) -> Iterator[None]:
        """Around the steps or pieces of a stage; behind it the signal raises `Stopped`, and what is being saved is."""
        try:
            yield
        finally:
            self._phase = _ENDS

    def _handle(self, *_: Any) -> None:
        self._heard.set()
        self._noticed()
        if self._phase == _STARTS and self._leave is not None:
            self._leave(Stopped(_KEPT))
        elif self._phase != _WORKS:
            raise Stopped(_KEPT)

    def _noticed(self) -> None:
        self._asked = True
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Another thread listens too: Python's handlers run in the main one, and not before XLA gives it back, which in
        a first batch, that is compiled, takes longer than schedulers wait."""
        if self._leave is None:
            yield
            return
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._watch, args=(reader, self._leave), daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(writer)
            thread.join()
            os.close(reader)

    def _watch(self, reader: int, leave: Callable[[Stopped], None]) -> None:
        while numbers := os.read(reader, 64):
            if signal.SIGTERM in numbers and not self._heard.wait(_PATIENCE) and self._phase == _STARTS:
                leave(Stopped(_KEPT))
