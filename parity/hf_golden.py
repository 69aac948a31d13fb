"""Logits that transformers computes for the checkpoints of tests/hf_checkpoints.py, kept for tests without torch.

.venv-parity/bin/python parity/hf_golden.py    # writes tests/models/hf/golden/
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hf_models import hf_checkpoints, load, torch_logits

FOLDER = Path(__file__).parents[1] / "tests" / "models" / "hf" / "golden"
SHOWN = 3  # last positions of each row


def logits(config: dict[str, Any]) -> list[Any]:
    """Returns them of the last positions, or a reward model's numbers; rounded far below the tests' tolerance."""
    tokens = hf_checkpoints.rows()
    with tempfile.TemporaryDirectory() as folder:
        hf_checkpoints.write(Path(folder), config)
        model = load(Path(folder), reward_model=config["architectures"][0].endswith("SequenceClassification"))
        out = torch_logits(model, tokens, np.ones_like(tokens))
    return np.round((out[:, -SHOWN:] if out.ndim == 3 else out).astype(float), 5).tolist()


def cases() -> dict[str, dict[str, Any]]:
    """Every case, and a reward model of each family."""
    plain = hf_checkpoints.CASES
    families = {config["model_type"]: config for config in reversed(plain.values())}
    rewards = {f"{name}-reward": hf_checkpoints.reward_model(config) for name, config in families.items()}
    return {**plain, **dict(sorted(rewards.items()))}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    by_family: dict[str, dict[str, Any]] = {}
    for name, config in cases().items():
        by_family.setdefault(config["model_type"], {})[name] = {"config": config, "logits": logits(config)}
    for family, content in by_family.items():
        rows = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in content.items()]
        (FOLDER / f"{family}.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
