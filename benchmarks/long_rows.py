"""What does a step over rows of 4k, 16k and 32k tokens take of a TPU, with each backend of attention?

    .venv/bin/python benchmarks/long_rows.py --out benchmarks/results/long_rows.json

The step of SFT of Llama 3 8B as `experiments/llama3_8b_v5p_4x4x4.py` cuts it, one row a chip and layers rematerialised,
compiled by the TPU compiler for v5p:4x4x4; no TPU is needed. `temporary` is its memory beside parameters, optimizer and
batch in bytes of each chip, told too where it is more than there is. The roofline is what operations and memory traffic
take at best.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import write_result

ROOT = Path(__file__).parents[1]
SHAPES = ROOT / "tests" / "configs" / "models" / "llama3_8b"
TOPOLOGY, CHIPS = "v5p:4x4x4", 64
STEP = "sft/train_step"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384, 32768])
    parser.add_argument("--backends", nargs="+", default=["einsum", "chunked", "splash"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(shutil.copytree(SHAPES, Path(folder, "model")))
        shape = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": max(args.lengths)}))
        for length in args.lengths:
            for backend in args.backends:
                rows.append({"tokens_a_row": length, "attention": backend, **planned(model, length, backend)})
                print(json.dumps(rows[-1]), flush=True)
                if args.out:
                    write_result(args.out, rows)


def planned(model: Path, length: int, backend: str) -> dict[str, Any]:
    """Returns what `prl plan` says of the step."""
    keys = {
        "model.attention": backend,
        "model.remat": True,
        "sft.batch_size": CHIPS,
        "sft.accumulate": 1,
        "sft.max_prompt": length // 2,
        "sft.max_response": length // 2,
    }
    config = f"{ROOT}/experiments/llama3_8b_v5p_4x4x4.py:{model},pairs.jsonl"
    command = [sys.executable, "-m", "prl_jax", "plan", "--config", config, "--topology", TOPOLOGY, "--json"]
    command += ["--functions", STEP, *(f"--config.{key}={value}" for key, value in keys.items())]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout:
        return {"failed": done.stderr.strip().splitlines()[-1][:300]}
    found = json.loads(done.stdout)["functions"][STEP]
    seconds = {f"roofline_{name}": value for name, value in found.get("roofline_seconds", {}).items()}
    memory = {name: found["memory"][name] for name in ("temporary", "peak")}
    return {"fits": found["fits"], **memory, **seconds, "compile_seconds": found["compile_seconds"]}


if __name__ == "__main__":
    main()
