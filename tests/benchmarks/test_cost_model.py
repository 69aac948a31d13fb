"""The benchmark of costs runs, and what grows grows as the arithmetic says it has to."""

import json
import subprocess
import sys

import pytest
from running import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


def test_it_runs_and_more_work_is_more_operations_and_memory(tmp_path):
    command = [sys.executable, "benchmarks/cost_model.py", "--points", "2", "--rounds", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "cost_model.json").read_text())
    assert len(found["rows"]) == 10 and len(found["growth"]) == 5
    for row in found["growth"]:
        assert row["flops"] > 1.3 and row["temporary_bytes"] > 1.05, row
    rows, length, *_ = found["growth"]
    assert rows["flops"] == 2.0 and 2.0 < length["flops"] < 2.2
    assert (tmp_path / "cost_model.md").read_text().count("\n") == 7
    assert (tmp_path / "cost_model.svg").read_text().startswith("<?xml")
