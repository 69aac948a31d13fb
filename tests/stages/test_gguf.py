"""A GGUF file wherever a model is named: generation, training from it, adapters on it."""

import json
from pathlib import Path

import chat_families
import gguf_files
import hf_checkpoints
import numpy as np
import pytest
from running import MICRO, prl, read_rows, refused, says, write_rows

from prl_jax.artifacts.cards import read_card
from prl_jax.artifacts.fingerprints import model_files
from prl_jax.artifacts.models import load_decoder
from prl_jax.inputs.checks import check_config
from prl_jax.models import Decoder
from prl_jax.runs.context import StageContext, first_model, stage_tokenizer
from prl_jax.runs.models import origin_of
from prl_jax.runs.workdir import Workdir
from prl_jax.sharding import make_mesh
from prl_jax.stages import config as c
from prl_jax.text.tokenizer import load_tokenizer
from prl_jax.tree import flatten

CONFIG = {**hf_checkpoints.CASES["qwen3"], "max_position_embeddings": 512, "eos_token_id": 259}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """The same model as a Hugging Face directory and as a GGUF file."""
    folder = tmp_path_factory.mktemp("models")
    directory = chat_families.write_tokenizer(folder / "hf", chat_families.FAMILIES["qwen3"])
    tokens = gguf_files.tokens_of(directory, "qwen2")
    rows = len(tokens["tokenizer.ggml.tokens"])
    config = {**CONFIG, "vocab_size": rows, "eos_token_id": tokens["tokenizer.ggml.eos_token_id"]}
    hf_checkpoints.write(directory, config)
    return directory, gguf_files.write(folder / "model.gguf", config, tokens=tokens)


def decoder(model: Path) -> Decoder:
    """A model as a stage loads it, its adapters merged."""
    return load_decoder(model, make_mesh())


def same(one: Decoder, other: Decoder, **close: float) -> bool:
    """Whether two decoders are of one config and have the same numbers, or close ones."""
    pairs = [(flatten(one)[name], array) for name, array in flatten(other).items()]
    return one.config == other.config and all(np.allclose(a, b, **{"rtol": 0, "atol": 0, **close}) for a, b in pairs)


def test_a_file_generates_what_the_directory_does(models, tmp_path):
    directory, file = models
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "hi"}, {"prompt": "hello bye"}])
    argv = ("--prompts", prompts, "--out", tmp_path / "out.jsonl", "--max_new_tokens", 4)
    assert prl("generate", "--model", file, *argv).code == 0
    assert all(np.isfinite(row["logp"]) for row in read_rows(tmp_path / "out.jsonl"))
    assert same(decoder(file), decoder(directory))
    card, theirs = read_card(file), read_card(directory)
    assert (card.decoder, card.context, card.stop_ids) == (theirs.decoder, theirs.context, theirs.stop_ids)
    assert (card.max_prompt, card.max_response, card.kind) == (theirs.max_prompt, theirs.max_response, "policy")
    assert list(model_files(file)) == ["model.gguf"] and model_files(file.with_name("nowhere.gguf")) == {}


@pytest.mark.long
def test_a_stage_trains_from_a_file_and_its_adapters_name_it(models, tmp_path):
    _, file = models
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"hi {i}", "response": "hello"} for i in range(8)])
    sources = [f"--config.sft.{key}.{k}" for key in ("data", "validation") for k in ("kind=jsonl", f"path={rows}")]
    own = ("--config.stages=('sft',)", f"--config.sft.init_from={file}", "--config.sft.lora.rank=2")
    lengths = ("--config.sft.max_prompt=40", "--config.sft.max_response=8", "--config.sft.duration=1 steps")
    run = ("run", "--config", MICRO, "--workdir", tmp_path / "run", *own, *lengths, *sources)
    done = prl(*run)
    assert done.code == 0, done.err
    stage = tmp_path / "run" / "sft"
    card = read_card(stage)
    assert card.base == str(file) and card.source["model_type"] == "qwen3"
    expected = decoder(stage)
    assert not same(expected, decoder(file))
    assert prl("export", "--workdir", tmp_path / "run", "--stage", "sft", "--out", tmp_path / "whole").code == 0
    adapters = ("--out", tmp_path / "adapters", "--adapters")
    assert prl("export", "--workdir", tmp_path / "run", "--stage", "sft", *adapters).code == 0
    adapter = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(file)
    for name in ("whole", "adapters"):
        assert same(decoder(tmp_path / name), expected, atol=1e-6)
    # A file that has changed is another model.
    data = file.read_bytes()
    file.write_bytes(data[:-4] + b"\0\0\0\0")
    assert says(refused(*run), "model.gguf", "has changed since")
    file.write_bytes(data)


def test_a_config_names_a_file_where_it_could_name_a_stage(models):
    _, file = models
    config = c.build(dict(sft=c.sft(init_from="model.gguf", lora=dict(rank=2))))
    context = StageContext("sft", config, Workdir(Path("run"), config), make_mesh())
    assert context.stage("model.gguf") == Path("model.gguf") and first_model(context) == "model.gguf"
    config = c.build(dict(sft=c.sft(init_from=str(file), lora=dict(rank=2))))
    context = StageContext("sft", config, Workdir(file.parent / "run", config), make_mesh())
    check_config(config)
    assert origin_of(context)["base"] == str(file) and origin_of(context)["source"]["model_type"] == "qwen3"
    assert stage_tokenizer(context).encode_chat((("user", "hi"),)) == load_tokenizer(file).encode_chat(
        (("user", "hi"),)
    )


def test_what_stands_where_a_model_should_is_one_line(models, tmp_path):
    _, file = models
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "hi"}])
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "hi", "chosen": "a", "rejected": "b"}])
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:-1])
    (tmp_path / "text.gguf").write_text("not a model at all")
    cases = {
        "empty.gguf": ("not a GGUF file: begins with b''",),
        "text.gguf": ("not a GGUF file: begins with b'not '",),
        "cut.gguf": ("not a whole GGUF file", "ends at byte"),
        "nowhere.gguf": ("cannot be read (No such file or directory)",),
    }
    for name, words in cases.items():
        argv = ("--prompts", prompts, "--out", tmp_path / "x.jsonl")
        assert says(refused("generate", "--model", tmp_path / name, *argv), name, *words)
    line = refused("judge", "--judge", file, "--data", pairs, "--out", tmp_path / "x.jsonl")
    assert says(line, "model.gguf: holds a policy, expected a judge")
    own = ("--config.stages=('sft',)", "--config.sft.init_from=cut.gguf")
    assert says(refused("run", "--config", MICRO, "--workdir", tmp_path / "run", *own), "sft.init_from", "cut.gguf")
    line = refused("generate", "--model", file, "--prompts", prompts, "--out", file, "--overwrite")
    assert says(line, "is inside the model that is read")
