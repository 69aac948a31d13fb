"""`prl compare` as a user runs it, and what it refuses."""

import json

import pytest
from running import prl, unoptimised

EXPERIMENT = """
from prl_jax.comparing import Cell, Comparison
from prl_jax.stages import config as c

def get_config(arguments):
    arm = arguments.split(",")[0]
    lengths = dict(max_prompt=12, max_response=6)
    few = dict(duration="1 steps", validation=c.source(split="validation", limit=4), batch_size=8)
    judge = dict(bt=c.bradley_terry(init_from="sft", **lengths, **few))
    policy = c.online(
        arm, prompts=c.source(limit=16), prompts_per_step=4, duration="1 steps", save_every="100%", judge="bt",
        evaluation=dict(every="0 steps"),
    )
    arms = {f"{arm}_{n}": policy for n in (1, 2)}
    told = c.evaluation(
        judges=("bt",), pairs=c.source(split="test", limit=4), prompts=c.source(split="test", limit=4), samples=2,
        arms={name: dict(title=name, judge="bt") for name in arms},
    )
    return c.build(
        dict(sft=c.sft(**lengths, **few), **judge, **arms, evaluation=told),
        gold=dict(families=("sort",), train_rows=32, validation_rows=8, test_rows=8),
        model=dict(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=32),
    )

def get_comparison(arguments, *, seeds, repetitions):
    if arguments == "wrong":
        raise ValueError("no such arm")
    cells = tuple(Cell("main", arm, seed, arm) for seed in range(seeds) for arm in ("ppo", "rloo"))
    return Comparison("Two", cells, {"ppo": "PPO", "rloo": "RLOO"}, {"main": "all alike"}, "ppo")
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT)
    return path


@pytest.mark.long
def test_a_comparison_runs_its_arms_and_counts_them_together(experiment, tmp_path):
    folder = tmp_path / "compared"
    command = ("compare", "--config", experiment, "--workdir", folder, "--seeds", "1")
    with unoptimised():
        done = prl(*command)
    assert done.code == 0, done.err
    assert done.out.strip() == f"Comparison: {folder / 'comparison.html'}"
    assert [line.split("]")[0] for line in done.err.splitlines() if line.startswith("[")] == ["[1/2", "[2/2"]
    # The second arm has SFT and the judge of the first one, and the same opponents.
    log = (folder / "logs" / "main_seed0_rloo.log").read_text()
    assert "sft              taken from" in log and "bt               taken from" in log
    cells = [folder / "cells" / "main" / "seed0" / arm for arm in ("ppo", "rloo")]
    one, two = ((cell / "bt" / "metrics.jsonl").read_bytes() for cell in cells)
    assert one == two
    lines = [(cell / "evaluation" / "wins.jsonl").read_text().splitlines() for cell in cells]
    greedy = [[json.loads(line)["wins"]["sft, greedy"] for line in of_cell] for of_cell in lines]
    assert greedy[0] == greedy[1]
    (condition,) = json.loads((folder / "comparison.json").read_text())["conditions"]
    assert [(row["arm"], row["repetitions"]) for row in condition["arms"]] == [("ppo", 2), ("rloo", 2)]
    assert all(row["sampled"] > 0 and row["judged"] > 0 for row in condition["arms"])
    again = prl(*command)
    assert again.code == 0 and "[" not in again.err
    # A cell of another config is not taken for one of this comparison.
    experiment.write_text(EXPERIMENT.replace('duration="1 steps", save_every', 'duration="2 steps", save_every'))
    other = prl(*command)
    assert other.code == 2 and "ppo_1.duration='1 steps', and now it is '2 steps'" in other.err


def test_what_cannot_be_compared_is_told_before_anything_runs(experiment, tmp_path):
    folder = tmp_path / "compared"
    other = tmp_path / "other.py"
    other.write_text("def get_config():\n    return None\n")
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        EXPERIMENT.replace('prompts_per_step=4, duration="1 steps"', 'prompts_per_step=5, duration="1 steps"')
    )
    cases = {
        f"{tmp_path / 'none.py'}": "no such file; expected a Python file with a get_comparison()",
        f"{other}": "defines no get_comparison()",
        f"{broken}": "ZeroDivisionError: division by zero",
        f"{experiment}:wrong": "get_comparison() says ValueError: no such arm",
        f"{wrong}": "do not divide into 2 minibatches",
    }
    for config, words in cases.items():
        done = prl("compare", "--config", config, "--workdir", folder)
        (line,) = done.err.strip().splitlines()
        assert done.code == 2 and line.startswith("prl: ") and words in line, line
    assert not folder.exists()
    assert "--workdir is missing" in prl("compare", "--config", experiment).err
