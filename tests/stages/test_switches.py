"""The switches of a stage that trains a policy, all on in one run: what they log, and that it can be interrupted."""

import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from running import prl, read_rows, unoptimised

from prl_jax.artifacts.models import load_model, load_values
from prl_jax.checkpoint import Checkpoints
from prl_jax.models import ScalarModel
from prl_jax.runs.context import StageContext
from prl_jax.runs.workdir import Workdir
from prl_jax.sharding import make_mesh
from prl_jax.stages import online
from prl_jax.tree import flatten

pytestmark = pytest.mark.slow
CONFIG = """
from prl_jax.stages import config as c

def get_config():
    lengths = dict(max_prompt=12, max_response=6)
    few = dict(duration="1 steps", validation=c.source(split="validation", limit=4), batch_size=8)
    policy = dict(
        judge="bt", prompts=c.source(limit=16), prompts_per_step=4, group_size=2, save_every="2 steps",
        evaluation=dict(every="0 steps"),
    )
    switches = dict(
        stop_kl=1e-9, skip_updates=2, spike=50.0, overlong=(2, 0.5), length_weight=0.1,
        reference_ema=0.1, rollouts_ahead=True, regulariser=dict(kind="loss_kl", ends=(0.01, 0.02)),
    )
    stages = dict(
        sft=c.sft(**lengths, **few),
        bt=c.bradley_terry(init_from="sft", **lengths, **few),
        first=c.online("ppo", critic=dict(init_from="judge", warmup="0 steps"), duration="1 steps", **policy),
        second=c.online(
            "ppo", critic=dict(init_from="first", warmup="1 steps"), duration="4 steps", **policy, **switches
        ),
        third=c.online("rloo", flat_groups="redraw", duration="1 steps", **policy),
    )
    return c.build(
        stages, gold=dict(families=("sort",), train_rows=32, validation_rows=8, test_rows=8),
        model=dict(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=32),
    )
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("switches")
    (path / "config.py").write_text(CONFIG)
    with unoptimised():
        done = prl("run", "--config", path / "config.py", "--workdir", path / "run", "--compilation_cache_dir=")
    assert done.code == 0, done.err
    return path / "run"


def test_each_switch_is_logged(workdir):
    rows = read_rows(workdir / "second" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    everywhere = {"skipped_updates", "overlong_penalty", "length_term", "entropy_weight"}
    assert all(everywhere <= row.keys() for row in rows)
    np.testing.assert_allclose([row["entropy_weight"] for row in rows], [0, 0.02 / 3, 0.04 / 3, 0.02], rtol=1e-5)
    np.testing.assert_allclose([row["kl_coef"] for row in rows][::3], [0.05, 0.01], rtol=1e-5)
    assert all(row["stopped_updates"] > 0 and row["kl_loss"] > 0 for row in rows[2:])  # the first step is a warm-up
    assert [row["staleness"] > 0 for row in rows] == [False, False, True, True]
    assert all({"importance", "importance_capped", "sampler_kl"} <= row.keys() for row in rows)
    first, third = (read_rows(workdir / stage / "metrics.jsonl")[0] for stage in ("first", "third"))
    assert not (everywhere | {"flat_groups", "redrawn"}) & first.keys() and {"flat_groups", "redrawn"} <= third.keys()


@pytest.mark.long
def test_a_run_that_is_interrupted_ends_like_one_that_is_not(workdir, monkeypatch):
    """In its last step, with a checkpoint two steps before."""
    other = workdir.parent / "interrupted"
    shutil.copytree(workdir, other)
    shutil.rmtree(other / "second")
    run = ("run", "--config", workdir.parent / "config.py", "--workdir", other, "--compilation_cache_dir=")
    iteration = online.iteration

    def interrupted(setup, updates, state, index, n, **options):
        if n == 4:
            raise KeyboardInterrupt
        return iteration(setup, updates, state, index, n, **options)

    with unoptimised():
        with monkeypatch.context() as patch:
            patch.setattr(online, "iteration", interrupted)
            assert prl(*run).code == 130
        done = prl(*run)
    assert done.code == 0, done.err
    one, two = ((folder / "second" / "metrics.jsonl").read_bytes() for folder in (workdir, other))
    assert one == two
    one, two = (load_model(folder / "second", make_mesh())[1] for folder in (workdir, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_critic_starts_as_a_judge_or_as_an_earlier_critic(workdir):
    mesh = make_mesh()
    judge = load_model(workdir / "bt", mesh)[1]
    with Checkpoints(workdir / "first" / "checkpoints", read_only=True) as checkpoints:
        path = checkpoints.directory / str(checkpoints.latest()) / "train" / "_METADATA"
    saved = {entry["key_metadata"][0]["key"] for entry in json.loads(path.read_text())["tree_metadata"].values()}
    critic = load_values(workdir / "first", mesh)
    assert {f"critic.{name}" for name in flatten(critic)} == {name for name in saved if name.startswith("critic.")}
    for stage, start, bias in (("first", judge, 0.0), ("second", critic, float(critic.scalar.bias[...]))):
        found = built(workdir, stage, mesh)
        for name, value in flatten(start).items():
            np.testing.assert_array_equal(flatten(found)[name], value, err_msg=name)
        assert float(found.scalar.bias[...]) == bias
    assert not np.array_equal(judge.scalar.weight[...], critic.scalar.weight[...]) and abs(bias) > 0


def built(workdir, stage: str, mesh) -> ScalarModel:
    """The critic of a stage before its first step."""
    config = ConfigDict(json.loads((workdir / "config.json").read_text())["config"])
    return online._setup(StageContext(stage, config, Workdir(workdir, config), mesh))[1].state.critic.model
