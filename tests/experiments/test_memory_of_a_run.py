"""The memory that a run states before its first stage, against what its process takes."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import chat_families
import hf_checkpoints
import pytest
from running import ROOT, environment_of, write_rows

WORDS = chat_families.WORDS[:9]
UNITS = {"MiB": 2**20, "GiB": 2**30}
# Two steps; the evaluation needs no more memory than the stages before it.
SHORT = ("stages=('genrm','anchors','pairwise_ppo')", "pairwise_ppo.duration=2 steps",
         "pairwise_ppo.critic.warmup=1 steps", "pairwise_ppo.evaluation.every=2 steps")  # fmt: skip
PROCESS = 2**30  # what a run on a CPU says that the process and its compiled programs take beside
# Runs a command and prints its peak in KiB. Linux starts the peak of a process at what its parent has resident, so that
# the parent must be a small one: a process of pytest that has run other tests may hold more than what is measured.
MEASURED = "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
MEASURED += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"


def write_model(folder: Path) -> Path:
    """Three layers; a context that is longer than any row."""
    tokenizer = chat_families.write_tokenizer(folder, chat_families.FAMILIES["llama3"])
    words = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]) + 16
    config = {**hf_checkpoints.CASES["llama"], "vocab_size": words, "max_position_embeddings": 4096}
    return hf_checkpoints.write(folder, config, "bfloat16")


def text(start: int, words: int) -> str:
    return " ".join(itertools.islice(itertools.cycle(WORDS), start, start + words))


def peak(*argv: object) -> tuple[float, str]:
    """Bytes that `prl` has resident at the most, and what it says."""
    environment = environment_of(1)
    del environment["XLA_FLAGS"]  # compiles as users do
    command = [sys.executable, "-m", "prl_jax", *map(str, argv), "--compilation_cache_dir", ""]
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return 1024.0 * int(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ru_maxrss counts other things")
def test_a_run_of_own_model_takes_about_the_memory_that_it_states(tmp_path):
    pairs = [{"prompt": text(i, 100), "chosen": text(i + 1, 90), "rejected": text(i + 2, 110)} for i in range(150)]
    rows = write_rows(tmp_path / "pairs.jsonl", pairs)
    config = f"{ROOT / 'experiments' / 'own_model.py'}:{write_model(tmp_path / 'model')},{rows}"

    overrides = [f"--config.{value}" for value in SHORT]
    most, said = peak("run", "--config", config, "--workdir", tmp_path / "run", *overrides)
    stated = max(float(number) * UNITS[unit] for number, unit in re.findall(r" about ([\d.]+) ([MG]iB) \(", said))
    assert "compiled programs take about 1.0 GiB more" in said, said
    assert (stated + PROCESS) / 2 < most < 2 * (stated + PROCESS), (most, said)
    assert most < 4 * 2**30, "once it asked for 29 GB"
