"""Every online, direct and iterative method on the built-in tasks: what each wins, and what it costs.

    .venv/bin/python benchmarks/gallery.py --workdir runs/gallery --out benchmarks/results
    .venv/bin/python benchmarks/gallery.py --seeds 0 --methods grpo dpo inpo --workdir runs/gallery --out /tmp/gallery

Each method and seed is a run of its own, `prl run --config experiments/FAMILY.py:NAME` in a folder of its own, so that
one that fails stands in the table and stops no other. What runs share, SFT and judges, is made once (`--shared`).
Writes `gallery.json`,
`gallery.md` and `gallery.svg` to --out after every run, and runs nothing that `gallery.json` there has already, so that
several days or machines can share the work; without that file the same command reads finished runs from --workdir.

The budget of an online method is 40 steps of 256 responses with two passes over them, 10,240 sampled and 20,480 trained
on; a direct loss trains on 300 batches of 64 pairs, 38,400 responses, and samples none; a round samples what its
selection needs and trains on 60 such batches. The table has what each has really taken, in tokens of responses.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import experiment, write_result
from gallery_figure import draw
from ml_collections import ConfigDict

from prl_jax.comparing.budget import spent_by
from prl_jax.methods import METHODS
from prl_jax.methods.direct_table import DIRECT
from prl_jax.recipes.rounds import ITERATIVE
from prl_jax.reporting.means import t_interval
from prl_jax.stages.spent import Spent

FAMILIES: Mapping[str, Mapping[str, Any]] = {"online": METHODS, "direct": DIRECT, "iterative": ITERATIVE}
NUMBERS = ("win_rate", "utility", "correctness", "kl", "length", "seconds")

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=[], help="NAME, or FAMILY:NAME; by default all")
    parser.add_argument("--smoke", action="store_true", help="everything small and short, to see it work")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = known_rows(args.out / "gallery.json")
    for seed in args.seeds:
        for family, name in chosen(args.methods):
            words = f"{name},smoke" if args.smoke else name
            row = {"seed": seed, "family": family, "method": name}
            if any(row.items() <= known.items() for known in rows):
                continue
            row |= {"date": datetime.date.today().isoformat()}
            rows.append(row | one_run(family, words, seed, args.workdir / f"seed{seed}"))
            print(json.dumps(rows[-1]), flush=True)
            found = table(rows)
            write_result(args.out / "gallery.json", rows, methods=found)
            (args.out / "gallery.md").write_text(page(found))
            draw(found, args.out / "gallery.svg")


def known_rows(path: Path) -> list[Row]:
    """The rows of an earlier result, without runs that failed, which are tried again."""
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    return [row for row in rows if "failed" not in row]


def chosen(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The families and names of the methods that words name; of all that run, where there is no word."""
    for family, methods in FAMILIES.items():
        for name, method in methods.items():
            if not getattr(method, "misses", "") and (not words or {name, f"{family}:{name}"} & set(words)):
                yield family, name


def one_run(family: str, words: str, seed: int, folder: Path) -> Row:
    """Runs a method in `folder/FAMILY_NAME`, with what other runs of the folder have made, and reads its table."""
    workdir = folder / f"{family}_{words.replace(',', '_')}"
    config = experiment(family).get_config(words).unlock()
    config.seed = config.gold.seed = seed
    config.lock()
    if not (workdir / "summary.json").is_file():
        flags = [f"--config.seed={seed}", f"--config.gold.seed={seed}", "--shared", str(folder / "shared")]
        command = [sys.executable, "-m", "prl_jax", "run", "--config", f"experiments/{family}.py:{words}", *flags]
        done = subprocess.run([*command, "--workdir", str(workdir)], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1][:300]}
    return told(config, workdir)


def told(config: ConfigDict, workdir: Path) -> Row:
    """The last arm of the final table, and what the method took beside what all have."""
    arm = json.loads((workdir / "summary.json").read_text())["arms"][-1]
    found = {"win_rate": arm["win_rate"], "utility": arm["utility"], "kl": arm["kl"], "length": arm["response_length"]}
    found["correctness"] = arm["attributes"]["correctness"]
    counts, seconds = spent(config, workdir)
    return {**found, **counts._asdict(), "seconds": round(seconds, 1)}


def spent(config: ConfigDict, workdir: Path) -> tuple[Spent, float]:
    """What the stages of a method have taken, SFT left out, which all methods share."""
    parts = [spent_by(config, name, workdir) for name in config.stages if name != "sft"]
    return sum((one for one, _ in parts), Spent()), sum(seconds for _, seconds in parts)


def table(rows: Sequence[Row]) -> list[Row]:
    """Means over the seeds of each method, with intervals of Student's t, and how many of its runs failed."""
    found = []
    for family, name in dict.fromkeys((row["family"], row["method"]) for row in rows):
        own = [row for row in rows if (row["family"], row["method"]) == (family, name)]
        whole = [row for row in own if "failed" not in row]
        line: Row = {"family": family, "method": name, "seeds": len(whole), "failed": len(own) - len(whole)}
        for key in (*NUMBERS, *Spent._fields) if whole else ():
            mean, low, high = t_interval([row[key] for row in whole])
            line |= {key: mean, f"{key}_low": low, f"{key}_high": high}
        found.append(line)
    return sorted(found, key=lambda line: -line.get("win_rate", -1.0))


def page(found: Sequence[Row]) -> str:
    """The table as Markdown, the best method first."""
    head = ["method", "family", "seeds", "wins against SFT", "utility", "correctness", "KL", *Spent._fields, "seconds"]
    lines = [head, ["---"] * len(head)]
    for line in found:
        if not line["seeds"]:
            lines.append([f"`{line['method']}`", line["family"], f"0 ({line['failed']} failed)", *[""] * 8])
            continue
        low, high = line["win_rate_low"], line["win_rate_high"]
        interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        seeds = f"{line['seeds']}" + (f" ({line['failed']} failed)" if line["failed"] else "")
        numbers = [f"{line[key]:.3f}" for key in ("utility", "correctness")] + [f"{line['kl']:.2f}"]
        counts = [f"{line[key]:,.0f}" for key in (*Spent._fields, "seconds")]
        wins = f"{line['win_rate']:.3f}{interval}"
        lines.append([f"`{line['method']}`", line["family"], seeds, wins, *numbers, *counts])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    main()
