"""Every method of the table, run by the stage that trains them all."""

import json

import numpy as np
import pytest
from running import prl

from prl_jax.methods import METHODS
from prl_jax.metrics import read_metrics

RULE = """
def heavier(prompts, first, second):
    return [0.5 + 0.4 * ((x := sum(map(ord, one)) - sum(map(ord, other))) > 0) - 0.4 * (x < 0)
            for one, other in zip(first, second)]
"""
CONFIG = """
from prl_jax.losses.pairwise_ppo import HARD_MAPS
from prl_jax.methods import METHODS
from prl_jax.stages import config as c

def get_config(names):
    prompts, few = c.source(limit=16), dict(validation=c.source(split="validation", limit=4), batch_size=8)
    lengths = dict(max_prompt=12, max_response=6)
    stages = dict(
        sft=c.sft(duration="1 steps", **lengths, **few),
        bt=c.bradley_terry(init_from="sft", duration="1 steps", **lengths, **few),
        bt2=c.bradley_terry(init_from="sft", duration="1 steps", **lengths, **few),
        genrm=c.generative(init_from="sft", duration="1 steps", max_length=32, **few),
        anchors=c.anchors(prompts=prompts, judge="bt", keep=2),
    )
    # Hard maps get a rule that tells responses apart: a judge after one step may favour a slot, and all are then even.
    judges = dict(rule=c.judge(kind="python", path=RULE))
    for name in names.split(","):
        preset = METHODS[name]
        method = preset.method
        critic = dict(critic=dict(warmup="1 steps")) if method.baseline.reads_values else {}
        compared = "rule" if getattr(method.reward, "map", "") in HARD_MAPS else "genrm"
        judge = dict(judge="bt" if method.reward.asks == "scores" else compared)
        if method.reward.kind == "several":
            judge = dict(judge="", reward=dict(judges=("bt", "bt2")))
        if preset.judge:
            judges[name] = c.judge(of=("bt", "bt2"), **preset.judge)
            judge = dict(judge=name)
        stages[f"by_{name}"] = c.online(
            name, prompts=prompts, **judge,
            prompts_per_step=8 // preset.group_size, duration="2 steps", save_every="0 steps",
            evaluation=dict(every="0 steps"), **critic,
        )
    return c.build(
        stages, judges=judges, gold=dict(families=("sort",), train_rows=32, validation_rows=8, test_rows=8),
        model=dict(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=32),
    )
"""


def shape_of(name: str) -> tuple[bool, int]:
    """Whether a method has a critic, and how many rows its loss sees at once: most of how its step runs."""
    method = METHODS[name].method
    return method.baseline.reads_values, method.surrogate.unit


FIRST = list({shape_of(name): name for name in reversed(METHODS)}.values())  # one of each shape
OTHERS = [name for name in METHODS if name not in FIRST]


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [FIRST, pytest.param(OTHERS, marks=pytest.mark.nightly)], ids=["one a shape", "others"]
)
def test_every_method_of_the_table_runs(tmp_path, names):
    """Two steps each: the second one moves the policy; a critic exists where the method has values."""
    (tmp_path / "rule.py").write_text(RULE)
    (tmp_path / "methods.py").write_text(f"RULE = {str(tmp_path / 'rule.py:heavier')!r}\n{CONFIG}")
    run = tmp_path / "run"
    config = f"{tmp_path / 'methods.py'}:{','.join(names)}"
    done = prl("run", "--config", config, "--workdir", run, "--compilation_cache_dir=")
    assert done.code == 0, done.err
    for name in names:
        preset, folder = METHODS[name], run / f"by_{name}"
        rows = read_metrics(folder / "metrics.jsonl")
        assert [row["step"] for row in rows] == [1, 2], name
        last, values = rows[-1], preset.method.baseline.reads_values
        assert np.isfinite([last[key] for key in ("reward", "kl", "loss", "policy_loss", "grad_norm")]).all(), name
        assert last["grad_norm"] > 0, name
        assert ("value_loss" in last) == ("critic_grad_norm" in last) == values, name
        tree = json.loads(next((folder / "checkpoints").glob("*/train/_METADATA")).read_text())["tree_metadata"]
        saved = {entry["key_metadata"][0]["key"].split(".")[0] for entry in tree.values()}
        assert ("critic" in saved) == ("critic_opt_state" in saved) == values, name
