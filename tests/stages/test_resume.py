"""Killed at any moment, a run continues with the same command and ends like one that was never interrupted."""

import json
import random
import re
import signal

import pytest
from interrupted import PIECES, SAVE_EVERY, STAGES, STEPS, Moment, Run, check_equal, moments
from running import read_rows

pytestmark = pytest.mark.slow
SEED = 5


def three_moments() -> list[Moment]:
    """Drawn by the seed, one of each kind: before a stage has a checkpoint, between two, and inside a save."""
    draw = random.Random(SEED)
    early, between, saving = draw.sample(("sft", "genrm", "pairwise_ppo"), 3)
    chosen = [
        Moment(early, 1, draw.choice(("step", "write"))),
        Moment(between, draw.randrange(SAVE_EVERY + 1, STEPS[between], SAVE_EVERY), "write"),
        Moment(saving, draw.randrange(SAVE_EVERY, STEPS[saving], SAVE_EVERY), "save", delay=draw.uniform(0, 0.02)),
    ]
    return sorted(chosen, key=lambda moment: STAGES.index(moment.stage))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("runs")
    run = Run(folder / "whole", folder / "cache")
    done = run.start()[0]
    assert done.returncode == 0, done.stderr
    # Nothing but what is expected, progress, the tables and the report's path, from Python or from below it.
    assert {line.split()[0] for line in done.stderr.splitlines()} == {"Expected", "together", *STAGES}, done.stderr
    assert done.stdout.splitlines()[-1] == f"Report: {run.workdir / 'report.html'}" and "WARNING" not in done.stdout
    return run


@pytest.fixture(scope="module")
def interrupted(uninterrupted) -> tuple[Run, list[object]]:
    """Killed at three moments, in anchors and in evaluation, stopped once, once out of disk space, once with a damaged
    checkpoint; then left to finish. Needs what `uninterrupted` has compiled."""
    run = Run(uninterrupted.workdir.parent / "killed", uninterrupted.workdir.parent / "cache")
    history: list[object] = []
    events = [(STAGES.index(moment.stage), run.kill, moment) for moment in three_moments()]
    events += [(STAGES.index("bt"), stop, run), (STAGES.index("genrm") + 0.5, full_disk, run)]
    events += [(STAGES.index("anchors"), kill_between_pieces, run)]
    for _, do, what in sorted(events, key=lambda event: event[0]):
        history.append(what if do == run.kill else do.__name__)
        do(what)
    run.kill(Moment("evaluation", PIECES["evaluation"] - 1, "piece"))
    run.finish()
    assert run.pieces("anchors") == run.pieces("evaluation") == {}
    return run, history


def kill_between_pieces(run: Run) -> None:
    """What a stage without steps has made is made once."""
    run.kill(Moment("anchors", PIECES["anchors"] - 2, "piece"))
    made = run.pieces("anchors")
    assert len(made) == PIECES["anchors"] - 2
    run.kill(Moment("anchors", PIECES["anchors"] - 1, "piece"))
    later = run.pieces("anchors")
    assert len(later) == PIECES["anchors"] - 1 and made.items() < later.items()


def full_disk(run: Run) -> None:
    """A disk that takes no more is told in one line, and costs the steps since the last checkpoint at most."""
    before = run.checkpoints("genrm")
    done = run.start(file_size=20_000)[0]
    problem = [line for line in done.stderr.splitlines() if line.startswith("prl: ")]
    assert "Traceback" not in done.stderr
    assert done.returncode == 2 and len(problem) == 1, done.stderr
    assert "genrm/checkpoints: cannot save step" in problem[0] and "too large" in problem[0]
    assert run.checkpoints("genrm") == before


def stop(run: Run) -> None:
    """SIGTERM: the step is finished and saved. A checkpoint that is damaged after that costs the steps since the one
    before."""
    done = run.start(Moment("bt", 3, "step", signal=signal.SIGTERM))[0]
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 75, done.stderr
    assert last == "prl: stopped by SIGTERM: bt is saved at step 3 of 4; the same command continues"
    assert run.checkpoints("bt") == {"2", "3"}
    for path in (run.workdir / "bt" / "checkpoints" / "3").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    done = run.start(Moment("bt", 4, "write"))[0]
    told = [line for line in done.stderr.splitlines() if line.startswith("prl: ")]
    assert len(told) == 1 and re.fullmatch(
        r"prl: .*bt/checkpoints/3: the checkpoint is damaged .*; step 2 is used .*", told[0]
    )


def test_an_interrupted_run_ends_like_an_uninterrupted_one(uninterrupted, interrupted):
    run, history = interrupted
    check_equal(uninterrupted, run, history)


@pytest.mark.parametrize(
    ("stage", "metric", "pick"), [("genrm", "validation_loss", min), ("pairwise_ppo", "win_rate", max)]
)
def test_its_results_are_those_of_the_best_evaluations(uninterrupted, stage, metric, pick):
    rows = read_rows(uninterrupted.workdir / stage / "metrics.jsonl")
    values = {row["step"]: row[metric] for row in rows if metric in row and row["step"]}
    best = json.loads((uninterrupted.workdir / stage / "result.json").read_text())["metrics"]["best_step"]
    assert len(set(values.values())) > 1 and values[best] == pick(values.values())


def test_the_moments_are_of_each_kind():
    chosen = three_moments()
    assert len({moment.stage for moment in chosen}) == 3 and {"save"} < {moment.place for moment in chosen}
    drawn = moments(12, 20)
    assert len(drawn) == 20 and {m.place for m in drawn} == {"start", "piece", "step", "write", "save"}
    assert drawn == moments(12, 20) != moments(1, 20)
