"""The quickstart over several seeds: the numbers that the README quotes.

    .venv/bin/python benchmarks/quickstart_seeds.py --seeds 0 1 2 --workdir runs/seeds --out benchmarks/results

Runs `prl run --config experiments/quickstart.py` once a seed, one after the other, and writes `quickstart.json` (every
final table) and `quickstart.md` (the combined report) to --out. Prints one JSON line a seed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

CONFIG = "experiments/quickstart.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    prl = [sys.executable, "-m", "prl_jax"]
    folders, rows = [], []
    for seed in args.seeds:
        folders.append(args.workdir / f"seed{seed}")
        start = time.monotonic()
        command = [*prl, "run", "--config", CONFIG, "--workdir", str(folders[-1]), f"--config.seed={seed}"]
        subprocess.run(command, check=True)
        summary = json.loads((folders[-1] / "summary.json").read_text())
        for judge in summary["judges"].values():
            del judge["reliability"]
        rows.append({"seed": seed, "seconds": round(time.monotonic() - start, 1), **summary})
        shown = {key: summary[key] for key in ("arms", "paired")}
        print(json.dumps({"seed": seed, "seconds": rows[-1]["seconds"], **shown}), flush=True)
    subprocess.run([*prl, "report", "--workdir", *map(str, folders)], check=True)
    run = json.loads((folders[0] / "config.json").read_text())
    result = {
        "command": f"python benchmarks/quickstart_seeds.py --seeds {' '.join(map(str, args.seeds))}",
        "date": datetime.date.today().isoformat(),
        "device": f"{', '.join(run['devices'])}, {platform.machine()}",
        "versions": run["versions"],
        "git_revision": run["git_revision"],
        "runs": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "quickstart.json").write_text(json.dumps(result, indent=1) + "\n")
    shutil.copy(folders[0] / "report.md", args.out / "quickstart.md")


if __name__ == "__main__":
    main()
