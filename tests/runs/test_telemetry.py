"""Times of steps, profiles, and who writes."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from running import MICRO, read_rows, refused, says

from prl_jax.errors import UserError
from prl_jax.runs import telemetry as module
from prl_jax.runs.context import StageContext
from prl_jax.runs.telemetry import profile_steps, spread, telemetry
from prl_jax.runs.workdir import Workdir


@pytest.fixture
def context(tmp_path):
    config = ConfigDict({"logging": {"progress": True}, "profile": {"steps": "2-3"}})
    return StageContext("sft", config, Workdir(tmp_path / "run", config), jax.make_mesh((1,), ("data",)))


def test_steps_of_a_profile():
    assert profile_steps("") == range(0)
    assert profile_steps("10") == range(10, 11)
    assert profile_steps("10-12") == range(10, 13)
    for text in ("0", "0-3", "12-10", "10-", "-3", "a", "1-2-3", "1,2", " 1"):
        with pytest.raises(UserError, match="profile.steps=.*such as '10-12'"):
            profile_steps(text)


def test_a_mistaken_profile_is_refused_before_anything_runs(tmp_path):
    line = refused("run", "--config", MICRO, "--workdir", tmp_path / "run", "--config.profile.steps=4-2")
    assert says(line, "profile.steps='4-2'", "10-12") and not (tmp_path / "run").exists()


def step(state, n):
    return state + 1, {"loss": state}


def test_the_window_is_traced_and_told(context, capfd):
    state = jax.numpy.zeros(())
    with telemetry(context, first=0, total=4) as seen:
        profiled = seen.profiled(step)
        for n in range(1, 5):
            traced = list(context.directory.rglob("*.xplane.pb"))
            assert bool(traced) == (n > 3)
            state, _ = profiled(state, n)
    assert len(list(context.directory.rglob("*.xplane.pb"))) == 1 and state == 4
    # XLA itself may warn before, which the command line silences.
    assert capfd.readouterr().err.splitlines()[-1] == f"prl: profile of steps 2-3: {context.directory}/profile"


@pytest.mark.parametrize("first", [2, 0])
def test_a_stage_that_ends_or_starts_inside_the_window_is_traced(context, first, capfd):
    with telemetry(context, first=first, total=first + 2) as seen:
        profiled = seen.profiled(step)
        for n in (first + 1, first + 2):
            profiled(0, n)
    assert len(list(context.directory.rglob("*.xplane.pb"))) == 1 and "prl: profile" in capfd.readouterr().err


def test_without_a_window_the_step_stays_as_it_is(context):
    context.config.profile.steps = ""
    with telemetry(context, first=0, total=2) as seen:
        assert seen.profiled(step) is step


def test_seconds_of_a_step_have_a_file_of_their_own(context):
    with telemetry(context, first=0, total=4) as seen:
        for n in (1, 2, 4):
            seen.timed(n, n / 8, n / 16)
    assert read_rows(context.directory / "timings.jsonl") == [{"step": n, "seconds": n / 8} for n in (1, 2, 4)]
    with telemetry(context, first=2, total=4) as seen:
        seen.timed(4, 1.0, 0.5)
    rows = read_rows(context.directory / "timings.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 4] and rows[2]["seconds"] == 1.0


def test_several_processes_tell_the_spread_and_who_is_slowest(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    gathered = np.array([[4.0, 1.0], [4.25, 3.0], [4.5, 2.0]], np.float32)
    monkeypatch.setattr(module.multihost_utils, "process_allgather", lambda mine: gathered)
    assert spread(4.0, 1.0) == {
        "seconds_min": 4.0, "seconds_mean": 4.25, "seconds_max": 4.5,
        "own_min": 1.0, "own_mean": 2.0, "own_max": 3.0, "slowest": 1,
    }  # fmt: skip


def test_a_metric_that_leaves_its_range_is_told_once_by_a_run_that_is_interrupted_too(context, capfd):
    """Whatever the runs have written and said together."""

    def train(first, last):
        with telemetry(context, first=first, total=6) as seen:
            seen.write(0, {"win_rate": 0.5}) if not first else None
            for n in range(first + 1, last + 1):
                seen.write(n, {"response_length": 4.1 * n, "identical_to_opponent": float(n > 1)})
        rows = read_rows(context.directory / "metrics.jsonl")
        return rows, [line for line in capfd.readouterr().err.splitlines() if "warning" in line]

    whole, said = train(0, 6)
    assert said == [
        "sft              warning: From step 2 on more than half of the responses are identical to their opponent: "
        "the reward says nothing about them.",
        "sft              warning: From step 3 on the responses are more than twice as long as at the first step, or "
        "less than half as long: see whether the judge pays for their length.",
    ]
    assert whole[0] == {"step": 0, "win_rate": 0.5}
    assert [row["warnings"] for row in whole[1:]] == [0, 0, 0, 1, 2, 2]
    first, later = train(0, 4), train(4, 6)
    assert later[0] == whole and first[1] + later[1] == said


def test_of_several_processes_one_writes_and_speaks(context, monkeypatch, capfd):
    monkeypatch.setattr(module, "is_leader", lambda: False)
    monkeypatch.setattr("prl_jax.runs.context.is_leader", lambda: False)
    with telemetry(context, first=0, total=1) as seen:
        assert seen.profiled(step) is step
        seen.progress.update(1, {"loss": 1.0})
        seen.write(1, {"loss": 1.0})
        seen.metrics.flush()
        seen.samples.write([{"step": 1}])
        seen.timed(1, 1.0, 1.0)
    assert not context.directory.exists() and capfd.readouterr() == ("", "")
