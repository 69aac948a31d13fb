"""The README's three commands for one's own model, with a tiny checkpoint of each family."""

import json
from pathlib import Path

import chat_families
import hf_checkpoints
import numpy as np
import pytest
from running import ROOT, prl, read_rows, refused, says, unoptimised, write_rows
from safetensors.numpy import load_file

from prl_jax.artifacts.models import load_model
from prl_jax.models import from_hf, merge
from prl_jax.models.hf.peft import load_adapters
from prl_jax.sharding import make_mesh
from prl_jax.tree import flatten

pytestmark = pytest.mark.slow
OWN = ROOT / "experiments" / "own_model.py"
TOKENIZERS = {
    "llama": "llama3",
    "llama-tied": "smollm",
    "mistral": "mistral",
    "qwen2": "qwen2.5",
    "qwen3": "qwen3",
    "gemma2": "gemma",
    "gemma3": "gemma",
}
SMALL = (
    "stages=('genrm','anchors','pairwise_ppo')",
    "genrm.duration=1 steps",
    "genrm.batch_size=4",
    "genrm.accumulate=2",
    "genrm.max_length=400",
    "genrm.data.skip=4",
    "genrm.validation.limit=4",
    "anchors.prompts.skip=4",
    "pairwise_ppo.prompts.skip=4",
    "pairwise_ppo.prompts_per_step=4",
    "pairwise_ppo.duration=1 steps",
    "pairwise_ppo.critic.warmup=0 steps",
    "pairwise_ppo.optimizer.learning_rate=0.03",
    "pairwise_ppo.regulariser.entropy=0.1",  # moves the policy where all rewards happen to be equal
    "pairwise_ppo.accumulate=2",
    "pairwise_ppo.evaluation.every=0 steps",
    "huggingface.max_prompt=60",
    "huggingface.max_response=4",
    "model.remat=False",
)


def write_model(folder: Path, family: str) -> Path:
    """A tiny checkpoint in bfloat16 with the family's kind of tokenizer."""
    tokenizer = chat_families.write_tokenizer(folder, chat_families.FAMILIES[TOKENIZERS[family]])
    words = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]) + 16
    config = {**hf_checkpoints.CASES[family], "vocab_size": words, "max_position_embeddings": 512}
    return hf_checkpoints.write(folder, config, "bfloat16")


# Two that differ most from each other; tests/models/hf and tests/text go through all of them.
MARKS = {"qwen3": (), "gemma3": pytest.mark.long}
every_family = pytest.mark.parametrize(
    "run",
    [pytest.param(name, marks=MARKS.get(name, pytest.mark.nightly)) for name in TOKENIZERS],
    indirect=True,
)
one_family = pytest.mark.parametrize("run", ["qwen3"], indirect=True)


@pytest.fixture(scope="module")
def run(request, tmp_path_factory) -> tuple[Path, Path]:
    """The model and the workdir of the first command."""
    folder = tmp_path_factory.mktemp(request.param)
    model = write_model(folder / "model", request.param)
    rows = [{"prompt": f"hi {i}", "chosen": "hello", "rejected": "bye bye"} for i in range(12)]
    pairs = write_rows(folder / "pairs.jsonl", rows)
    overrides = [f"--config.{override}" for override in SMALL]
    with unoptimised():
        done = prl("run", "--config", f"{OWN}:{model},{pairs}", "--workdir", folder / "own", *overrides)
    assert done.code == 0, done.err
    return model, folder / "own"


@every_family
def test_generate_and_export_as_the_readme_says(run, tmp_path):
    model, workdir = run
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "hi"}, {"prompt": "bye"}])
    greedy = ("--temperature", 0, "--max_new_tokens", 4)
    stage, exported = tmp_path / "stage.jsonl", tmp_path / "exported.jsonl"
    assert prl("generate", "--model", workdir / "pairwise_ppo", "--prompts", prompts, "--out", stage, *greedy).code == 0
    assert prl("export", "--workdir", workdir, "--stage", "pairwise_ppo", "--out", tmp_path / "out").code == 0
    assert prl("generate", "--model", tmp_path / "out", "--prompts", prompts, "--out", exported, *greedy).code == 0
    assert read_rows(stage) == read_rows(exported)
    # What comes out is what went in, in the same form, with what was trained added to it.
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    assert {name: (x.shape, x.dtype) for name, x in before.items()} == {
        name: (x.shape, x.dtype) for name, x in after.items()
    }
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed and all("_proj.weight" in name for name in changed)
    values = [json.loads((folder / "config.json").read_text()) for folder in (model, tmp_path / "out")]
    assert values[0] == {key: values[1][key] for key in values[0]}
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@one_family
def test_adapters_alone_give_the_same_policy(run, tmp_path):
    model, workdir = run
    argv = ("export", "--workdir", workdir, "--stage", "pairwise_ppo", "--adapters", "--out", tmp_path / "adapters")
    assert prl(*argv).code == 0
    mesh = make_mesh()
    loaded = load_adapters(from_hf(model, mesh=mesh), tmp_path / "adapters", mesh)
    _, trained, _ = load_model(workdir / "pairwise_ppo", mesh)
    for (name, one), other in zip(flatten(loaded).items(), flatten(trained).values(), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)
    assert merge(loaded).config.lora is None
    adapter = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(model) and adapter["r"] == 16
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "hi"}])
    for name, directory in (("stage", workdir / "pairwise_ppo"), ("peft", tmp_path / "adapters")):
        argv = ("--prompts", prompts, "--out", tmp_path / f"{name}.jsonl", "--temperature", 0, "--max_new_tokens", 4)
        assert prl("generate", "--model", directory, *argv).code == 0
    one, other = (read_rows(tmp_path / f"{name}.jsonl")[0] for name in ("stage", "peft"))
    assert one["response"] == other["response"] and abs(one["logp"] - other["logp"]) < 1e-4
    adapter["base_model_name_or_path"] = "somewhere/else"
    (tmp_path / "adapters" / "adapter_config.json").write_text(json.dumps(adapter))
    line = refused("generate", "--model", tmp_path / "adapters", "--prompts", prompts, "--out", tmp_path / "x.jsonl")
    assert says(line, "adapter_config.json", "'somewhere/else' is no directory here")


@one_family
def test_a_judge_is_exported_as_a_judge(run, tmp_path):
    _, workdir = run
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "hi", "chosen": "hello", "rejected": "bye"}])
    assert prl("export", "--workdir", workdir, "--stage", "genrm", "--out", tmp_path / "judge").code == 0
    found = []
    for name, judge in (("stage", workdir / "genrm"), ("exported", tmp_path / "judge")):
        out = tmp_path / f"{name}.jsonl"
        assert prl("judge", "--model", judge, "--data", pairs, "--out", out).code == 0
        found.append(read_rows(out)[0]["p_chosen"])
    # bfloat16 weights round what the adapters add.
    np.testing.assert_allclose(found[0], found[1], atol=0.02)


def test_what_is_wrong_with_a_checkpoint_is_told_before_the_run(tmp_path):
    model = write_model(tmp_path / "model", "qwen3")
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "hi", "chosen": "a", "rejected": "b"}] * 200)
    argv = ("run", "--workdir", tmp_path / "own", "--config")
    assert says(refused(*argv, f"{OWN}:{tmp_path}/nothing,{pairs}"), "init_from", "no such directory")
    (model / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    assert says(refused(*argv, f"{OWN}:{model},{pairs}"), "model_type", "mamba", "supported")
    assert says(refused(*argv, f"{OWN}:{model}"), "expected MODEL,PAIRS")
    assert not (tmp_path / "own").exists()
