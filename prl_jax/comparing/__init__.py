"""Many runs of one question: which arms, under which conditions, on which seeds; run, and counted together."""

from prl_jax.comparing.cells import Cell, Comparison
from prl_jax.comparing.results import collect
from prl_jax.comparing.running import run_cells

__all__ = ["Cell", "Comparison", "collect", "run_cells"]
