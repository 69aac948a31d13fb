"""Reports from the files of a workdir: tables, figures, one HTML page. Reads files only; imports no JAX."""

from prl_jax.reporting.build import build_report
from prl_jax.reporting.tables import terminal_table

__all__ = ["build_report", "terminal_table"]
