"""The command line, run inside the test's process."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging

import prl_jax
from prl_jax import cli

ROOT = Path(__file__).parents[1]
MICRO = str(ROOT / "tests" / "configs" / "micro.py")


def on_virtual_devices(script: str | Path, *arguments: object, devices: int = 8) -> str:
    """What a script prints in a process of its own with that many CPU devices; warnings are errors there too."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "PYTHONPATH": os.pathsep.join([str(Path(prl_jax.__file__).parents[1]), str(Path(__file__).parent)]),
    }
    command = [sys.executable, "-W", "error", str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script}: {done.stderr[-4000:]}")
    return done.stdout


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
            code = cli.main([str(word) for word in argv])
    finally:
        sys.warnoptions = options
        logging.set_verbosity(verbosity)
    return Done(code, out.getvalue(), err.getvalue())


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
