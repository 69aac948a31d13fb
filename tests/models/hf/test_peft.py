"""Adapters in PEFT's format: out and in again, and what is refused."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_decoder, on_mesh, one_device, random_tokens
from safetensors.numpy import load_file, save_file

from prl_jax.errors import UserError
from prl_jax.models import LoraConfig, split, with_adapters
from prl_jax.models.hf.peft import CONFIG, WEIGHTS, adapter_base, load_adapters, save_adapters
from prl_jax.models.lora import combine
from prl_jax.tree import flatten

LORA = LoraConfig(rank=3, alpha=6.0, targets=("q", "down"))


@pytest.fixture(scope="module")
def base():
    return on_mesh(make_decoder(), one_device())


@pytest.fixture(scope="module")
def adapted(base):
    decoder = with_adapters(base, LORA, one_device(), key=jax.random.key(1))
    trained, frozen = split(decoder)
    return combine(jax.tree.map(lambda x: x + 0.1, trained), frozen)


@pytest.fixture
def saved(adapted, tmp_path):
    save_adapters(adapted, tmp_path, base="some/model")
    return tmp_path


def test_out_and_in_again_is_the_same(base, adapted, saved):
    loaded = load_adapters(base, saved, one_device())
    assert loaded.config == adapted.config
    for name, leaf in flatten(adapted).items():
        np.testing.assert_array_equal(flatten(loaded)[name], leaf, err_msg=name)
    assert flatten(loaded)["embedding"] is flatten(base)["embedding"]


def test_the_file_says_what_peft_computes(base, adapted, saved):
    """`W x + (alpha / r) B A x` with PEFT's names and shapes, in plain numpy on one layer's query."""
    tensors, config = load_file(saved / WEIGHTS), json.loads((saved / CONFIG).read_text())
    assert len(tensors) == 2 * 2 * 2 and config["target_modules"] == ["q_proj", "down_proj"]
    name = "base_model.model.model.layers.1.self_attn.q_proj"
    a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
    assert a.shape == (3, 16) and b.shape == (16, 3)
    x = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    weight = np.asarray(base.blocks.attention.q.weight[...])[1]
    expected = x @ weight + config["lora_alpha"] / config["r"] * (x @ a.T @ b.T)
    layer = jax.tree.map(lambda leaf: leaf[1], adapted.blocks.attention.q)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(adapted(jnp.asarray(random_tokens(0, 1, 4))) - base(jnp.asarray(random_tokens(0, 1, 4)))).max() > 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"bias": "all"}, "bias='all'"),
        ({"use_dora": True}, "use_dora=True.*merge_and_unload"),
        ({"target_modules": ".*_proj"}, "target_modules .*all-linear.*merge_and_unload"),
        ({"r": 0}, "r=0, lora_alpha=6.0, expected a positive r"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan, expected .* a finite"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"target_modules": ["q_proj", "c_attn"]}, "'c_attn'.*supported"),
        ({"target_modules": "all-linear"}, "k_proj.lora_A.weight is missing"),
        ({"target_modules": ["q_proj"]}, "down_proj.lora_A.weight has no place"),
        ({"r": 2}, r"has shape \(3, 16\), expected \(2, 16\)"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(base, saved, change, words):
    config = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=words):
        load_adapters(base, saved, one_device())


def test_rank_stabilised_adapters_and_those_of_every_linear_map_are_read(base, saved, tmp_path):
    config = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps({**config, "use_rslora": True}))
    assert load_adapters(base, saved, one_device()).config.lora.scale == pytest.approx(6 / 3**0.5)
    every = with_adapters(base, LoraConfig(rank=3), one_device(), key=jax.random.key(1))
    save_adapters(every, tmp_path / "every", base="some/model")
    config = json.loads((tmp_path / "every" / CONFIG).read_text())
    (tmp_path / "every" / CONFIG).write_text(json.dumps({**config, "target_modules": "all-linear"}))
    assert load_adapters(base, tmp_path / "every", one_device()).config.lora == every.config.lora


def test_a_weight_that_is_not_finite_is_named(base, saved):
    tensors = load_file(saved / WEIGHTS)
    name = next(iter(tensors))
    tensors[name] = np.where(np.arange(tensors[name].size).reshape(tensors[name].shape) < 2, np.nan, tensors[name])
    save_file(tensors, saved / WEIGHTS)
    with pytest.raises(UserError, match=rf"{WEIGHTS}: 2 weights are not finite \(NaN or infinity\): {name} \(2\)$"):
        load_adapters(base, saved, one_device())


@pytest.mark.parametrize("inert", [{"lora_dropout": 0.1}, {"use_dora": False}, {"revision": None}])
def test_what_has_no_effect_is_accepted(base, saved, inert):
    config = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps({**config, **inert}))
    load_adapters(base, saved, one_device())


def test_a_file_of_the_newest_peft_with_all_its_defaults_is_accepted(base, saved):
    """Its keys are those that `LoraConfig.to_dict` of PEFT 0.21.2 writes. What a switch that is off has no use for is
    idle, and counts again where the switch is on."""
    newest = json.loads((Path(__file__).parent / "peft_0_21_2.json").read_text())
    config = json.loads((saved / CONFIG).read_text())
    kept = {key: config[key] for key in ("r", "lora_alpha", "target_modules", "base_model_name_or_path")}
    (saved / CONFIG).write_text(json.dumps({**newest, **kept}))
    assert load_adapters(base, saved, one_device()).config.lora == LORA
    for change in ({"use_qalora": True}, {"qalora_group_size": 8, "use_qalora": True}, {"lora_bias": True}):
        (saved / CONFIG).write_text(json.dumps({**newest, **kept, **change}))
        with pytest.raises(UserError, match="is not supported"):
            load_adapters(base, saved, one_device())


def test_missing_tensors_and_files_are_named(base, saved, tmp_path):
    tensors = load_file(saved / WEIGHTS)
    gone = next(iter(tensors))
    save_file({k: v for k, v in tensors.items() if k != gone}, saved / WEIGHTS)
    with pytest.raises(UserError, match=f"{gone} is missing"):
        load_adapters(base, saved, one_device())
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (saved / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"0")
    with pytest.raises(UserError, match="adapter_model.safetensors: cannot be read"):
        load_adapters(base, saved, one_device())
    (saved / WEIGHTS).rename(saved / "adapter_model.bin")
    with pytest.raises(UserError, match="adapter_model.bin: pickled weights can run code"):
        load_adapters(base, saved, one_device())
    (saved / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(UserError, match="adapter_model.safetensors: cannot be read"):
        load_adapters(base, saved, one_device())
    with pytest.raises(UserError, match="adapter_config.json: cannot be read"):
        load_adapters(base, tmp_path / "nothing", one_device())
    with pytest.raises(UserError, match="no adapters to save"):
        save_adapters(base, tmp_path / "none", base="x")


def test_a_base_that_leads_back_to_its_adapters_is_refused(tmp_path):
    for name, base in (("one", "../two"), ("two", "../one"), ("itself", "."), ("none", None), ("top", "../fine")):
        (tmp_path / name).mkdir()
        (tmp_path / name / CONFIG).write_text(json.dumps({"base_model_name_or_path": base}))
    (tmp_path / "fine").mkdir()
    assert adapter_base(tmp_path / "top") == tmp_path / "top" / "../fine"
    for name in ("one", "itself"):
        with pytest.raises(UserError, match="leads back"):
            adapter_base(tmp_path / name)
    with pytest.raises(UserError, match="base_model_name_or_path=None is no directory here"):
        adapter_base(tmp_path / "none")


def test_adapters_of_another_task_are_refused(base, saved):
    values = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps({**values, "task_type": "SEQ_CLS"}))
    with pytest.raises(UserError, match="task_type='SEQ_CLS' is not supported"):
        load_adapters(base, saved, one_device())
