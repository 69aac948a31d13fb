"""Over-optimisation: where do proxy reward and exact utility part, and do ensembles of reward models put it off?

    .venv/bin/python benchmarks/overoptimisation.py --workdir runs/overoptimisation --out benchmarks/results

Runs `prl run --config experiments/overoptimisation.py` once a seed (SFT, five Bradley-Terry models on the same pairs
with 25 % label noise, PPO on one and on ensembles of all), then samples many responses to each test prompt from the SFT
policy with `prl generate` and lets one judge or an ensemble choose among n of them. Writes `overoptimisation.json` and
the figure `overoptimisation.svg` to --out after every seed; what is finished is not done again by the same command.

Sources: Gao, Schulman and Hilton 2022 (arXiv 2210.10760), Coste et al. 2023 (arXiv 2310.02743).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import experiment, write_result
from jaxtyping import Float
from ml_collections import ConfigDict
from overoptimisation_figure import draw

from prl_jax.artifacts.models import load_judge
from prl_jax.data.gold import utility
from prl_jax.data.gold.builder import gold_records
from prl_jax.data.jsonl import JsonLines, write_jsonl
from prl_jax.judges import Combination, ScoringJudge
from prl_jax.reporting.means import t_interval
from prl_jax.runs.context import gold_arguments
from prl_jax.sharding import make_mesh
from prl_jax.text.chat import Turn

CONFIG = "overoptimisation"
PRL = [sys.executable, "-m", "prl_jax"]
SIZES = (1, 2, 4, 8, 16, 32, 64)  # n of best-of-n
BLOCK = 5  # steps of PPO that become one row

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=128, help="test prompts of best-of-n")
    parser.add_argument("--samples", type=int, default=128, help="responses to each of them")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for seed in args.seeds:
        folder = args.workdir / f"seed{seed}"
        config = ["--config", f"experiments/{CONFIG}.py", f"--config.seed={seed}", f"--config.gold.seed={seed}"]
        subprocess.run([*PRL, "run", *config, "--workdir", str(folder)], check=True)
        found = [*ppo_rows(folder), *best_of_n_rows(folder, args.prompts, args.samples, seed), *final_rows(folder)]
        rows += [{"seed": seed, **row} for row in found]
        print(json.dumps({"seed": seed, "final": [row for row in found if row["optimiser"] == "final"]}), flush=True)
        result = dict(means=means(rows), against_single=against_single(rows))
        write_result(args.out / "overoptimisation.json", rows, **result)
        draw(result["means"], args.out / "overoptimisation.svg")


def ppo_rows(folder: Path) -> list[Row]:
    """The policy of each arm at step 0, which is SFT, and then in blocks of steps, on what it trained on."""
    module, rows = experiment(CONFIG), []
    config, columns = module.get_config(), dict(kl="kl", proxy="reward", utility="exact_reward")
    for arm in module.ARMS:
        lines = [line for _, line in JsonLines(folder / arm / "metrics.jsonl") if "exact_reward" in line]
        # The critic learns alone in the first steps; these and the next one sample from SFT.
        first = 1 + int(config[arm].critic.warmup.split()[0])
        for step, part in blocks(sorted(lines, key=lambda line: line["step"]), first, BLOCK):
            means = {name: float(np.mean([line[key] for line in part])) for name, key in columns.items()}
            rows.append(dict(optimiser="ppo", arm=arm, step=step, **means))
    return with_gains(rows)


def blocks(lines: Sequence[Row], first: int, size: int) -> list[tuple[int, Sequence[Row]]]:
    """The first lines as step 0, and the rest in blocks of that size, under the step of the last; what is over is left
    out."""
    starts = range(first, len(lines) - size + 1, size)
    return [(0, lines[:first]), *((lines[i + size - 1]["step"], lines[i : i + size]) for i in starts)]


def best_of_n_rows(folder: Path, prompts: int, samples: int, seed: int) -> list[Row]:
    """Best-of-n by one judge (the mean over the five, each alone), by each ensemble, and by exact utility."""
    module = experiment(CONFIG)
    config = module.get_config()
    asked, texts = sampled(folder, config, prompts, samples, seed)
    scores, exact = judged(folder, module.MEMBERS, asked, texts)
    proxies = {"single": list(scores), "exact": [exact]}
    for arm, judge in module.ARMS.items():
        if judge not in module.MEMBERS:
            section = config.judges[judge]
            combine = Combination(section.combine, coefficient=section.coefficient)
            proxies[arm] = [combine(scores.reshape(len(scores), -1)).reshape(exact.shape)]
    rows = []
    for (arm, those), n in itertools.product(proxies.items(), SIZES):
        proxy = float(np.mean([best_of(n, each, each) for each in those]))
        found = float(np.mean([best_of(n, each, exact) for each in those]))
        rows.append(dict(optimiser="best_of_n", arm=arm, n=n, kl=best_of_n_kl(n), proxy=proxy, utility=found))
    return with_gains(rows)


def sampled(
    folder: Path, config: ConfigDict, prompts: int, samples: int, seed: int
) -> tuple[list[str], list[list[str]]]:
    """The first test prompts, and `texts[p][k]`, the SFT policy's responses to each of them."""
    data = {**gold_arguments(config), "seed": seed}
    records = gold_records("prompt", "test", data_dir=folder / "data", **data)[:prompts]
    asked = [record.prompt[-1].content for record in records]
    rows = [{"id": f"{p}-{k}", "prompt": prompt} for p, prompt in enumerate(asked) for k in range(samples)]
    source, out = folder / "best_of_n_prompts.jsonl", folder / "best_of_n_responses.jsonl"
    if not source.is_file():
        write_jsonl(source, rows)
    if not out.is_file():  # it has this name once it is whole
        files = ["--model", str(folder / "sft"), "--prompts", str(source), "--out", str(out)]
        subprocess.run([*PRL, "generate", *files, "--seed", str(seed)], check=True)
    texts = [row["response"] for _, row in JsonLines(out)]
    return asked, [texts[start : start + samples] for start in range(0, len(texts), samples)]


def judged(
    folder: Path, members: Sequence[str], asked: Sequence[str], texts: Sequence[Sequence[str]]
) -> tuple[Float[np.ndarray, "K P N"], Float[np.ndarray, "P N"]]:
    """Scores of each member and exact utilities of all responses; what a prompt got twice is scored once."""
    pairs = [(prompt, text) for prompt, row in zip(asked, texts, strict=True) for text in row]
    different = list(dict.fromkeys(pairs))
    place = {pair: i for i, pair in enumerate(different)}
    index = np.array([place[pair] for pair in pairs]).reshape(len(asked), -1)
    prompts = [(Turn("user", prompt),) for prompt, _ in different]
    responses, mesh, scores = [text for _, text in different], make_mesh(), []
    for name in members:
        judge = load_judge(folder / name, mesh)
        assert isinstance(judge, ScoringJudge)
        scores.append(judge.scored(prompts, responses).scores.astype(np.float64)[index])
    return np.stack(scores), np.array([utility(*pair) for pair in different])[index]


def final_rows(folder: Path) -> list[Row]:
    """SFT and each arm in the final table: sampled responses to test prompts, by the exact judge."""
    summary = json.loads((folder / "summary.json").read_text())
    rows = [
        {"optimiser": "final", "arm": arm["stage"], **{key: arm[key] for key in ("kl", "utility", "win_rate")}}
        for arm in summary["arms"]
        if not arm["name"].endswith(", greedy")
    ]
    accuracies = {
        name: {key: judge[key] for key in ("accuracy", "accuracy_vs_truth", "bayes_accuracy")}
        for name, judge in summary["judges"].items()
    }
    return [*rows, *({"optimiser": "judges", "arm": name, **judge} for name, judge in accuracies.items())]


def best_of(n: int, proxy: Float[np.ndarray, "P N"], value: Float[np.ndarray, "P N"]) -> Float[np.ndarray, "P"]:
    """The expected value of the response with the largest proxy among n, over all choices of n out of N samples.

    The k-th smallest of N is the largest of n of them in `C(k - 1, n - 1)` out of `C(N, n)` choices (Nakano et al.
    2021, arXiv 2112.09332, appendix I). Of equal proxies the later sample counts as the larger.

    Args:
      n: 1 to N.
      proxy: what chooses.
      value: what is asked of the chosen one.
    """
    count = proxy.shape[1]
    weights = np.array([math.comb(k, n - 1) / math.comb(count, n) for k in range(count)])
    return np.take_along_axis(value, np.argsort(proxy, axis=1, kind="stable"), axis=1) @ weights


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n from what is sampled, in nats: `log n - (n - 1) / n`, less where samples can be equal."""
    return math.log(n) - (n - 1) / n


def with_gains(rows: Sequence[Row]) -> list[Row]:
    """The rows with `proxy_gain`, the proxy less that of SFT: of the first row of the same arm."""
    start: dict[str, float] = {}
    for row in rows:
        start.setdefault(row["arm"], row["proxy"])
    return [{**row, "proxy_gain": row["proxy"] - start[row["arm"]]} for row in rows]


def means(rows: Iterable[Row]) -> list[Row]:
    """Means over seeds with Student's 95 % intervals, of all rows that agree in optimiser, arm, and n or step."""
    out = []
    for names, same in grouped(rows, ("optimiser", "arm", "n", "step")).items():
        columns = [key for key, value in same[0].items() if isinstance(value, float)]
        out.append({**dict(names), "seeds": len(same), **interval_columns(same, columns)})
    return out


def against_single(rows: Iterable[Row]) -> list[Row]:
    """Exact utility of each other arm less that of the single judge, paired by seed, where optimisation ends."""
    out = []
    for names, same in grouped(rows, ("optimiser", "n", "step")).items():
        utility = {(row["arm"], row["seed"]): row["utility"] for row in same if "utility" in row}
        for arm in dict.fromkeys(arm for arm, _ in utility if arm != "single"):
            pairs = [{"utility": value - utility["single", seed]} for (name, seed), value in utility.items()
                     if name == arm and ("single", seed) in utility]  # fmt: skip
            if pairs:
                out.append({**dict(names), "arm": arm, "seeds": len(pairs), **interval_columns(pairs, ["utility"])})
    return out


def grouped(rows: Iterable[Row], keys: Sequence[str]) -> dict[tuple[tuple[str, Any], ...], list[Row]]:
    """Rows by their values of those keys that they have."""
    found: dict[tuple[tuple[str, Any], ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple((key, row[key]) for key in keys if key in row), []).append(row)
    return found


def interval_columns(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> dict[str, float | None]:
    """For each column its mean, and the ends of its interval as `_low` and `_high`; None for those of one row."""
    out: dict[str, float | None] = {}
    for key in columns:
        out[key], out[f"{key}_low"], out[f"{key}_high"] = t_interval([row[key] for row in rows])
    return out


if __name__ == "__main__":
    main()
