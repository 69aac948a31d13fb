"""Settings for both frameworks, before either is imported: CPU, no network, quiet."""

import os
import sys
from pathlib import Path

os.environ.update(
    CUDA_VISIBLE_DEVICES="",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    HF_HUB_OFFLINE="1",
    JAX_PLATFORMS="cpu",
    OMP_NUM_THREADS="1",  # models this small only lose by threads
    TRANSFORMERS_VERBOSITY="error",
    TRL_EXPERIMENTAL_SILENCE="1",
)

# `--import-mode=importlib` leaves sys.path alone, so that test files find no neighbour without this.
sys.path.append(str(Path(__file__).parent))
