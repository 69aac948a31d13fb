"""Killed at any moment, a run continues with the same command and ends like one that was never interrupted."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from prl_jax.sharding import make_mesh
from prl_jax.stages.artifacts import load_model
from prl_jax.tree import flatten

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
COMMAND = ("-m", "prl_jax", "run", "--config", "tests/configs/micro.py:short", "--workdir")
STAGES = ("sft", "bt", "genrm", "anchors", "pairwise_ppo", "evaluation")
# Sets the size that a file may have, as a full disk would, and becomes the command.
LIMITED = "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); "
LIMITED += "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """All processes share what they compile, and compile without optimising: the same program each time."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return {**os.environ, **cache, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, environment) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    command = [sys.executable, *COMMAND, str(workdir)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Nothing but progress, the tables and the report's path, from Python or from below it.
    assert {line.split()[0] for line in done.stderr.splitlines()} == set(STAGES), done.stderr
    assert done.stdout.splitlines()[-1] == f"Report: {workdir / 'report.html'}" and "WARNING" not in done.stdout
    return workdir


class Run:
    """A run that is interrupted again and again; `stamps` remembers the files of stages that have finished."""

    def __init__(self, workdir: Path, environment: dict[str, str]):
        self.workdir, self.environment, self.stamps = workdir, environment, {}

    def kill_when(self, reached: Callable[[], bool], *, inside: str) -> None:
        """Starts the command and kills it as soon as something has happened, which is inside a stage."""
        command = [sys.executable, *COMMAND, str(self.workdir)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 120
        while not reached():
            assert process.poll() is None, f"ended before it could be killed: {process.stderr.read().decode()}"
            assert time.monotonic() < deadline, "what the kill was waiting for has not happened"
            time.sleep(0.001)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -9 and b"Traceback" not in errors, errors.decode()
        assert (self.workdir / inside).is_dir() and not (self.workdir / inside / "result.json").exists()
        self.check_finished()

    def finish(self, *, file_size: int | None = None) -> subprocess.CompletedProcess:
        prefix = () if file_size is None else ("-c", LIMITED, str(file_size))
        command = [sys.executable, *prefix, *COMMAND, str(self.workdir)]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        self.check_finished()
        return done

    def check_finished(self) -> None:
        """No file of a stage that was finished before has changed."""
        for path, stamp in self.stamps.items():
            assert path.stat().st_mtime_ns == stamp, f"{path} was written again"
        for name in STAGES:
            if (self.workdir / name / "result.json").exists():
                files = [path for path in (self.workdir / name).rglob("*") if path.is_file()]
                self.stamps |= {path: path.stat().st_mtime_ns for path in files}

    def step_is_logged(self, stage: str, step: int) -> Callable[[], bool]:
        path, wanted = self.workdir / stage / "metrics.jsonl", f'{{"step": {step},'.encode()
        return lambda: path.exists() and wanted in path.read_bytes()

    def exists(self, pattern: str) -> Callable[[], bool]:
        return lambda: any(self.workdir.glob(pattern))

    def checkpoints(self, stage: str) -> set[str]:
        return {path.name for path in (self.workdir / stage / "checkpoints").iterdir() if path.name.isdigit()}


@pytest.fixture(scope="module")
def interrupted(uninterrupted, environment) -> Run:
    """Killed six times and once out of disk space, then left to finish. Needs what `uninterrupted` has compiled."""
    run = Run(uninterrupted.parent / "killed", environment)
    run.kill_when(run.step_is_logged("sft", 3), inside="sft")  # between two checkpoints
    run.kill_when(run.exists("sft/checkpoints/6*"), inside="sft")  # in the middle of a save, or right behind it
    run.kill_when(run.step_is_logged("genrm", 3), inside="genrm")
    full_disk(run)
    run.kill_when(run.step_is_logged("pairwise_ppo", 1), inside="pairwise_ppo")  # before the first checkpoint
    run.kill_when(run.step_is_logged("pairwise_ppo", 5), inside="pairwise_ppo")
    run.kill_when(run.exists("evaluation"), inside="evaluation")
    done = run.finish()
    assert done.returncode == 0, done.stderr
    return run


def full_disk(run: Run) -> None:
    """A disk that takes no more is told in one line, and costs the steps since the last checkpoint at most."""
    before = run.checkpoints("genrm")
    done = run.finish(file_size=20_000)
    problem = [line for line in done.stderr.splitlines() if not line.startswith(("genrm  ", "sft  ", "bt  "))]
    assert done.returncode == 2 and len(problem) == 1, done.stderr
    assert "genrm/checkpoints: cannot save step" in problem[0] and "too large" in problem[0]
    assert before and run.checkpoints("genrm") == before


def test_metrics_and_samples_are_those_of_an_uninterrupted_run(uninterrupted, interrupted):
    names = [f"{stage}/metrics.jsonl" for stage in ("sft", "bt", "genrm", "pairwise_ppo")]
    names += [f"{stage}/samples.jsonl" for stage in ("sft", "bt", "genrm", "pairwise_ppo", "evaluation")]
    for name in (*names, "anchors/anchors.jsonl", "summary.json"):
        whole, killed = ((workdir / name).read_bytes() for workdir in (uninterrupted, interrupted.workdir))
        assert len(whole) > 100 and whole == killed, name


def test_results_are_those_of_an_uninterrupted_run_but_for_the_time(uninterrupted, interrupted):
    for stage in STAGES:
        whole, killed = (
            json.loads((w / stage / "result.json").read_text()) for w in (uninterrupted, interrupted.workdir)
        )
        assert whole.pop("seconds") > 0 and killed.pop("seconds") > 0
        assert whole == killed and whole["metrics"]


def test_parameters_are_those_of_an_uninterrupted_run(uninterrupted, interrupted):
    for stage in ("sft", "genrm", "pairwise_ppo"):
        whole, killed = (flatten(load_model(w / stage, make_mesh())[1]) for w in (uninterrupted, interrupted.workdir))
        assert whole.keys() == killed.keys()
        for name, value in whole.items():
            np.testing.assert_array_equal(jax.device_get(value), jax.device_get(killed[name]), err_msg=name)
