"""Import: dtypes, what is wrong with tensors in one message, devices."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_checkpoints import CASES, reward_model, tensors, write
from running import on_virtual_devices
from safetensors.numpy import save_file

from prl_jax.errors import UserError
from prl_jax.models import Decoder, ScalarModel, from_hf
from prl_jax.models.hf.files import Tensors
from prl_jax.tree import flatten

LLAMA = CASES["llama"]


def refused(folder, *words, **options):
    with pytest.raises(UserError) as error:
        from_hf(folder, **options)
    message = str(error.value)
    assert "\n" not in message and not [word for word in words if word not in message], message
    return message


def dtypes(model):
    return {str(x.dtype) for x in jax.tree.leaves(model)}


def test_parameters_are_the_tensors_with_inputs_first(tmp_path):
    arrays, model = tensors(LLAMA), from_hf(write(tmp_path, LLAMA))
    ours = flatten(model)
    np.testing.assert_array_equal(ours["embedding"], arrays["model.embed_tokens.weight"])
    np.testing.assert_array_equal(ours["head"], arrays["lm_head.weight"].T)
    for i in range(3):
        down = arrays[f"model.layers.{i}.mlp.down_proj.weight"]
        np.testing.assert_array_equal(ours["blocks.mlp.down.weight"][i], down.T)
        norm = arrays[f"model.layers.{i}.post_attention_layernorm.weight"]
        np.testing.assert_array_equal(ours["blocks.mlp_norm.scale"][i], norm)
    assert len(ours) == 12


def test_post_norms_have_names_of_their_own(tmp_path):
    arrays, ours = tensors(CASES["gemma2"]), flatten(from_hf(write(tmp_path, CASES["gemma2"])))
    for name, theirs in (
        ("attention_norm", "input_layernorm"),
        ("attention_post_norm", "post_attention_layernorm"),
        ("mlp_norm", "pre_feedforward_layernorm"),
        ("mlp_post_norm", "post_feedforward_layernorm"),
    ):
        np.testing.assert_array_equal(ours[f"blocks.{name}.scale"][1], arrays[f"model.layers.1.{theirs}.weight"])


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_dtypes_are_the_checkpoints_or_what_is_asked_for(stored, dtype, tmp_path):
    model = from_hf(write(tmp_path, LLAMA, stored), dtype=dtype)
    expected = dtype or {"float16": "float32"}.get(stored, stored)
    assert dtypes(model) == {expected} and model.config.param_dtype == model.config.dtype == expected
    array = tensors(LLAMA)["model.layers.2.mlp.up_proj.weight"].astype(stored).astype(expected)
    np.testing.assert_array_equal(flatten(model)["blocks.mlp.up.weight"][2], array.T)
    assert from_hf(tmp_path, dtype=dtype, compute_dtype="bfloat16").config.dtype == "bfloat16"


def test_several_dtypes_become_float32(tmp_path):
    norm = tensors(LLAMA)["model.norm.weight"]
    assert dtypes(from_hf(write(tmp_path, LLAMA, "bfloat16", **{"model.norm.weight": norm}))) == {"float32"}


def test_unknown_dtypes_are_refused(tmp_path):
    write(tmp_path, LLAMA)
    refused(tmp_path, "dtype='float16'", "'bfloat16'", dtype="float16")
    refused(tmp_path, "dtype='int8'", compute_dtype="int8")
    eight_bits = {"model.layers.1.mlp.up_proj.weight": np.zeros((48, 32), np.int8)}
    refused(write(tmp_path, LLAMA, **eight_bits), "quantised", "save it dequantised", "layers.1.mlp.up_proj.weight I8")
    whole = {"model.layers.1.mlp.up_proj.weight": np.zeros((48, 32), np.int64)}
    refused(write(tmp_path, LLAMA, **whole), "another dtype than F32, BF16, F16", "layers.1.mlp.up_proj.weight I64")


def test_all_that_is_wrong_with_tensors_is_one_message(tmp_path):
    changed = {
        "model.norm.weight": None,
        "model.layers.1.self_attn.q_proj.weight": None,
        "model.layers.0.self_attn.k_proj.bias": np.zeros(32, np.float32),
        "model.layers.2.mlp.down_proj.weight": np.zeros((48, 32), np.float32),
        "lm_head.weight": None,
    }
    message = refused(write(tmp_path, LLAMA, **changed), str(tmp_path), "config.json")
    missing, extra, shape = message.split("; ")
    assert all(name in missing for name, array in changed.items() if array is None) and "missing: " in missing
    assert extra == "not expected: model.layers.0.self_attn.k_proj.bias"
    assert shape.endswith("of another shape: model.layers.2.mlp.down_proj.weight [48, 32] (expected [32, 48])")
    many = refused(write(tmp_path, LLAMA, **dict.fromkeys(list(tensors(LLAMA))[:-1])), "missing: ", "and 9 more")
    assert many.count("model.") == 20


def test_tied_models_may_store_the_output_embedding_as_well(tmp_path):
    tied = CASES["llama-tied"]
    table = tensors(tied)["model.embed_tokens.weight"]
    plain = from_hf(write(tmp_path / "one", tied))
    twice = from_hf(write(tmp_path / "two", tied, **{"lm_head.weight": table}))
    assert flatten(plain).keys() == flatten(twice).keys() and "head" not in flatten(twice)
    other = table.copy()
    other[-1, -1] += 1
    message = refused(write(tmp_path / "three", tied, **{"lm_head.weight": other}), "not expected: lm_head.weight")
    assert message.endswith("tie_word_embeddings is true, but lm_head.weight differs from model.embed_tokens.weight")
    refused(write(tmp_path / "four", tied, **{"lm_head.weight": table[:-1]}), "lm_head.weight differs")


def test_constants_of_early_checkpoints_are_left_out(tmp_path):
    frequencies = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for i in range(3)}
    assert dtypes(from_hf(write(tmp_path, LLAMA, "bfloat16", **frequencies))) == {"bfloat16"}


@pytest.mark.parametrize("case", ["llama", "llama-tied", "gemma3"])
def test_reward_models_become_scalar_models(case, tmp_path):
    config = reward_model(CASES[case])
    model = from_hf(write(tmp_path, config, "bfloat16"))
    assert isinstance(model, ScalarModel) and model.scalar.bias is None and "head" not in flatten(model.decoder)
    assert model.scalar.weight[...].dtype == jnp.float32 and dtypes(model.decoder) == {"bfloat16"}
    score = tensors(config)["score.weight"]
    assert score.shape == (1, 32)
    np.testing.assert_array_equal(model.scalar.weight[...], score[0].astype(jnp.bfloat16).astype(np.float32))
    refused(write(tmp_path, config, **{"score.weight": np.zeros((2, 32), np.float32)}), "score.weight [2, 32]")
    refused(write(tmp_path, config, **{"score.bias": np.zeros(1, np.float32)}), "not expected: score.bias")
    assert isinstance(from_hf(write(tmp_path, CASES[case])), Decoder)


def test_slices_are_read_without_the_rest(tmp_path):
    array = np.arange(7 * 5, dtype=np.float32).reshape(7, 5).astype(jnp.bfloat16)
    arrays = {"a": array, "b": np.arange(6, dtype=np.float16), "c": np.array(3.0, np.float32)}
    save_file(arrays, tmp_path / "model.safetensors")
    with Tensors(tmp_path) as read:
        assert {name: read.index[name].shape for name in arrays} == {"a": (7, 5), "b": (6,), "c": ()}
        for index in ((), (slice(2, 5),), (slice(None), slice(1, 3)), (slice(3, 7), slice(4, 5)), (slice(0, 7),)):
            np.testing.assert_array_equal(read.read("a", index), array[index])
            assert read.read("a", index).dtype == jnp.bfloat16
        np.testing.assert_array_equal(read.read("b", (slice(4, None),)), [4, 5])
        np.testing.assert_array_equal(read.read("c"), 3.0)


def test_columns_are_read_a_few_rows_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("prl_jax.models.hf.files._CHUNK", 3 * 5 * 4)
    array = np.arange(7 * 5, dtype=np.float32).reshape(7, 5)
    save_file({"a": array}, tmp_path / "model.safetensors")
    with Tensors(tmp_path) as read:
        np.testing.assert_array_equal(read.read("a", (slice(1, 7), slice(2, 4))), array[1:7, 2:4])


def test_broken_files_are_named(tmp_path):
    weights = write(tmp_path, LLAMA) / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (b"", whole[:4], whole[:100], whole[:-1], b"\xff" * 8 + whole[8:], whole[:8] + b"[" + whole[9:]):
        weights.write_bytes(broken)
        refused(tmp_path, str(weights), "not a whole safetensors file")
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}).encode()
    weights.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    refused(tmp_path, "a has 8 bytes, expected 16")


def test_shards_that_are_not_there_are_named(tmp_path):
    write(tmp_path, LLAMA)
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {"lm_head.weight": "model-2.safetensors", "model.norm.weight": "model.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map}))
    refused(tmp_path, str(index), "model-2.safetensors")
    for content in ("{", "{}", '{"weight_map": {"a": "../model.safetensors"}}', '{"weight_map": {"a": 1}}'):
        index.write_text(content)
        refused(tmp_path, str(index), "cannot be read" if content == "{" else "not an index")


def test_pickled_and_absent_weights_are_refused(tmp_path):
    write(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, "no weights, expected model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(tmp_path, "pytorch_model.bin", "pickled", "save_pretrained")
    refused(tmp_path / "nowhere", "no config.json")


def test_eight_devices_hold_their_shards():
    assert on_virtual_devices(Path(__file__).parents[2] / "hf_mesh.py") == "equal\n"


def test_an_index_has_to_belong_to_its_files(tmp_path):
    write(tmp_path, LLAMA)
    index, weights = tmp_path / "model.safetensors.index.json", tmp_path / "model.safetensors"
    names = list(tensors(LLAMA))

    def map_to(files: dict[str, str]) -> None:
        index.write_text(json.dumps({"weight_map": files}))

    # One that is left from an earlier save in several files does not count, as in transformers.
    map_to({name: "model-00001-of-00002.safetensors" for name in names})
    assert from_hf(tmp_path).config.layers == 3
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(weights.read_bytes())
    refused(tmp_path, "two sets of weights")
    weights.unlink()
    assert from_hf(tmp_path).config.layers == 3
    map_to({name: "model-00001-of-00002.safetensors" for name in [*names, "model.layers.3.mlp.up_proj.weight"]})
    refused(tmp_path, str(index), "do not hold: model.layers.3.mlp.up_proj.weight", "different saves")
    map_to({name: "model-00001-of-00002.safetensors" for name in names[1:]})
    refused(tmp_path, str(index), f"does not name tensors: {names[0]}")
    first = (tmp_path / "model-00001-of-00002.safetensors").read_bytes()
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(first)
    map_to({name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)})
    refused(tmp_path, "which model-00001-of-00002.safetensors holds too")


def test_layers_are_held_against_the_weights_before_anything_is_built(tmp_path, monkeypatch):
    write(tmp_path, LLAMA)
    monkeypatch.setattr("prl_jax.models.hf.load.abstract", lambda *_: pytest.fail("the model was built"))
    for layers in (2, 4000):
        (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": layers}))
        refused(tmp_path, f"num_hidden_layers={layers}, but the weights have 3 layers")
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 10**9}))
    refused(tmp_path, "num_hidden_layers=1000000000 (expected at most")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_counted(tmp_path, dtype):
    norm, up = (np.array(tensors(LLAMA)[name]) for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"))
    norm[3], up[0, :2], up[1, 1] = np.nan, np.inf, -np.inf
    changed = {"model.norm.weight": norm.astype(dtype), "model.layers.1.mlp.up_proj.weight": up.astype(dtype)}
    found = ("model.norm.weight (1)", "model.layers.1.mlp.up_proj.weight (3)")
    refused(write(tmp_path, LLAMA, dtype, **changed), "4 weights are not finite", *found)


def test_json_that_nests_without_end_is_one_line(tmp_path):
    write(tmp_path, LLAMA)
    for name in ("config.json", "model.safetensors.index.json"):
        (tmp_path / name).write_text("[" * 100_000)
        refused(tmp_path, name, "nested more than")
        (tmp_path / name).write_text(json.dumps(LLAMA) if name == "config.json" else "{}")
