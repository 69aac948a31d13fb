"""Import of GGUF files: the same model as that of the checkpoint that they were made of."""

import gguf
import gguf_files
import hf_checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf_files import CASES

from prl_jax.errors import UserError
from prl_jax.gguf_file import Stored, is_gguf, read_header
from prl_jax.models import from_hf
from prl_jax.models.gguf import check_gguf, from_gguf
from prl_jax.models.gguf import tensors as gguf_tensors
from prl_jax.models.gguf.rope import frequency_factors, scaling_of
from prl_jax.models.hf import decoder_config
from prl_jax.models.rope import RopeScaling
from prl_jax.tree import flatten

LLAMA = CASES["llama"]
# Rows of 64 and 32 are whole blocks of the types that are quantised here.
BLOCKS = {**LLAMA, "hidden_size": 64, "intermediate_size": 64}
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def refused(path, *words):
    with pytest.raises(UserError) as error:
        from_gguf(path)
    message = str(error.value)
    assert "\n" not in message and not [word for word in words if word not in message], message
    return message


@pytest.mark.parametrize("case", CASES)
def test_a_file_gives_the_checkpoints_model(case, tmp_path):
    config = CASES[case]
    plain = from_hf(hf_checkpoints.write(tmp_path / "hf", config))
    ours = from_gguf(gguf_files.write(tmp_path / "model.gguf", config))
    check_gguf(tmp_path / "model.gguf")
    assert ours.config == plain.config
    expected = flatten(plain)
    for name, array in flatten(ours).items():
        offset = plain.config.norm_offset if name.endswith("scale") else 0.0
        # A norm that was stored plus one gives the same product, whatever its last bit was.
        np.testing.assert_array_equal(array + offset, expected[name] + offset, err_msg=name)


@pytest.mark.parametrize("kind", ["F16", "BF16", *QUANTISED])
def test_dequantised_values_are_exact(kind, tmp_path):
    ours = flatten(from_gguf(gguf_files.write(tmp_path / "model.gguf", BLOCKS, kind), dtype="float32"))
    arrays = hf_checkpoints.tensors(BLOCKS)
    up, down = arrays["model.layers.1.mlp.up_proj.weight"], arrays["model.layers.1.mlp.down_proj.weight"]
    np.testing.assert_array_equal(ours["blocks.mlp.up.weight"][1], gguf_files.decoded(up, kind).T)
    np.testing.assert_array_equal(ours["blocks.mlp.down.weight"][1], gguf_files.decoded(down, kind).T)
    np.testing.assert_array_equal(ours["embedding"], gguf_files.decoded(arrays["model.embed_tokens.weight"], kind))
    # Whole rows are permuted, so that blocks stay what they are.
    query = arrays["model.layers.2.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(ours["blocks.attention.q.weight"][2], gguf_files.decoded(query, kind).T)
    np.testing.assert_array_equal(ours["norm.scale"], arrays["model.norm.weight"])


def test_dtypes_are_those_of_the_matrices_or_what_is_asked_for(tmp_path):
    for kind, expected in (("F32", "float32"), ("F16", "float32"), ("BF16", "bfloat16"), ("Q8_0", "float32")):
        model = from_gguf(gguf_files.write(tmp_path / f"{kind}.gguf", BLOCKS, kind))
        assert {str(x.dtype) for x in jax.tree.leaves(model)} == {expected} and model.config.dtype == expected
    model = from_gguf(tmp_path / "Q8_0.gguf", dtype="bfloat16", compute_dtype="float32", unused=((39, 40),))
    assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype("bfloat16")}
    assert (model.config.dtype, model.config.unused) == ("float32", ((39, 40),))


def test_every_type_that_the_library_dequantises_is_read(tmp_path):
    readable = [kind for kind in GGMLQuantizationType if gguf_tensors.readable(kind.name)]
    assert len(readable) >= 26 and {"Q4_K", "Q6_K", "IQ4_XS", "IQ1_M", "TQ1_0", "MXFP4"} <= {k.name for k in readable}
    for kind in readable:
        block, width = gguf.GGML_QUANT_SIZES[kind]
        data = np.random.default_rng(kind).integers(0, 60, (5, 256 // block * width), np.uint8)  # finite scales
        path = tmp_path / kind.name
        path.write_bytes(b"12345" + data.tobytes())
        stored = Stored(kind.name, (5, 256), 5, data.shape[1])
        with open(path, "rb", buffering=0) as file:
            read = gguf_tensors.read_rows(file, path, stored, 1, 4)
        expected = data[1:4].view(jnp.bfloat16) if kind.name == "BF16" else gguf.dequantize(data[1:4], kind)
        np.testing.assert_array_equal(read.astype(np.float32), expected.astype(np.float32))
    assert not gguf_tensors.readable("Q8_K") and not gguf_tensors.readable("I32")


@pytest.mark.parametrize("case", ["llama-biases", "gemma2"])
def test_slices_are_read_without_the_rest(case, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_tensors, "_CHUNK", 3 * 32)
    config, arrays = CASES[case], hf_checkpoints.tensors(CASES[case])
    path = gguf_files.write(tmp_path / "model.gguf", config)
    ours = decoder_config(config, "test")
    with gguf_tensors.GGUFTensors(read_header(path), config["model_type"], ours, list(arrays)) as read:
        assert read.index.keys() == arrays.keys() and set(read.unknown) <= {"rope_freqs.weight"}
        for name in ("model.layers.1.self_attn.k_proj.weight", "model.layers.2.self_attn.q_proj.weight"):
            for index in ((), (slice(2, 5),), (slice(None), slice(1, 3)), (slice(9, 16), slice(4, 5)), (slice(0, 8),)):
                np.testing.assert_array_equal(read.read(name, index), arrays[name][index])
        vector = "model.layers.0.input_layernorm.weight"
        np.testing.assert_allclose(read.read(vector, (slice(3, 9),)), arrays[vector][3:9], atol=1e-7)
        if case == "llama-biases":
            bias = "model.layers.0.self_attn.q_proj.bias"
            np.testing.assert_array_equal(read.read(bias, (slice(3, 9),)), arrays[bias][3:9])


@pytest.mark.parametrize("head_dim, theta, context, factor", [
    (64, 5e5, 8192, 32.0), (128, 5e5, 8192, 8.0), (32, 1e4, 64, 8.0), (8, 1e4, 64, 4.0), (16, 1e4, 1000, 2.5),
])  # fmt: skip
def test_factors_of_llama_3_tell_its_scaling(head_dim, theta, context, factor):
    scaling = RopeScaling("llama3", factor, context, 1.0, 4.0)
    factors = frequency_factors(scaling, head_dim, theta)
    found = scaling_of(factors, head_dim, theta, "f")
    assert (found["factor"], found["low_freq_factor"], found["high_freq_factor"]) == (factor, 1.0, 4.0)
    again = RopeScaling("llama3", factor, found["original_max_position_embeddings"], 1.0, 4.0)
    np.testing.assert_allclose(frequency_factors(again, head_dim, theta), factors, rtol=1e-5)
    if head_dim >= 64:
        assert found["original_max_position_embeddings"] == context
    assert scaling_of(np.ones(head_dim // 2, np.float32), head_dim, theta, "f") is None
    for wrong in (factors[::-1].copy(), factors[:-1], factors * np.nan, factors / 2):
        with pytest.raises(UserError, match="rope_freqs.weight"):
            scaling_of(wrong, head_dim, theta, "f")


def test_all_that_is_wrong_with_tensors_is_one_message(tmp_path):
    changed = {
        "output_norm.weight": None,
        "blk.0.attn_k.bias": np.zeros(16, np.float32),
        "blk.2.ffn_down.weight": np.zeros((48, 32), np.float32),
        "rope_factors_long.weight": np.ones(4, np.float32),
    }
    path = gguf_files.write(tmp_path / "model.gguf", LLAMA, tensors=changed)
    message = refused(path, str(path), "do not fit the metadata", "missing: model.norm.weight")
    assert "not expected: blk.0.attn_k.bias, rope_factors_long.weight" in message
    assert message.endswith("of another shape: model.layers.2.mlp.down_proj.weight [48, 32] (expected [32, 48])")
    refused(gguf_files.write(path, LLAMA, changed={"llama.block_count": 4}), "llama.block_count=4", "of 3 layers")
    refused(gguf_files.write(path, LLAMA, tensors={"token_embd.weight": None}), "no tensor token_embd.weight")


def test_types_that_the_library_does_not_dequantise_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("prl_jax.models.gguf.load.readable", lambda kind: kind != "Q8_0")
    path = gguf_files.write(tmp_path / "model.gguf", BLOCKS, "Q8_0")
    refused(path, "of types that the gguf library does not dequantise: Q8_0")


def test_weights_that_are_not_finite_are_counted(tmp_path):
    norm = np.array([np.nan, np.inf, *[1.0] * 30], np.float32)
    path = gguf_files.write(tmp_path / "model.gguf", LLAMA, tensors={"output_norm.weight": norm})
    refused(path, "2 weights are not finite", "model.norm.weight (2)")


def test_only_files_count_as_files(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    assert is_gguf("nowhere.gguf") and is_gguf(tmp_path / "X.GGUF")
    assert not is_gguf(tmp_path / "folder.gguf") and not is_gguf(tmp_path)
    refused(tmp_path / "nowhere.gguf", "nowhere.gguf: cannot be read")
