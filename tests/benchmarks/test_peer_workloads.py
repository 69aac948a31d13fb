"""The workloads that are timed still run, and a comparison lets its contenders take turns."""

import importlib
import math
import sys
import time
from pathlib import Path

import jax
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CONTENDER = """
import json, sys
log, own, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
print(json.dumps({"ready": True, "first_call_s": 0.5, "first_result": {"loss": 1.0 + seconds, own: 1.0}}), flush=True)
for line in sys.stdin:
    open(log, "a").write(own)
    print(json.dumps({"s": seconds, "cpu_s": 2.0 * seconds}), flush=True)
"""


@pytest.fixture(autouse=True)
def imported(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_every_workload_runs_and_repeats():
    shapes, workloads = importlib.import_module("workload_shapes"), importlib.import_module("workloads")
    assert tuple(workloads.WORKLOADS) == importlib.import_module("peer_workloads").NAMES
    size = shapes.SIZES["micro"]
    world = workloads.World(size)
    for name, workload in workloads.WORKLOADS.items():
        with jax.set_mesh(world.mesh):
            step = workload(world)
            first, second = step(), step()
        assert first and all(map(math.isfinite, [*first.values(), *second.values()])), (name, first, second)
        # Training and sampling go on; the log-probabilities of W6 are computed again.
        assert (first == second) == (name == "W6"), (name, first, second)
        unit, count = shapes.units(name, size)
        assert unit.endswith("/s") and count > 0 and (shapes.workload_flops(name, size) or name == "W6")


def test_contenders_take_turns_and_rounds_give_the_ratios(tmp_path, monkeypatch):
    script = importlib.import_module("peer_workloads")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    command = [sys.executable, "-c", CONTENDER, str(tmp_path / "log")]
    found = script.alternate({"other": [*command, "A", "2.0"], "this": [*command, "B", "1.0"]}, 3)
    assert (tmp_path / "log").read_text() == "ABABAB"
    assert found["ratios_of_seconds"] == found["ratios_of_cpu_seconds"] == [0.5] * 3
    assert found["median_seconds"] == {"other": 2.0, "this": 1.0} and found["median_ratio_of_cpu_seconds"] == 0.5
    assert found["largest_difference_of_first_results"] == pytest.approx(1 / 3)


def test_a_contender_that_fails_is_named():
    script = importlib.import_module("peer_workloads")
    with pytest.raises(SystemExit, match="exit code 3"):
        script.alternate({"this": [sys.executable, "-c", "raise SystemExit(3)"]}, 1)


def test_a_checkout_is_run_by_its_own_script(tmp_path):
    script = importlib.import_module("peer_workloads")
    args = type("Arguments", (), dict(size="micro", warmup=1))
    assert script.command(tmp_path, "W1", args)[1:4] == [script.__file__, "--package", str(tmp_path)]
    own = tmp_path / "benchmarks" / "peer_workloads.py"
    own.parent.mkdir()
    own.touch()
    assert script.command(tmp_path, "W1", args)[1:3] == [str(own), "--workload"]
