"""What all tests share: the platform, and the folder where `import fakes` finds the shared fakes."""

import os
import sys
from pathlib import Path

# Before jax is imported. Identities are held to float32 rounding, which accelerators don't promise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# `--import-mode=importlib` leaves sys.path alone, so that test files find no neighbour without this.
sys.path.append(str(Path(__file__).parent))
