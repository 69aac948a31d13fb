"""`make test-slow`: a run that is killed at twenty random moments over all stages ends as if it never was."""

import shutil
import signal

import pytest
from interrupted import PIECES, STAGES, Moment, Run, check_equal, moments

pytestmark = pytest.mark.long
SEED, COUNT = 12, 20


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_again_and_again(tmp_path, processes):
    whole = Run(tmp_path / "whole", tmp_path / "cache", processes)
    whole.finish()
    run, chosen = Run(tmp_path / "killed", tmp_path / "cache", processes), moments(SEED, COUNT, processes=processes)
    for moment in chosen:
        run.kill(moment)
    run.finish()
    check_equal(whole, run, chosen)
    for stage in PIECES:
        stop(whole, Run(tmp_path / stage, tmp_path / "cache", processes), stage)


def stop(whole: Run, run: Run, stage: str) -> None:
    """SIGTERM to one process ends all of them between two parts of a stage without steps, which are kept."""
    shutil.copytree(whole.workdir, run.workdir)
    for name in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(run.workdir / name)
    moment = Moment(stage, 3, "piece", signal=signal.SIGTERM, process=run.processes - 1)
    done = run.start(moment)
    assert [one.returncode for one in done] == [75] * run.processes, [one.stderr[-3000:] for one in done]
    made = run.pieces(stage)
    assert 3 <= len(made) < PIECES[stage] and not (run.workdir / stage / "result.json").exists()
    assert "stopped by SIGTERM" in done[0].stderr.splitlines()[-1]
    run.finish()
    check_equal(whole, run, [moment])
