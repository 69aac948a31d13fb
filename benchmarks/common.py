"""How the benchmarks keep what they measured."""

from __future__ import annotations

import datetime
import importlib.util
import json
import platform
import sys
from pathlib import Path
from typing import Any

import jax


def experiment(name: str) -> Any:
    """The module of `experiments/{name}.py`."""
    path = Path(__file__).parents[1] / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_result(out: Path, rows: list[dict[str, Any]], **summary: Any) -> None:
    """Writes rows, and what they come to, with the command, date, device and version that they come from."""
    result = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.devices()[0].platform}, {platform.processor() or platform.machine()}",
        "jax": jax.__version__,
        **summary,
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
