"""How much host memory does importing a Hugging Face checkpoint take beside the parameters?

    .venv/bin/python benchmarks/hf_import.py --out benchmarks/results/hf_import.json

Writes a checkpoint of about 2 GB with random weights, in shards, and imports it in a process of its own for each dtype
of the parameters. Prints one JSON line an import and writes all of them to --out. Where devices are CPUs their memory
is the host's, so the parameters are subtracted from the highest resident size. The import should stay below the largest
tensor of the checkpoint plus 1 GiB, the interpreter with its libraries included.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import write_result
from safetensors.numpy import save_file

from prl_jax.models import from_hf
from prl_jax.models.hf import decoder_config
from prl_jax.models.hf.tensors import make_model, parameters

# Llama 3.2 1B with 10 layers and an output embedding of its own.
CONFIG = dict(
    model_type="llama",
    architectures=["LlamaForCausalLM"],
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=10,
    num_attention_heads=32,
    num_key_value_heads=8,
    rope_theta=500000.0,
    tie_word_embeddings=False,
    torch_dtype="bfloat16",
)
SHARD_BYTES = 500 * 1000**2
GIB = 1024**3


def write(folder: Path) -> dict[str, int]:
    """The checkpoint, a shard at a time; returns its sizes."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    config = decoder_config(CONFIG, "config.json")
    shapes = jax.eval_shape(lambda: make_model(config, False))
    places = parameters(shapes, config).values()
    tensors = {name: place.shape for place in places for name in place.names}
    noise = np.random.default_rng(0).normal(size=2**22).astype(jnp.bfloat16)
    shards: list[list[str]] = [[]]
    size = lambda name: 2 * int(np.prod(tensors[name]))  # noqa: E731
    for name in sorted(tensors):
        if shards[-1] and sum(map(size, shards[-1])) + size(name) > SHARD_BYTES:
            shards.append([])
        shards[-1].append(name)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: np.resize(noise, tensors[name]) for name in names}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return {
        "checkpoint_bytes": sum(map(size, tensors)),
        "shards": len(shards),
        "largest_tensor_bytes": max(map(size, tensors)),
    }


def measure(folder: Path, dtype: str) -> dict[str, int | float | str]:
    """One import in this process, which should have done nothing else."""
    jax.block_until_ready(jnp.zeros(()) + 1)
    before, start = peak(), time.monotonic()
    model = jax.block_until_ready(from_hf(folder, dtype=dtype))
    seconds = time.monotonic() - start
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    on_host = stored if jax.default_backend() == "cpu" else 0
    return {
        "dtype": dtype,
        "parameter_bytes": stored,
        "peak_bytes": peak(),
        "before_bytes": before,
        "host_bytes": peak() - on_host,
        "seconds": round(seconds, 1),
    }


def peak() -> int:
    """The highest resident size of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts the parent process too, whose memory a new process starts with
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help="where the checkpoint goes, by default a temporary folder")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.folder, args.measure)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        sizes, rows = write(Path(folder)), []
        limit = sizes["largest_tensor_bytes"] + GIB
        for dtype in ("bfloat16", "float32"):
            command = [sys.executable, __file__, "--folder", folder, "--measure", dtype]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            rows.append({**sizes, **row, "limit_bytes": limit, "below_limit": row["host_bytes"] < limit})
            print(json.dumps(rows[-1]), flush=True)
    if args.out is not None:
        write_result(args.out, rows)


if __name__ == "__main__":
    main()
