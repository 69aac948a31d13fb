"""How the benchmarks keep what they measured."""

from __future__ import annotations

import datetime
import json
import platform
import sys
from pathlib import Path
from typing import Any

import jax


def write_result(out: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows with the command, the date, the device and the version that they come from."""
    result = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.devices()[0].platform}, {platform.processor() or platform.machine()}",
        "jax": jax.__version__,
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
