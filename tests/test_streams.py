"""The command line as a process: standard streams that nobody reads, and signals while XLA is at work."""

import os
import signal
import subprocess
import sys
import time

import pytest
from running import MICRO, ROOT

PRL = [sys.executable, "-m", "prl_jax"]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("--help >&-", 0),
        ("nonsense 2>&-", 2),
        ("nonsense >&- 2>&-", 2),
        ("nonsense 2>/dev/full", 2),
        ("run --help >/dev/full", 2),
    ],
)
def test_streams_that_are_closed_or_full(command, code):
    shell = f"{sys.executable} -m prl_jax {command}"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr + done.stdout, done


def test_a_pipe_that_is_closed_ends_it_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*PRL, "run", "--help"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.long
def test_sigterm_is_heard_in_the_first_batch_of_a_stage(tmp_path):
    """XLA compiles then, and gives the main thread nothing to hear with. Once this ended in a segmentation fault."""
    command = [*PRL, "run", "--config", MICRO, "--workdir", tmp_path / "run", "--compilation_cache_dir="]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
    while not (tmp_path / "run" / "sft").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and time.monotonic() - start < 10, err
    assert "stopped by SIGTERM: what was saved before is kept" in err.splitlines()[-1] and "Traceback" not in err
