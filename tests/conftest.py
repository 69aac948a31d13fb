"""What all tests share: the platform, and the folder where `import fakes` finds the shared fakes."""

import os
import sys
from pathlib import Path

import jax
import jaxtyping
import pytest

# Identities are held to float32 rounding, which accelerators don't promise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])

# The command line would keep what it compiles in the user's cache folder; processes that tests start would too.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
jax.config.update("jax_enable_compilation_cache", False)

# Arrays of unlike ranks are not lined up in silence: `[N]` against `[N, T]` says which axis it means.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests compile hundreds of small programs and run each a few times: less optimised machine code halves their time.
# XLA reads its flags when the backend starts; processes that tests start get those of the user again.
_flags = os.environ.get("XLA_FLAGS")
os.environ["XLA_FLAGS"] = f"{_flags or ''} --xla_backend_optimization_level=0"
jax.devices()
if _flags is None:
    del os.environ["XLA_FLAGS"]
else:
    os.environ["XLA_FLAGS"] = _flags

# `--import-mode=importlib` leaves sys.path alone, so that test files find no neighbour without this.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def unchecked():
    """Annotations are not checked, as in a user's run: for what stands behind them, and for thousands of calls."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that no worker is left with one when the others have nothing more to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
