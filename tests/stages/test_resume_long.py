"""`make test-slow`: a run that is killed at twenty random moments over all stages ends as if it never was."""

import pytest
from interrupted import Run, check_equal, has_processes, moments

pytestmark = pytest.mark.long
SEED, COUNT = 12, 20


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_again_and_again(tmp_path, processes):
    if processes > 1 and not has_processes():
        pytest.skip("the command line starts one process only")
    whole = Run(tmp_path / "whole", tmp_path / "cache", processes)
    whole.finish()
    run, chosen = Run(tmp_path / "killed", tmp_path / "cache", processes), moments(SEED, COUNT, processes=processes)
    for moment in chosen:
        run.kill(moment)
    run.finish()
    check_equal(whole, run, chosen)
