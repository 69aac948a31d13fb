"""The command line, run inside the test's process."""

import contextlib
import functools
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
from absl import logging

import prl_jax
from prl_jax import cli
from prl_jax.training.state import JitUpdate

ROOT = Path(__file__).parents[1]
MICRO = str(ROOT / "tests" / "configs" / "micro.py")


def environment_of(devices: int) -> dict[str, str]:
    """For a process with that many CPU devices, which compiles without optimising."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "PYTHONPATH": os.pathsep.join([str(Path(prl_jax.__file__).parents[1]), str(Path(__file__).parent)]),
    }


def on_virtual_devices(script: str | Path, *arguments: object, devices: int = 8) -> str:
    """What a script prints in a process of its own with that many CPU devices; warnings are errors there too."""
    command = [sys.executable, "-W", "error", str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment_of(devices), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script}: {done.stderr[-4000:]}")
    return done.stdout


def in_processes(script: str | Path, *arguments: object, number: int, devices: int) -> None:
    """Runs a script in several processes, each with that many CPU devices; it joins them where `--join` tells."""
    join = ["--join", f"localhost:{free_port()}", str(number)]
    command = [sys.executable, "-W", "error", str(script), *map(str, arguments), *join]
    commands = [[*command, str(i)] for i in range(number)]
    together(commands, environment_of(devices))


def together(commands: Sequence[Sequence[str]], environment: Mapping[str, str], timeout: float = 300) -> list[str]:
    """Runs commands side by side and returns what each printed. A failure stops them all."""
    with contextlib.ExitStack() as files:
        # Not pipes: a process that nobody listens to would stop when its pipe is full.
        printed = [files.enter_context(tempfile.TemporaryFile("w+")) for _ in commands]
        start = functools.partial(subprocess.Popen, env=environment, cwd=ROOT, stderr=subprocess.STDOUT)
        started = [start(command, stdout=file) for command, file in zip(commands, printed, strict=True)]
        try:
            codes = [process.wait(timeout) for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
        texts = [(file.seek(0), file.read())[1] for file in printed]
    assert not any(codes), f"exit codes {codes}\n" + "\n".join(text[-4000:] for text in texts)
    return texts


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


class Done(NamedTuple):
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


def prl(*argv: object) -> Done:
    """Runs a command. Warnings fail the test: with an option about them, the command line leaves them alone."""
    verbosity, options = logging.get_verbosity(), sys.warnoptions
    sys.warnoptions = ["error"]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            with guarded_steps():
                code = cli.main([str(word) for word in argv])
    finally:
        sys.warnoptions = options
        logging.set_verbosity(verbosity)
    return Done(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def guarded_steps() -> Iterator[None]:
    """A jitted step that is handed arrays of the host fails: each would be copied to the devices while they wait."""
    call = JitUpdate.__call__

    def guarded(self: JitUpdate, *arguments: Any) -> Any:
        with jax.transfer_guard("disallow"):
            return call(self, *arguments)

    with mock.patch.object(JitUpdate, "__call__", guarded):
        yield


@contextlib.contextmanager
def unoptimised() -> Iterator[None]:
    """XLA compiles in a third of the time; for tests that compile a lot and compute little."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def refused(*argv: object) -> str:
    """The one line that a command is refused with, after the progress that it may have shown."""
    done = prl(*argv)
    *progress, line = done.err.splitlines()
    assert (done.code, done.out) == (2, ""), done
    assert line.startswith("prl: ") and not any(shown.startswith(("prl", "Traceback")) for shown in progress), done
    return line


def says(line: str, *words: str) -> bool:
    """Whether a message holds all the words."""
    missing = [word for word in words if word not in line]
    assert not missing, f"{missing} not in: {line}"
    return True


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
