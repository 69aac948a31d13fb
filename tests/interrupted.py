"""Runs of `prl run` that are killed at chosen moments, in one or several processes, and what they leave behind."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from running import ROOT, free_port, read_rows

CONFIG = "tests/configs/micro.py:short"
STEPS = {"sft": 16, "bt": 4, "genrm": 16, "pairwise_ppo": 14}  # of the stages that train
PIECES = {"anchors": 12, "evaluation": 23}
STAGES = ("sft", "bt", "genrm", "anchors", "pairwise_ppo", "evaluation")
TRAINED = ("sft", "bt", "genrm", "pairwise_ppo")
SAVE_EVERY = 2
# Sets the size that a file may have, as a full disk would, and becomes the command.
LIMITED = "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); "
LIMITED += "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a process ends: in a stage, after a step was computed, written to the metrics or given to a save (place
    `step`, `write`, `save`), after a `piece` of a stage without steps, or at the `start` of the stage (step 0);
    `delay` seconds later.

    `process`: which of several it happens to; None: to all.
    """

    stage: str
    step: int
    place: str
    delay: float = 0.0
    signal: int = signal.SIGKILL
    process: int | None = None


def moments(seed: int, count: int, *, processes: int = 1) -> list[Moment]:
    """Random moments in the order of a run: one in every stage at least, or in `count` of them where there are more."""
    draw, order = random.Random(seed), ("start", "piece", "step", "write", "save")
    possible = [(index, 0, "start") for index in range(len(STAGES))]
    possible += [(STAGES.index(stage), n, "piece") for stage, total in PIECES.items() for n in range(1, total)]
    for stage, total in STEPS.items():
        index = STAGES.index(stage)
        possible += [(index, n, place) for n in range(1, total + 1) for place in ("step", "write")]
        possible += [(index, n, "save") for n in range(SAVE_EVERY, total + 1, SAVE_EVERY)]
    chosen = [draw.choice([moment for moment in possible if moment[0] == index]) for index in range(len(STAGES))]
    chosen = draw.sample(chosen, min(count, len(chosen)))
    chosen += draw.sample([moment for moment in possible if moment not in chosen], count - len(chosen))
    chosen.sort(key=lambda moment: (*moment[:2], order.index(moment[2])))
    # A save goes on for some milliseconds in the background, a stage without steps for longer.
    delays = {"save": 0.01, "start": 0.3}
    who = [None, None, 0, 1] if processes > 1 else [None]
    return [
        Moment(STAGES[i], n, place, delay=draw.uniform(0, delays.get(place, 0.0)), process=draw.choice(who))
        for i, n, place in chosen
    ]


class Run:
    """A run in a workdir; `stamps` remembers the files of stages that have finished."""

    def __init__(self, workdir: Path, cache: Path, processes: int = 1):
        self.workdir, self.processes, self.stamps = workdir, processes, {}
        # All processes share what they compile, and compile without optimising: the same program each time.
        options = {
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        }
        self.environment = {**os.environ, **options}

    def start(self, moment: Moment | None = None, *, file_size: int | None = None) -> list[subprocess.CompletedProcess]:
        """Runs the command in every process until all have ended."""
        limit = () if file_size is None else ("-c", LIMITED, str(file_size))
        arguments = ["run", "--config", CONFIG, "--workdir", str(self.workdir)]
        if self.processes > 1:
            arguments += ["--coordinator", f"localhost:{free_port()}", "--num_processes", str(self.processes)]
            arguments += ["--heartbeat_timeout", "10"]
        started = []
        for index in range(self.processes):
            mine = moment is not None and moment.process in (None, index)
            told = json.dumps(dataclasses.asdict(moment) if mine else None)
            command = [sys.executable, *limit, "tests/killed_at.py", told, *arguments]
            command += ["--process_id", str(index)] if self.processes > 1 else []
            # Not pipes: a process that nobody listens to would stop when its pipe is full.
            files = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
            process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=files[0], stderr=files[1])
            started.append((process, command, *files))
        done = []
        try:
            for process, command, *files in started:
                code = process.wait(180)
                texts = [(file.seek(0), file.read())[1] for file in files]
                done.append(subprocess.CompletedProcess(command, code, *texts))
        finally:
            for process, _, *files in started:
                process.kill()
                for file in files:
                    file.close()
        self._check_finished()
        return done

    def kill(self, moment: Moment) -> None:
        """Runs until the moment kills it. Those that it doesn't kill end by themselves, not as if all were well."""
        done = self.start(moment)
        killed = [d for i, d in enumerate(done) if moment.process in (None, i)]
        # One of them at least: where the first is quicker, JAX may end the others for their lost peer.
        assert any(d.returncode == -moment.signal for d in killed), f"{moment}: {[d.stderr[-3000:] for d in killed]}"
        assert all(d.returncode for d in done), f"{moment}: {[d.returncode for d in done]}"
        if self.processes == 1:
            assert "Traceback" not in done[0].stderr, f"{moment}: {done[0].stderr}"

    def finish(self) -> None:
        """Runs to the end."""
        for done in self.start():
            assert done.returncode == 0, done.stderr

    def pieces(self, stage: str) -> dict[str, int]:
        """Files that a stage without steps has kept, and when they were written."""
        return {path.name: path.stat().st_mtime_ns for path in (self.workdir / stage / "pieces").glob("*.json")}

    def checkpoints(self, stage: str) -> set[str]:
        return {path.name for path in (self.workdir / stage / "checkpoints").iterdir() if path.name.isdigit()}

    def _check_finished(self) -> None:
        """No file of a stage that was finished before has changed."""
        for path, stamp in self.stamps.items():
            assert path.stat().st_mtime_ns == stamp, f"{path} was written again"
        for name in STAGES:
            if (self.workdir / name / "result.json").exists():
                files = [path for path in (self.workdir / name).rglob("*") if path.is_file()]
                self.stamps |= {path: path.stat().st_mtime_ns for path in files}


def check_equal(whole: Run, other: Run, history: Sequence[object]) -> None:
    """Two runs have left the same: metrics, samples, results, parameters; `history` is told where they have not."""
    from prl_jax.artifacts.models import load_model
    from prl_jax.sharding import make_mesh
    from prl_jax.tree import flatten

    told = "".join(f"\n  {moment}" for moment in history)
    names = [f"{stage}/{file}.jsonl" for stage in TRAINED for file in ("metrics", "samples")]
    for name in (*names, "evaluation/samples.jsonl", "evaluation/wins.jsonl", "anchors/anchors.jsonl", "summary.json"):
        one, two = ((run.workdir / name).read_bytes() for run in (whole, other))
        assert len(one) > 100 and one == two, f"{name} differs after{told}"
        if name.endswith("metrics.jsonl"):
            steps = [json.loads(line)["step"] for line in one.splitlines()]
            timed = read_rows((other.workdir / name).with_name("timings.jsonl"))
            assert len(set(steps)) == len(steps) and [row["step"] for row in timed] == [n for n in steps if n], told
    for stage in STAGES:
        one, two = (json.loads((run.workdir / stage / "result.json").read_text()) for run in (whole, other))
        assert one.pop("seconds") > 0 and two.pop("seconds") > 0
        assert one == two and one["metrics"], f"{stage}/result.json differs after{told}"
    for stage in TRAINED:
        one, two = (flatten(load_model(run.workdir / stage, make_mesh())[1]) for run in (whole, other))
        assert one.keys() == two.keys()
        for name, value in one.items():
            message = f"{stage}: {name} differs after{told}"
            np.testing.assert_array_equal(jax.device_get(value), jax.device_get(two[name]), err_msg=message)
        assert whole.checkpoints(stage) == other.checkpoints(stage)
        result = json.loads((whole.workdir / stage / "result.json").read_text())["metrics"]
        assert whole.checkpoints(stage) == {str(int(result.get("best_step", STEPS[stage])))}
