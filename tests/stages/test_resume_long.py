"""A run that is killed at many random moments over all stages ends as if it never was."""

import shutil
import signal

import pytest
from interrupted import PIECES, STAGES, STEPS, Moment, Run, check_equal, moments

pytestmark = [pytest.mark.slow, pytest.mark.long]
SEED = 12


@pytest.mark.parametrize(
    ("processes", "count", "stages"),
    [
        (2, 2, ("anchors",)),
        pytest.param(1, 20, tuple(PIECES), marks=pytest.mark.nightly),
        pytest.param(2, 20, tuple(PIECES), marks=pytest.mark.nightly),
    ],
)
def test_killed_again_and_again(tmp_path, processes, count, stages):
    """At `count` moments; then SIGTERM stops it in each of `stages`, which have no steps, and in one that trains."""
    whole = Run(tmp_path / "whole", tmp_path / "cache", processes)
    whole.finish()
    run, chosen = Run(tmp_path / "killed", tmp_path / "cache", processes), moments(SEED, count, processes=processes)
    for moment in chosen:
        run.kill(moment)
    run.finish()
    check_equal(whole, run, chosen)
    # A signal to one of the processes between two parts of a stage without steps; to all of them in one with steps.
    for stage in stages:
        run = Run(tmp_path / stage, tmp_path / "cache", processes)
        stop(whole, run, Moment(stage, 3, "piece", signal=signal.SIGTERM, process=processes - 1))
    run = Run(tmp_path / "ppo", tmp_path / "cache", processes)
    stop(whole, run, Moment("pairwise_ppo", 3, "step", signal=signal.SIGTERM))


def stop(whole: Run, run: Run, moment: Moment) -> None:
    """SIGTERM ends all processes at the same place, and what was done is kept."""
    stage = moment.stage
    shutil.copytree(whole.workdir, run.workdir)
    for name in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(run.workdir / name)
    done = run.start(moment)
    assert [one.returncode for one in done] == [75] * run.processes, [one.stderr[-3000:] for one in done]
    assert not (run.workdir / stage / "result.json").exists()
    if stage in PIECES:
        assert 3 <= len(run.pieces(stage)) < PIECES[stage]
    else:
        assert 3 <= max(map(int, run.checkpoints(stage))) < STEPS[stage]
    assert "stopped by SIGTERM" in done[0].stderr.splitlines()[-1]
    run.finish()
    check_equal(whole, run, [moment])
