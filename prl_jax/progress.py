"""The progress of a run: one line of progress on the console."""

from __future__ import annotations

import collections
import shutil
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

_RATE_WINDOW = 20


@runtime_checkable
class Stream(Protocol):
    """Where progress goes: a text file such as `sys.stderr`."""

    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...

    def isatty(self) -> bool: ...


class Progress:
    """One line of progress: stage, step, rate, time left, metrics.

    On a terminal the line is rewritten in place. Elsewhere (a log file, CI) a line of its own is printed for the first
    update, then at most once every `interval` seconds, and for the last update when the progress is closed.

        reward_model    340/900  12.4 step/s  ETA 0:45  loss 0.512  accuracy 0.744
    """

    def __init__(
        self,
        stage: str,
        total: int,
        *,
        stream: Stream,
        clock: Callable[[], float] = time.monotonic,
        unit: str = "step",
        interval: float = 5.0,
        width: int | None = None,
    ):
        """Prints nothing yet.

        Args:
          stage: shown first.
          total: steps of the whole stage, those before a resumed checkpoint included.
          stream: where to write; a terminal when its `isatty()` says so.
          clock: seconds, monotonic.
          unit: what a step is called in the rate.
          interval: seconds between lines where the stream is no terminal.
          width: columns to cut the line at on a terminal; None asks the terminal.
        """
        self._stage, self._total, self._unit = stage, total, unit
        self._stream, self._clock, self._interval = stream, clock, interval
        self._terminal = stream.isatty()
        self._width = width or shutil.get_terminal_size().columns
        self._times: collections.deque[tuple[float, int]] = collections.deque(maxlen=_RATE_WINDOW)
        self._printed_at: float | None = None
        self._pending = ""  # the newest line when it has not been printed
        self._metrics: dict[str, float] = {}
        self._open = True

    def update(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Shows that `step` steps are done. Metrics that are not given, or None, keep their last value."""
        now = self._clock()
        self._times.append((now, step))
        self._metrics.update({name: float(value) for name, value in (metrics or {}).items() if value is not None})
        self._pending = self._line(step)
        if self._terminal:
            # \x1b[K clears what a longer line before left behind.
            self._stream.write("\r" + self._pending[: max(self._width - 1, 1)] + "\x1b[K")
            self._stream.flush()
            self._pending = ""
        elif self._printed_at is None or now - self._printed_at >= self._interval:
            self._print_pending(now)

    def clear(self) -> None:
        """Makes room on a terminal for a line of somebody else; the next update shows the progress again."""
        if self._terminal and self._times:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def close(self) -> None:
        """Ends the line, after the newest state where it has not been printed; a second call does nothing."""
        if not self._open:
            return
        self._open = False
        if self._terminal and self._times:
            self._stream.write("\n")
            self._stream.flush()
        elif self._pending:
            self._print_pending(self._clock())

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _print_pending(self, now: float) -> None:
        self._stream.write(self._pending + "\n")
        self._stream.flush()
        self._printed_at, self._pending = now, ""

    def _line(self, step: int) -> str:
        width = len(str(self._total))
        parts = [f"{self._stage:<16} {step:>{width}}/{self._total}"]
        # The window starts at the first update, so that compilation before it does not count as slow steps.
        (start, first), (end, last) = self._times[0], self._times[-1]
        if end > start and last > first:
            rate = (last - first) / (end - start)
            parts += [f"{rate:.3g} {self._unit}/s", f"ETA {format_seconds((self._total - step) / rate)}"]
        parts += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in self._metrics.items()]
        return "  ".join(parts)


def format_seconds(seconds: float) -> str:
    """`75.0 -> "1:15"`, `3700.0 -> "1:01:40"`."""
    minutes, remainder = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{remainder:02d}" if hours else f"{minutes}:{remainder:02d}"
