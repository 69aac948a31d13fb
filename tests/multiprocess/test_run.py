"""`prl run` in several processes on this machine: the README's command, lost processes, mistakes."""

import functools
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from running import ROOT, environment_of, free_port, in_processes, together, write_rows

pytestmark = pytest.mark.slow
CONFIG = "tests/configs/micro.py:decided"
ALONE = (sys.executable, "-m", "prl_jax", "run", "--config", CONFIG, "--workdir")
HEARTBEAT = 8


def readme_commands(workdir: Path, *more: str, config: str = CONFIG) -> list[list[str]]:
    """The two commands that the README starts side by side, for a small config, another folder and a free port."""
    text, port = (ROOT / "README.md").read_text(), free_port()
    lines = [line.rstrip(" &") for line in text.splitlines() if "--coordinator localhost:" in line]
    assert len(lines) == 2 and [re.findall(r"--process_id (\d)", line) for line in lines] == [["0"], ["1"]]
    commands = []
    for line in lines:
        words = shlex.split(line)
        assert words[:2] == ["prl", "run"]
        words[words.index("--config") + 1] = config
        words[words.index("--workdir") + 1] = str(workdir)
        words[words.index("--coordinator") + 1] = f"localhost:{port}"
        commands.append([sys.executable, "-m", "prl_jax", *words[1:], *more])
    return commands


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    cache = {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return environment_of(1) | cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(folder, environment) -> Path:
    together([[*ALONE, str(folder / "alone")]], environment)
    return folder / "alone"


@pytest.fixture(scope="module")
def two(folder, environment) -> tuple[Path, list[str]]:
    printed = together(readme_commands(folder / "two"), environment)
    return folder / "two", printed


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def parts_of(row: dict) -> tuple[list[float], list]:
    """The numbers with a fraction in a row, and all else, in lists and objects too."""
    leaves = jax.tree.leaves(row, is_leaf=lambda x: x is None)
    return [x for x in leaves if isinstance(x, float)], [x for x in leaves if not isinstance(x, float)]


# Numbers that rounding alone moves by more after many updates, and how far: small differences of large numbers, a count
# of what is beyond a bound, and a norm.
LOOSE = {"explained_variance": 2e-3, "kl": 3e-4, "value_clip": 0.025, "grad_norm": 5e-4}


def check_same(one: Path, other: Path, made: str = "anchors.jsonl") -> None:
    """Texts are equal, numbers equal but for the rounding that several updates have made of 1e-6."""
    names = sorted(path.relative_to(one) for path in one.rglob("*.jsonl") if path.name != "timings.jsonl")
    assert {name.name for name in names} == {"metrics.jsonl", "samples.jsonl", made, "wins.jsonl"}
    for name in names:
        expected, found = rows_of(one / name), rows_of(other / name)
        assert len(expected) == len(found) and [row.keys() for row in expected] == [row.keys() for row in found], name
        for a, b in zip(expected, found, strict=True):
            for key in LOOSE.keys() & a.keys():
                assert a.pop(key) == pytest.approx(b.pop(key), abs=LOOSE[key]), f"{name}, {key}"
            (numbers, texts), (other_numbers, other_texts) = parts_of(a), parts_of(b)
            assert texts == other_texts, name
            np.testing.assert_allclose(other_numbers, numbers, 1e-4, 1e-4, err_msg=f"{name}, {a}")


def test_the_readmes_command_does_in_two_processes_what_it_does_in_one(alone, two):
    workdir, printed = two
    check_same(alone, workdir)
    assert json.loads((workdir / "config.json").read_text())["config"]["title"] == "Micro"
    assert (workdir / "report.html").is_file()
    # The first process speaks for all; the second says nothing but what gloo itself prints.
    assert f"Report: {workdir / 'report.html'}" in printed[0] and "pairwise_ppo" in printed[0]
    assert [line for line in printed[1].splitlines() if "[Gloo]" not in line] == []


@pytest.mark.long
def test_rounds_in_two_processes_make_the_pairs_that_one_makes(folder, environment):
    """And the same policies of them: `pairs.jsonl`, the references, every metric."""
    rounds = "tests/configs/rounds.py"
    one, both = folder / "rounds", folder / "rounds_of_two"
    together([[*ALONE[:-2], rounds, "--workdir", str(one)]], environment)
    together(readme_commands(both, config=rounds), environment)
    check_same(one, both, "pairs.jsonl")
    for stage in ("direct", "direct_2"):
        files = [dict(np.load(path / stage / "references.npz")) for path in (one, both)]
        assert files[0].keys() == files[1].keys()
        for name in files[0].keys() - {"checksum"}:
            np.testing.assert_allclose(files[1][name], files[0][name], rtol=1e-5, atol=1e-5)


@pytest.fixture
def interrupted(folder, two, environment, tmp_path) -> Iterator[tuple[list[subprocess.Popen], Path]]:
    """Two processes in the middle of a stage."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    metrics, deadline = workdir / "sft" / "metrics.jsonl", time.monotonic() + 200
    commands = readme_commands(workdir, f"--heartbeat_timeout={HEARTBEAT}")
    with log.open("w") as file:
        start = functools.partial(subprocess.Popen, cwd=ROOT, env=environment, stdout=file, stderr=file)
        processes = [start(command) for command in commands]
        try:
            while not (metrics.exists() and b'{"step": 3,' in metrics.read_bytes()):
                assert [process.poll() for process in processes] == [None, None], log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.01)
            yield processes, workdir
        finally:
            for process in processes:
                process.kill()
                process.wait()


@pytest.mark.parametrize(
    ("lost", "how"),
    [
        pytest.param(1, signal.SIGKILL, marks=pytest.mark.nightly),
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.long),
        # Its connections stay open: only the heartbeats tell.
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.long),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.nightly),
    ],
)
def test_a_lost_process_ends_the_other_and_one_process_can_continue(interrupted, alone, environment, lost, how):
    processes, workdir = interrupted
    processes[lost].send_signal(how)
    at = time.monotonic()
    code = processes[1 - lost].wait(timeout=HEARTBEAT + 60)
    assert code not in (0, None) and time.monotonic() - at < HEARTBEAT + 20
    if (lost, how) == (0, signal.SIGKILL):  # once is enough: a run goes on in another number of processes
        together([[*ALONE, str(workdir)]], environment)
        check_same(alone, workdir)


@pytest.mark.long
def test_both_stop_at_the_same_step_when_one_is_told_to(interrupted, two, environment):
    processes, workdir = interrupted
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=120) for process in processes] == [75, 75]
    together(readme_commands(workdir), environment)
    check_same(two[0], workdir)


def test_a_malformed_row_that_one_process_meets_is_told_by_all(environment, tmp_path):
    """Each reads a part of the file before the run; neither waits for the other after that."""
    rows = [{"prompt": "sort ba.", "response": "ab"}] * 5 + [{"prompt": "sort ba."}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with (tmp_path / "log").open("w+") as log:
        commands = readme_commands(tmp_path / "run", "--config.sft.data.kind=jsonl", f"--config.sft.data.path={path}")
        start = functools.partial(subprocess.Popen, cwd=ROOT, env=environment, stdout=log, stderr=log)
        processes = [start(command) for command in commands]
        try:
            codes = [process.wait(timeout=120) for process in processes]
        finally:
            for process in processes:
                process.kill()
        log.seek(0)
        told = log.read()
    line = f'prl: sft.data: {path}:6: field "response" is missing (expected the response to imitate)'
    assert codes == [2, 2] and told.count(line) == 2 and "Traceback" not in told, told


def test_functions_and_endpoints_are_asked_by_one_process_for_all(tmp_path):
    in_processes(ROOT / "tests" / "asked_once.py", tmp_path / "answers.jsonl", number=2, devices=1)


def refusal(environment: dict[str, str], *more: str) -> str:
    done = subprocess.run([*ALONE, "nowhere", *more], cwd=ROOT, env=environment, capture_output=True, text=True)
    *_, line = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("prl: ") and "Traceback" not in done.stderr, done
    return line


def test_a_cluster_that_does_not_tell_is_a_mistake_in_one_line(environment):
    assert "give --coordinator HOST:PORT --num_processes N --process_id I" in refusal(environment, "--distributed")
    line = refusal(environment, "--coordinator", "localhost:1", "--num_processes", "2", "--process_id", "2")
    assert "--process_id" in line and "2" in line
    line = refusal(environment, "--num_processes", "2", "--process_id", "0")
    assert "--coordinator HOST:PORT" in line and "--distributed" in line
