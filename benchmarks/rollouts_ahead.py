"""What is spared by sampling one step ahead where the judge answers over a network, and what does it cost in wins?

    .venv/bin/python benchmarks/rollouts_ahead.py --workdir runs/ahead --out benchmarks/results/rollouts_ahead.json

A policy of the built-in tasks learns by PPO with a critic on the exact utility as a score, which a function gives that
waits first, as an endpoint would have it wait. Each seed runs with `rollouts_ahead` off and on, and on without the
correction (`importance_cap=0`). Seconds are the median of a step's, from `timings.jsonl`; wins are the exact judge's
against SFT. On one machine, what is spared is the waiting alone: devices sample meanwhile. Where the judge does not
wait, there is nothing to spare, which the rows with 0 seconds show.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import write_result

FILES = {
    "slow_judge.py": """
import os, time
from prl_jax.data.gold import utility
from prl_jax.text.chat import prompt_text

def score(prompts, responses):
    time.sleep(float(os.environ["WAIT"]))
    return [4.0 * utility(prompt_text(prompt), text) for prompt, text in zip(prompts, responses)]
""",
    "config.py": """
from pathlib import Path
from prl_jax.recipes.built_in import FULL, LENGTHS, demonstrated
from prl_jax.stages import config as c

def get_config(arguments):
    ahead, cap, steps = arguments.split(",")
    size = FULL._replace(sft=400)
    policy = c.online(
        "ppo", judge="slow", watch="", prompts=c.source(limit=2048), prompts_per_step=256, duration=f"{steps} steps",
        rollouts_ahead=ahead == "True", importance_cap=float(cap), save_every="100%",
        optimizer=dict(learning_rate=3e-4, schedule="linear"),
        evaluation=dict(every="0 steps", prompts=c.source(split="validation", limit=256), judge="gold"),
    )
    stages = dict(sft=demonstrated(size), policy=policy)
    arms = dict(policy=dict(title="PPO", judge="slow"))
    stages["evaluation"] = c.evaluation(prompts=c.source(split="test", limit=512), arms=arms)
    judge = c.judge("python", path=str(Path(__file__).with_name("slow_judge.py")) + ":score", gives="scores")
    return c.build(stages, model=dict(layers=3), judges=dict(slow=judge))
""",
}
WAYS = {"off": ("False", "2"), "ahead": ("True", "2"), "ahead, uncorrected": ("True", "0")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--waits", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (args.workdir / name).write_text(text.lstrip())
    rows = []
    for seed in args.seeds:
        for wait in args.waits:
            for way, words in WAYS.items():
                rows.append({"seed": seed, "wait": wait, "way": way, **one_run(args, seed, wait, words)})
                print(json.dumps(rows[-1]), flush=True)
    if args.out:
        write_result(args.out, rows)


def one_run(args: argparse.Namespace, seed: int, wait: float, words: tuple[str, str]) -> dict[str, Any]:
    """Runs a way of one seed, in a folder of its own, and reads what came of it."""
    folder = args.workdir / f"seed{seed}_wait{wait}_{'_'.join(words)}"
    config = f"{args.workdir / 'config.py'}:{','.join(words)},{args.steps}"
    command = [sys.executable, "-m", "prl_jax", "run", "--config", config, "--workdir", str(folder)]
    env = {**os.environ, "WAIT": str(wait)}
    subprocess.run([*command, f"--config.seed={seed}", f"--config.gold.seed={seed}"], env=env, check=True)
    seconds = [row["seconds"] for row in read_rows(folder / "policy" / "timings.jsonl")]
    metrics = read_rows(folder / "policy" / "metrics.jsonl")
    arm = json.loads((folder / "summary.json").read_text())["arms"][-1]
    found = {"median_step_seconds": statistics.median(seconds), "win_rate": arm["win_rate"], "kl": arm["kl"]}
    for name in ("staleness", "importance", "importance_capped", "sampler_kl"):
        values = [row[name] for row in metrics if name in row]
        if values:
            found[name] = statistics.fmean(values)
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
