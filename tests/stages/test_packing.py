"""Short records share rows of the model where it is fitted to them, and nothing else is changed."""

import json
import random

import numpy as np
import pytest
from running import prl, read_rows, write_rows

pytestmark = pytest.mark.slow
CONFIG = """
from prl_jax.stages import config as c

def get_config():
    room, few = dict(max_prompt=48, max_response=80), dict(duration="3 steps", batch_size=8, log_every="1 steps")
    pairs = lambda **more: dict(data=c.source(kind="jsonl", path="PAIRS", **more))
    few["evaluate_every"] = "3 steps"
    checked = dict(validation=c.source(kind="jsonl", path="PAIRS", limit=4))
    return c.build(
        dict(
            sft=c.sft(accumulate=3, **pairs(), **room, **few, **checked),
            genrm=c.generative(init_from="sft", max_length=256, accumulate=2, **pairs(), **few, **checked),
            dpo=c.direct("dpo", init_from="sft", references=("sft",), **pairs(), **room, **few, **checked),
        ),
        model=dict(width=16, layers=1, heads=2, kv_heads=1, head_dim=8),
    )
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that packs, and one that does not."""
    folder, draw = tmp_path_factory.mktemp("packing"), random.Random(0)

    def text(longest: int) -> str:
        return "".join(draw.choices("abcdefgh ", k=min(int(draw.expovariate(1 / 12)) + 1, longest)))

    rows = [{"prompt": text(30), "chosen": text(70), "rejected": text(70)} for _ in range(40)]
    write_rows(folder / "pairs.jsonl", rows)
    (folder / "packing.py").write_text(CONFIG.replace("PAIRS", str(folder / "pairs.jsonl")))
    for name in ("packed", "padded"):
        flags = [f"--config.{stage}.pack=False" for stage in ("sft", "genrm", "dpo")] if name == "padded" else []
        run = ("run", "--config", folder / "packing.py", "--workdir", folder / name, "--compilation_cache_dir=")
        done = prl(*run, *flags)
        assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize("stage", ["sft", "genrm", "dpo"])
def test_every_number_of_every_step_is_the_same(runs, stage):
    packed, padded = (read_rows(runs / name / stage / "metrics.jsonl") for name in ("packed", "padded"))
    shares = {row.pop("packed_rows", None) for row in packed}
    assert len(shares) == 1 and 0.1 < shares.pop() <= 0.75
    assert not any("packed_rows" in row for row in padded)
    assert all(np.isfinite(row["validation_loss"]) for row in (padded[0], padded[-1]))
    steps = [row for row in padded if "loss" in row]
    assert len(steps) == 3 and all(row["grad_norm"] > 1e-3 for row in steps)
    for row, other in zip(packed, padded, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"seconds", "time"}:
            if isinstance(row[name], float) and "second" not in name:
                assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), (name, row, other)
    results = [json.loads((runs / name / stage / "result.json").read_text()) for name in ("packed", "padded")]
    assert results[0]["family"] == results[1]["family"]
