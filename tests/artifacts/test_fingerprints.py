"""Whether a model directory is still what it was."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from prl_jax.artifacts import fingerprints
from prl_jax.artifacts.fingerprints import difference, model_files


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "README.md", "answers.jsonl"):
        (folder / name).write_text("{}")
    save_file({"w": np.arange(5000, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def test_a_copy_is_the_same_model_and_other_files_do_not_count(model, tmp_path):
    before = model_files(model)
    assert set(before) == {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}
    copy = shutil.copytree(model, tmp_path / "copy", copy_function=shutil.copyfile)
    (copy / "README.md").write_text("about")
    assert model_files(copy) == before and difference(before, model_files(copy)) == ""
    assert model_files(tmp_path / "nothing") == {}


def test_what_changed_is_named(model):
    before = model_files(model)
    (model / "chat_template.jinja").write_text("{ }")
    (model / "tokenizer.json").unlink()
    (model / "generation_config.json").write_text("{}")
    words = difference(before, model_files(model))
    assert words.startswith(
        "tokenizer.json is gone; generation_config.json is new; chat_template.jinja had 2 bytes (SHA"
    )
    assert " then, 3 bytes (SHA" in words


def test_other_weights_of_the_same_shapes_show_in_files_that_are_not_read_whole(model, monkeypatch):
    monkeypatch.setattr(fingerprints, "_WHOLE", 100)
    monkeypatch.setattr(fingerprints, "_BLOCK", 16)
    before = model_files(model)
    save_file({"w": np.arange(5000, dtype=np.float32) + 0.001}, model / "model.safetensors")
    assert difference(before, model_files(model)).startswith("model.safetensors had 20,")


def test_the_base_of_an_adapter_counts(model, tmp_path):
    for name, file, key in (
        ("peft", "adapter_config.json", "base_model_name_or_path"),
        ("stage", "model.json", "base"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / file).write_text(json.dumps({key: "../model"}))
        assert {"base/config.json", "base/model.safetensors", file} <= set(model_files(folder))
