"""What the configs for TPU slices cost, by the TPU compiler as a run would use it: the figures of their docstrings.

    .venv/bin/python benchmarks/pod_plans.py --out benchmarks/results/pod_plans.json
    .venv/bin/python benchmarks/pod_plans.py --functions pairwise_ppo/decode --decode 1 0 \
        --out benchmarks/results/pod_decode.json

Runs `prl plan --json` for each config and slice: minutes each on two cores. (The tests let the compiler try less hard,
in a quarter of the time.) Prints one JSON line a function: memory against the chip's, and the roofline.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common import write_result

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "tests" / "configs" / "models"  # the config.json alone
PODS = {
    "llama3_2_1b_v5e_4x4": ("llama3_2_1b", "v5e:4x4"),
    "llama3_8b_v5e_8x8": ("llama3_8b", "v5e:8x8"),
    "llama3_8b_v5p_4x4x4": ("llama3_8b", "v5p:4x4x4"),
    "gemma3_4b_v6e_4x4": ("gemma3_4b", "v6e:4x4"),
}


def plan(config: str, model: str, topology: str, functions: Sequence[str], decode: int) -> list[dict]:
    """A row for each function of a config, all of them or some, with its own `mesh.decode` (0) or another."""
    command = [sys.executable, "-m", "prl_jax", "plan", "--topology", topology, "--json"]
    command += ["--config", f"{ROOT / 'experiments' / config}.py:{MODELS / model},pairs.jsonl"]
    command += [f"--config.mesh.decode={decode}"] if decode else []
    command += [f"--functions={','.join(functions)}"] if functions else []
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    rows = []
    for name, function in found["functions"].items():
        if functions and name not in functions:
            continue
        row = {"config": config, "topology": topology, "mesh": found["mesh"], "function": name, "hbm": found["hbm"]}
        row |= {key: function[key] for key in ("fits", "memory", "flops", "bytes_moved", "compile_seconds")}
        row |= {key: function[key] for key in ("collectives", "roofline_seconds", "stack_gathers", "warnings")}
        rows.append(row)
        shown = {"peak_gib": round(function["memory"]["peak"] / 2**30, 2), "hbm_gib": round(found["hbm"] / 2**30, 2)}
        shown |= {"roofline_seconds": round(function["roofline_seconds"]["step"], 3)}
        print(json.dumps({"config": config, "decode": found["mesh"]["decode"], "function": name, **shown}), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PODS, default=list(PODS), help="some of the configs")
    parser.add_argument("--functions", nargs="+", default=[], help="some of the functions")
    parser.add_argument("--decode", type=int, nargs="+", default=[0], help="mesh.decode; 0 for what the config has")
    args = parser.parse_args()
    cases = itertools.product(args.only, args.decode)
    write_result(args.out, [row for name, size in cases for row in plan(name, *PODS[name], args.functions, size)])


if __name__ == "__main__":
    main()
