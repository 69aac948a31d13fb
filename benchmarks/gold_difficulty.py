"""How hard are the built-in tasks for the quickstart's models? SFT and both judges at each difficulty.

    .venv/bin/python benchmarks/gold_difficulty.py --out benchmarks/results/gold_difficulty.json

Prints one JSON line a difficulty and writes all of them to --out. Every difficulty gets the same share (--fraction) of
the quickstart's steps, so the table says what the same steps buy, not what is possible.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from common import experiment, write_result

from prl_jax.commands.run import run_stages
from prl_jax.process_setup import keep_heap

# Bytes of the longest prompt and response at each difficulty, with their structural tokens.
LENGTHS = {0: (14, 10), 1: (20, 18), 2: (26, 26), 3: (36, 36)}


def measure(difficulty: int, fraction: float, workdir: Path) -> dict:
    """Runs SFT, both judges and the evaluation at one difficulty."""
    config = experiment("quickstart").get_config()
    prompt, response = LENGTHS[difficulty]
    with config.unlocked():
        config.stages = ("sft", "bt", "genrm", "evaluation")
        config.gold.difficulties = (difficulty,)
        config.evaluation.arms = {}
        for stage in ("sft", "bt"):
            config[stage].max_prompt, config[stage].max_response = prompt, response
        for stage in ("sft", "bt", "genrm"):
            steps = int(config[stage].duration.split()[0])
            config[stage].duration = f"{round(fraction * steps)} steps"
        config.genrm.max_length = prompt + 2 * response + 6
    start = time.monotonic()
    run_stages(config, workdir)
    summary = json.loads((workdir / "summary.json").read_text())
    arms = {arm["name"]: arm for arm in summary["arms"]}
    judges = {
        name: {key: judge[key] for key in ("accuracy", "accuracy_vs_truth", "ece", "longer_wins", "bayes_accuracy")}
        for name, judge in summary["judges"].items()
    }
    return {
        "difficulty": difficulty,
        "fraction": fraction,
        "sft_utility_sampled": arms["sft, sampled"]["utility"],
        "sft_utility_greedy": arms["sft, greedy"]["utility"],
        "judges": judges,
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--difficulties", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--fraction", type=float, default=1.0)
    args = parser.parse_args()
    keep_heap()
    rows = []
    for difficulty in args.difficulties:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(difficulty, args.fraction, Path(folder) / "run"))
        print(json.dumps(rows[-1]), flush=True)
        write_result(args.out, rows)


if __name__ == "__main__":
    main()
