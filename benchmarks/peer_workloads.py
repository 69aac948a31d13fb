"""How fast is what `prl run` executes, and is it slower than in another checkout?

    .venv/bin/python benchmarks/peer_workloads.py --out benchmarks/results/peer_workloads.json
    .venv/bin/python benchmarks/peer_workloads.py --compare ../before --rounds 9

W1 step of SFT, L1 steps of SFT through the loop and the data pipeline, W2 step of a Bradley-Terry model, W2p of a
generative judge, W3 generation, W4 PPO update, W5 PPO iteration, W5p the same with a pairwise judge, W6 log-probs in
chunks (`workload_shapes.py` has the sizes). Each contender is a process of its own, built and warmed up before the
first round. With `--compare` the other checkout's process and this one's take turns (A B A B ...), and what counts is
the ratio of each round, this checkout's seconds to the other's: below 1 this one is faster. The speed of a machine
drifts by 10 to 50 % over minutes, so that times of two runs say little about each other.

The other checkout runs its own copy of this script. One from before there was any, as 98a61d9, is run by this one with
`workloads_98a61d9.py`, which calls that commit's functions and has to stay as it is.

Other programs can take part: with `--serve` the script builds one workload, writes `{"ready": true}`, repeats it each
time that it reads "go", answers with `{"s": seconds}`, and writes a summary when it reads anything else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workload_shapes import SIZES, Step, units, workload_flops

HERE = Path(__file__).resolve().parent
NAMES = ("W1", "L1", "W2", "W2p", "W3", "W4", "W5", "W5p", "W6")
REST = 0.3  # seconds before each repetition, in which the threads of the process before go to sleep


def main() -> None:
    args = arguments()
    if args.serve:
        return serve(args)
    from common import write_result  # it imports JAX, which a contender must not do before its package is chosen

    rows = []
    for name in args.workload.split(","):
        contenders = {"other": args.compare} if args.compare else {}
        commands = {who: command(path, name, args) for who, path in {**contenders, "this": args.package}.items()}
        load = os.getloadavg()[0]
        row = {"workload": name, "size": args.size, "load_average": round(load, 1), **alternate(commands, args.rounds)}
        row["revisions"] = {who: revision(path) for who, path in {**contenders, "this": args.package}.items()}
        rows.append(row)
        print(json.dumps(row), flush=True)
    if args.out:
        write_result(args.out, rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default=",".join(NAMES), help="one or more of them, with commas")
    parser.add_argument("--size", default="S", choices=SIZES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2, help="repetitions before the first round")
    parser.add_argument("--compare", type=Path, metavar="CHECKOUT", help="another checkout of the project")
    parser.add_argument(
        "--package", type=Path, default=HERE.parent, metavar="CHECKOUT", help="the one to run, this one"
    )
    parser.add_argument("--out", type=Path, help="file for the result")
    parser.add_argument("--serve", action="store_true", help="takes part in a comparison as one contender")
    return parser.parse_args()


def command(checkout: Path, name: str, args: argparse.Namespace) -> list[str]:
    """The command line of a contender: with the checkout's own script, or with this one where it has none."""
    own = checkout.resolve() / "benchmarks" / Path(__file__).name
    script = [str(own)] if own.is_file() else [__file__, "--package", str(checkout)]
    options = ["--workload", name, "--size", args.size, "--warmup", str(args.warmup), "--serve"]
    return [sys.executable, *script, *options]


def alternate(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, Any]:
    """Lets the contenders take turns; returns the seconds of each and, of two, the ratios of each round.

    Beside the seconds that pass there are those that the process kept processors busy, which other programs disturb
    less; they do not show what overlaps.
    """
    times: dict[str, list[dict[str, float]]] = {who: [] for who in commands}
    with contenders(commands) as processes:
        first = {who: reply(process) for who, process in processes.items()}
        for _ in range(rounds):
            for who, process in processes.items():
                time.sleep(REST)
                process.stdin.write("go\n")
                process.stdin.flush()
                times[who].append(reply(process))
    found: dict[str, Any] = {"first_call_s": {who: round(answer["first_call_s"], 2) for who, answer in first.items()}}
    for kind, key in (("seconds", "s"), ("cpu_seconds", "cpu_s")):
        series = {who: [answer[key] for answer in answers] for who, answers in times.items()}
        found |= {kind: series, f"median_{kind}": {who: statistics.median(x) for who, x in series.items()}}
        if len(commands) == 2:
            ratios = [round(this / other, 4) for other, this in zip(*series.values(), strict=True)]
            found |= {f"ratios_of_{kind}": ratios, f"median_ratio_of_{kind}": statistics.median(ratios)}
    if len(commands) == 2:
        found["largest_difference_of_first_results"] = difference(
            *(answer["first_result"] for answer in first.values())
        )
    return found


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """The largest relative difference between the numbers that both have."""
    common = first.keys() & second.keys()
    return max(abs(first[k] - second[k]) / max(abs(first[k]), abs(second[k]), 1e-12) for k in common)


@contextmanager
def contenders(commands: Mapping[str, Sequence[str]]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The processes, one for each command, which end here at the latest."""
    pipe = subprocess.PIPE
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        for who, line in commands.items():
            processes[who] = subprocess.Popen(line, stdin=pipe, stdout=pipe, text=True)
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


def reply(process: subprocess.Popen[str]) -> dict[str, Any]:
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a contender has ended with exit code {process.wait()}: {' '.join(map(str, process.args))}")
    return json.loads(line)


def revision(checkout: Path) -> str:
    """The commit of a checkout; "+" where files differ from it."""
    git = ["git", "-C", str(checkout)]
    found = subprocess.run([*git, "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def serve(args: argparse.Namespace) -> None:
    """One contender. What libraries print goes to standard error: standard output has the answers alone."""
    set_up(args.package)  # it may start the process anew, which then has its standard output still
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    tell = lambda **values: answers.write(json.dumps(values) + "\n")  # noqa: E731
    with built(args.package, args.workload, args.size) as step:
        start = time.perf_counter()
        first_result = step()
        first_call = time.perf_counter() - start
        for _ in range(args.warmup - 1):
            step()
        tell(ready=True, first_call_s=first_call, first_result=first_result)
        times = []
        for line in sys.stdin:
            if line.strip() != "go":
                break
            start, busy = time.perf_counter(), time.process_time()
            step()
            times.append(time.perf_counter() - start)
            tell(s=round(times[-1], 6), cpu_s=round(time.process_time() - busy, 6))
    if times:
        tell(**summary(args.workload, args.size, times), first_call_s=first_call)


def set_up(package: Path) -> None:
    """Makes the process what that of `prl run` is, with the package of a checkout."""
    sys.path.insert(0, str(package.resolve()))
    from prl_jax import process_setup

    if hasattr(process_setup, "in_huge_pages"):  # earlier checkouts have no such thing
        process_setup.in_huge_pages()
    process_setup.quiet()
    process_setup.keep_heap()


@contextmanager
def built(package: Path, name: str, size: str) -> Iterator[Step]:
    """A workload of a checkout, as the step to repeat, in a process that is set up for it."""
    earlier = (package / "prl_jax" / "stages" / "artifacts.py").is_file()
    workloads = importlib.import_module("workloads_98a61d9" if earlier else "workloads")
    import jax

    world = workloads.World(SIZES[size])
    with jax.set_mesh(world.mesh):
        yield workloads.WORKLOADS[name](world)


def summary(name: str, size: str, times: Sequence[float]) -> dict[str, Any]:
    """Returns the last words of a contender: how much it makes in a second."""
    unit, count = units(name, SIZES[size])
    median, flops = statistics.median(times), workload_flops(name, SIZES[size])
    return {
        "impl": "prl_jax",
        "workload": name,
        "size": size,
        "unit": unit,
        "median": count / median,
        "min": count / max(times),
        "max": count / min(times),
        "seconds": list(times),
        "seconds_median": median,
        "gflops_per_s": flops and flops / median / 1e9,
    }


if __name__ == "__main__":
    main()
