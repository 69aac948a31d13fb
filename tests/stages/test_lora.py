"""Stages that train adapters: what they save, what they share, and what their directories are good for."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from running import MICRO, prl, read_rows, refused, says, unoptimised, write_rows

from prl_jax.artifacts.models import load_model, load_policy
from prl_jax.models import Decoder, LoraConfig, ScalarModel, split
from prl_jax.runs.context import StageContext
from prl_jax.runs.workdir import Workdir
from prl_jax.sharding import make_mesh
from prl_jax.stages import online
from prl_jax.stages.online_step import iteration
from prl_jax.training.policy import make_updates
from prl_jax.tree import flatten

pytestmark = pytest.mark.slow
STAGES = ("bt", "genrm", "pairwise_ppo")
ADAPTED = [*(f"--config.{stage}.lora.rank=2" for stage in STAGES), "--config.genrm.lora.dropout=0.1"]
RUN = (
    "run",
    "--config",
    f"{MICRO}:short",
    *ADAPTED,
    "--config.genrm.duration=4 steps",
    "--config.sft.duration=2 steps",
)
RUN += ("--config.pairwise_ppo.duration=4 steps", "--config.stages=('sft','bt','genrm','anchors','pairwise_ppo')")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "run"
    with unoptimised():
        done = prl(*RUN, "--workdir", path)
    assert done.code == 0, done.err
    return path


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_holds_adapters_and_heads_alone(workdir, stage):
    mesh = make_mesh()
    card, model, _ = load_model(workdir / stage, mesh)
    assert (card.base, card.config.lora) == ("../sft", LoraConfig(rank=2, dropout=0.1 if stage == "genrm" else 0.0))
    decoder = model.decoder if isinstance(model, ScalarModel) else model
    adapters = [leaf for name, leaf in flatten(decoder).items() if ".lora." in name]
    assert len(adapters) == 14 and max(float(abs(leaf).max()) for leaf in adapters[1::2]) > 0
    metadata = json.loads(next((workdir / stage / "checkpoints").glob("*/model/_METADATA")).read_text())
    saved = [row["key_metadata"][0]["key"] for row in metadata["tree_metadata"].values()]
    heads = {"scalar.weight"} if stage == "bt" else set()
    assert {name.removeprefix("decoder.") for name in saved} == {n for n in flatten(decoder) if ".lora." in n} | heads
    _, base, _ = load_policy(workdir / "sft", mesh)
    for name, leaf in flatten(base).items():
        np.testing.assert_array_equal(flatten(decoder)[name], leaf)


def test_policy_critic_reference_and_judge_hold_one_frozen_decoder(workdir):
    config = json.loads((workdir / "config.json").read_text())["config"]
    assert config["pairwise_ppo"]["lora"]["rank"] == 2
    context = _context(workdir)
    setup, built = online._setup(context)
    state = built.state
    reference = flatten(setup.reference)
    for decoder in (state.policy.model, state.critic.model.decoder, setup.judges[0].model):
        assert isinstance(decoder, Decoder) and decoder.config.lora is not None
        arrays = flatten(decoder)
        assert all(arrays[name] is leaf for name, leaf in reference.items())
    one, other = (flatten(model)["blocks.mlp.up.lora.a"] for model in (state.policy.model, state.critic.model.decoder))
    assert np.abs(one - other).max() > 0.01


def test_frozen_arrays_survive_the_updates_and_get_no_optimizer_state(workdir):
    context = _context(workdir)
    setup, built = online._setup(context)
    state = built.state
    moments = {name.split(".mu.")[1] for name in flatten(state.policy.opt_state) if ".mu." in name}
    assert moments and all(".lora." in name for name in moments)
    before, started = jax.device_get(setup.reference), jax.tree.map(jnp.copy, split(state.policy.model)[0])
    updates = make_updates(setup.method, setup.schedule, *built.optimizers)
    for n in (1, 2):
        state, metrics, _, _ = iteration(setup, updates, state, np.arange(8), n, train_policy=True)
    assert metrics["grad_norm"] > 0
    for (name, leaf), was in zip(flatten(setup.reference).items(), jax.tree.leaves(before), strict=True):
        assert flatten(state.policy.model)[name] is leaf and flatten(state.critic.model.decoder)[name] is leaf
        np.testing.assert_array_equal(leaf, was)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), split(state.policy.model)[0], started)
    assert max(jax.tree.leaves(moved)) > 0


def test_a_directory_with_adapters_is_a_model_wherever_its_workdir_is(workdir, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(workdir, moved)
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "sort ba."}])
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "sort ba.", "chosen": "ab", "rejected": "ba"}])
    for place in (workdir, moved):
        out = tmp_path / f"{place.name}.jsonl"
        argv = ("--prompts", prompts, "--out", out, "--seed", 1)
        assert prl("generate", "--model", place / "pairwise_ppo", *argv).code == 0
        for judge in ("bt", "genrm"):
            scores = tmp_path / f"{place.name}_{judge}.jsonl"
            assert prl("judge", "--model", place / judge, "--data", pairs, "--out", scores).code == 0
    for name in ("{}.jsonl", "{}_bt.jsonl", "{}_genrm.jsonl"):
        assert read_rows(tmp_path / name.format("run")) == read_rows(tmp_path / name.format("moved"))


def test_an_exported_scalar_judge_judges_alike(workdir, tmp_path):
    """As a ForSequenceClassification checkpoint, its adapters merged."""
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "sort ba.", "chosen": "ab", "rejected": "ba"}])
    assert prl("export", "--workdir", workdir, "--stage", "bt", "--out", tmp_path / "judge").code == 0
    config = json.loads((tmp_path / "judge" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    found = []
    for name, judge in (("stage", workdir / "bt"), ("exported", tmp_path / "judge")):
        out = tmp_path / f"{name}.jsonl"
        assert prl("judge", "--model", judge, "--data", pairs, "--out", out).code == 0
        found.append(read_rows(out)[0]["p_12"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_another_run_starts_from_a_directory(workdir, tmp_path):
    """`init_from`, `policy` and `judge` take model directories where they take stages; adapters are merged then."""
    argv = ["run", "--config", f"{MICRO}:short", "--workdir", tmp_path / "next", "--config.stages=('bt',)"]
    argv += [f"--config.bt.init_from={workdir}/pairwise_ppo", "--config.bt.duration=1 steps"]
    with unoptimised():
        done = prl(*argv)
    assert done.code == 0, done.err
    _, started, _ = load_model(tmp_path / "next" / "bt", make_mesh())
    assert started.config.lora is None
    line = refused(*argv[:3], "--workdir", tmp_path / "no", *argv[5:6], f"--config.bt.init_from={tmp_path}/nothing")
    assert says(line, "bt.init_from", "no such directory")
    line = refused(*argv[:3], "--workdir", tmp_path / "no", "--config.stages=('sft','anchors')",
                   f"--config.anchors.judge={workdir}/sft")  # fmt: skip
    assert says(line, "anchors.judge", "holds a policy", "expected the model of a bradley_terry or generative")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sft.lora.rank=2", ["sft.lora", "sft.init_from"]),
        ("bt.lora.rank=-1", ["bt.lora.rank=-1"]),
        ("ppo.lora.rank=2 --config.ppo.lora.dropout=0.1", ["ppo.lora.dropout=0.1", "ratios"]),
        ("bt.lora.rank=2 --config.bt.lora.dropout=1.5", ["bt: lora", "dropout=1.5"]),
        ("bt.lora.rank=2 --config.bt.lora.targets=('q','w')", ["bt: lora", "'w'"]),
    ],
)
def test_mistakes_are_told_before_the_run(tmp_path, override, words):
    line = refused("run", "--config", MICRO, "--workdir", tmp_path / "run", *f"--config.{override}".split(" "))
    assert says(line, *words)


def _context(workdir: Path) -> StageContext:
    config = ConfigDict(json.loads((workdir / "config.json").read_text())["config"])
    return StageContext("pairwise_ppo", config, Workdir(workdir, config), make_mesh())
