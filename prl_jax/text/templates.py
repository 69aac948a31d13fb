"""Chat templates, rendered within bounds of time, memory and size."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prl_jax.errors import UserError

MOST_SECONDS, MOST_MEMORY, MOST_CHARACTERS = 5, 2**30, 2**24  # of CPU, of the worker in bytes, of one conversation
_WALL_SECONDS = 600  # a template cannot wait, only use the processor: this is for a machine that has much else to do
_DAY = "26 Jul 2024"  # `template_worker.DAY` as Llama 3.1's template writes it
_GIVEN = frozenset({"messages", "add_generation_prompt"})  # what a template is given, which no argument replaces
_LIBRARY = frozenset("raise_exception strftime_now namespace range dict cycler joiner".split())


class ChatTemplate:
    """A Jinja template of conversations.

    Args:
      source: the template.
      where: the file or directory that it is from, for messages.
      specials: texts of special tokens by name, such as `bos_token`.
      arguments: what else it is given, such as `enable_thinking`; it has to read each.

    Raises:
      UserError: the template cannot be parsed, or does not read an argument.
    """

    def __init__(self, source: str, where: str, specials: Mapping[str, Any], arguments: Mapping[str, Any]):
        self.source, self._where = source, where
        self._values = {"date_string": _DAY, **specials, **arguments}
        if arguments:
            names = set(self._ask({"names": True}, "cannot be read")["names"]) - _GIVEN - set(specials) - _LIBRARY
            unknown = sorted(set(arguments) - names)
            if unknown:
                known = f"it reads {', '.join(sorted(names))}" if names else "it reads none"
                raise UserError(f"{where}: template_args: the chat template does not read {unknown[0]!r}; {known}")

    def render(self, messages: Sequence[Mapping[str, Any]], *, generate: bool) -> str:
        """The text of a conversation; with `generate` the opening of an answer behind it.

        Raises:
          UserError: the template refuses it, or exceeds its bounds.
        """
        values = {**self._values, "messages": messages, "add_generation_prompt": generate}
        request = {"values": values, "most": MOST_CHARACTERS}
        return self._ask(request, "refuses this conversation")["text"]

    def _ask(self, request: Mapping[str, Any], problem: str) -> dict[str, Any]:
        found = _worker(os.getpid()).ask({"template": self.source, **request})
        if "error" in found:
            reason = " ".join(found["error"].split())[:200]
            raise UserError(f"{self._where}: the chat template {problem}: {reason}")
        return found


@functools.lru_cache(maxsize=1)
def _worker(process: int) -> _Worker:
    """The worker of a process; a fork has one of its own."""
    return _Worker()


class _Worker:
    """The process that renders, started when it is first asked, and again after one that had to be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the worker's answer: one object, with the key "error" where it failed."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            if self._process is not None and self._process.poll() is not None:  # somebody else has ended it
                self._end()
            process = self._process = self._process or _start()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
                answer = _read_line(process.stdout.fileno(), time.monotonic() + _WALL_SECONDS)
            except (OSError, TimeoutError):
                answer = b""
            except BaseException:  # an interrupt leaves an answer that nobody waits for
                self._end()
                raise
            if answer:
                return json.loads(answer)
            self._end()
        return {"error": f"it takes more than {MOST_SECONDS} seconds, or more memory than it may have"}

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _close(process, os.getpid())


def _start() -> subprocess.Popen[bytes]:
    found = (importlib.util.find_spec(name) for name in ("jinja2", "markupsafe"))
    folders = dict.fromkeys(str(Path(spec.origin).parents[1]) for spec in found if spec is not None and spec.origin)
    script = Path(__file__).with_name("template_worker.py")
    command = [sys.executable, "-I", "-S", str(script), str(MOST_MEMORY), str(MOST_SECONDS), *folders]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
    atexit.register(_close, process, os.getpid())
    return process


def _close(process: subprocess.Popen[bytes], owner: int) -> None:
    """Ends a worker; a fork leaves that of its parent alone."""
    if os.getpid() == owner:
        process.kill()  # nothing, where it has ended
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was not written any more
                assert pipe is not None
                pipe.close()


def _read_line(descriptor: int, deadline: float) -> bytes:
    """A line without its end; nothing where the other side has ended. Raises TimeoutError at the deadline."""
    parts: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not (parts and parts[-1].endswith(b"\n")):
            if not selector.select(max(deadline - time.monotonic(), 0.0)):
                raise TimeoutError
            parts.append(os.read(descriptor, 2**16))
            if not parts[-1]:
                return b""
    return b"".join(parts)
