"""Export as GGUF: what comes out is the file that llama.cpp's converter writes, and comes in again."""

import dataclasses

import chat_families
import gguf
import gguf_files
import hf_checkpoints
import jax
import numpy as np
import pytest
from gguf_files import CASES

from prl_jax.errors import UserError
from prl_jax.gguf_file import read_header
from prl_jax.models import Decoder, DecoderConfig, LoraConfig, RopeScaling, from_hf, preset
from prl_jax.models.gguf import KINDS, from_gguf, hf_config, to_gguf
from prl_jax.models.gguf.tensors import read_tensor
from prl_jax.models.hf import decoder_config, read_config
from prl_jax.text.gguf_export import gguf_tokens
from prl_jax.text.tokenizer import BPETokenizer, ByteTokenizer, load_tokenizer
from prl_jax.tree import flatten

MICRO = dict(vocab_size=40, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp_width=48)


def contents(path):
    """Name -> type, shape and bytes of every tensor, as the `gguf` library reads a file."""
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: (t.tensor_type.name, t.shape.tolist(), t.data.tobytes()) for t in tensors}


def said(path):
    """The keys of the model, as the `gguf` library reads them."""
    fields = gguf.GGUFReader(path).fields
    name = fields["general.architecture"].contents()
    return {key: field.contents() for key, field in fields.items() if key.startswith(f"{name}.")}


@pytest.mark.parametrize("case", [name for name in CASES if name != "llama-yarn"])  # which llama.cpp does not compute
def test_an_export_is_the_file_of_the_converter(case, tmp_path):
    """Tensor by tensor to the last bit, Gemma's norms and Llama's permuted rows included."""
    config = CASES[case]
    directory = hf_checkpoints.write(tmp_path / "hf", config)
    model = from_hf(directory)
    expected = contents(gguf_files.write(tmp_path / "theirs.gguf", config))
    for name, source in (("kept", read_config(directory)), ("new", None)):
        path = tmp_path / f"{name}.gguf"
        to_gguf(model, path, source=source)
        found = contents(path)
        assert found.keys() == expected.keys()
        factors = found.pop("rope_freqs.weight", None)
        assert all(found[key] == expected[key] for key in found)
        if factors is not None:
            np.testing.assert_allclose(np.frombuffer(factors[2], np.float32), gguf_files.factors(config), rtol=1e-6)
        again = decoder_config(hf_config(read_header(path)), "f")
        settings = dict(rope_scaling=None, param_dtype="float32", dtype="float32")
        assert dataclasses.replace(again, **settings) == dataclasses.replace(model.config, **settings)
    theirs, kept = said(tmp_path / "theirs.gguf"), said(tmp_path / "kept.gguf")
    assert {key: kept[key] for key in theirs} == theirs


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A model with rows of 64, and of 48, which no block divides; and the tensors of its checkpoint."""
    config = {**CASES["llama"], "hidden_size": 64}
    return from_hf(hf_checkpoints.write(tmp_path_factory.mktemp("odd"), config)), hf_checkpoints.tensors(config)


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_have_the_type_that_is_asked_for(kind, odd, tmp_path):
    (model, arrays), path = odd, tmp_path / "m.gguf"
    to_gguf(model, path, kind=kind)
    found = {name: entry[0] for name, entry in contents(path).items()}
    few, blocks = kind.upper() if kind[0] != "q" or kind == "q8_0" else "Q8_0", kind[0] == "q"
    assert found["token_embd.weight"] == found["output.weight"] == few
    assert found["blk.0.attn_q.weight"] == found["blk.1.ffn_up.weight"] == kind.upper()
    assert found["blk.2.ffn_down.weight"] == ("F16" if blocks else kind.upper())
    assert {found[name] for name in found if "norm" in name} == {"F32"}
    expected = gguf_files.decoded(arrays["model.layers.1.mlp.up_proj.weight"], kind.upper())
    np.testing.assert_array_equal(read_tensor(read_header(path), "blk.1.ffn_up.weight"), expected)
    name = {"f32": "ALL_F32"}.get(kind, f"MOSTLY_{kind.upper()}")
    assert gguf.GGUFReader(path).fields["general.file_type"].contents() == gguf.LlamaFileType[name]


def test_types_follow_the_parameters(tmp_path):
    for dtype, kind in (("float32", "F32"), ("bfloat16", "BF16")):
        model = from_hf(hf_checkpoints.write(tmp_path / dtype, CASES["qwen2"], dtype))
        to_gguf(model, tmp_path / f"{dtype}.gguf")
        assert contents(tmp_path / f"{dtype}.gguf")["blk.0.attn_q.weight"][0] == kind
        assert hf_config(read_header(tmp_path / f"{dtype}.gguf"))["torch_dtype"] == dtype


def test_a_model_that_was_never_in_the_format_is_a_llama(tmp_path):
    config = DecoderConfig.from_dict(preset("tiny"), vocab_size=40)
    model = jax.eval_shape(lambda: Decoder(config, key=jax.random.key(0)))
    model = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), model)
    to_gguf(jax.device_put(model), tmp_path / "m.gguf")
    assert flatten(from_gguf(tmp_path / "m.gguf")).keys() == flatten(model).keys()
    values = hf_config(read_header(tmp_path / "m.gguf"))
    assert values["model_type"] == "llama" and decoder_config(values, "f") == config


REFUSED = {
    "has adapters; merge": dict(lora=LoraConfig(2)),
    "computes no qwen3 with biases of attention": dict(qk_norm=True, o_bias=True, qkv_bias=True),
    "a sliding window": dict(window=5, activation="silu"),
    "GGUF cannot say of this decoder: activation='gelu_tanh'": dict(activation="gelu_tanh"),
    "computes no yarn with attention_factor=1.5 (not 1.13863), beta_slow=2.0 (not 1)": dict(
        rope_scaling=RopeScaling("yarn", 4.0, 64, attention_factor=1.5, beta_slow=2.0)
    ),
    "computes no qwen2 with heads of another size": dict(qkv_bias=True, head_dim=32),
    "no cap of attention scores or no cap of logits": dict(
        norm_offset=1.0, post_norms=True, embed_scale=True, activation="gelu_tanh", query_scale=0.25
    ),
    "the type 'q3_k' is not known; known: f32, f16": dict(),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_llama_cpp_cannot_compute_is_refused(words, tmp_path):
    config = DecoderConfig.from_dict(MICRO, **REFUSED[words])
    model = jax.eval_shape(lambda: Decoder(config, key=jax.random.key(0)))
    model.config = config
    with pytest.raises(UserError) as error:
        to_gguf(model, tmp_path / "m.gguf", kind="" if REFUSED[words] else "q3_k")
    assert words in str(error.value) and "\n" not in str(error.value) and not list(tmp_path.iterdir())


PRE = {"qwen2.5": "qwen2", "qwen3": "qwen2", "smollm": "smollm", "llama3": "llama-bpe", "llama2": None, "gemma": None}
TEXTS = ("hi hello  user", "Assistant: Y\n\nor N 2024", "caf\u00e9 \u65e5\u672c", "   ", "<think>hi</think> </s>")


@pytest.mark.parametrize("family", PRE)
def test_tokenizers_go_out_and_come_in_again(family, tmp_path):
    directory = chat_families.write_tokenizer(tmp_path / "hf", chat_families.FAMILIES[family])
    tokens = gguf_files.tokens_of(directory, PRE[family])
    rows = len(tokens["tokenizer.ggml.tokens"])
    tokens["tokenizer.ggml.add_space_prefix"] = family == "llama2"
    config = {**CASES["llama-tied"], "vocab_size": rows + 3}
    first = load_tokenizer(gguf_files.write(tmp_path / "one.gguf", config, tokens=tokens))
    written = gguf_tokens(first, rows + 3)
    filled = [f"[PAD{i}]" for i in range(rows, rows + 3)]
    assert written["tokenizer.ggml.tokens"] == tokens["tokenizer.ggml.tokens"] + filled
    for key in ("model", "merges", "eos_token_id", "bos_token_id", "add_space_prefix"):
        if f"tokenizer.ggml.{key}" in written:
            assert written[f"tokenizer.ggml.{key}"] == tokens.get(f"tokenizer.ggml.{key}"), key
    again = load_tokenizer(gguf_files.write(tmp_path / "two.gguf", config, tokens=written))
    for text in TEXTS:
        assert again.encode(text) == first.encode(text)
    chat = (("user", "hi user"), ("assistant", "hello"), ("user", "bye"))
    assert again.encode_chat(chat) == first.encode_chat(chat)
    assert (again.eos_id, again.vocab_size, again.unused_ids(rows + 3)) == (
        first.eos_id, first.vocab_size, ((rows, rows + 3),),
    )  # fmt: skip


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPETokenizer.train(["hi hello bye ciao"] * 4, 300)])
def test_own_tokenizers_go_out(tokenizer, tmp_path):
    config = {**CASES["llama-tied"], "vocab_size": tokenizer.vocab_size}
    tokens = gguf_tokens(tokenizer, tokenizer.vocab_size)
    if not tokens["tokenizer.ggml.merges"]:  # the library, which writes this file, writes no empty list
        tokens["tokenizer.ggml.merges"] = ["h i"]
        tokens["tokenizer.ggml.tokens"][-1] = "hi"
        tokens["tokenizer.ggml.token_type"][-1] = 1
    again = load_tokenizer(gguf_files.write(tmp_path / "m.gguf", config, tokens=tokens))
    assert tokens["tokenizer.ggml.pre"] == "gpt-2" and again.eos_id == tokenizer.eos_id
    for text in ("bye \u00e9", "<|eos|>"):
        assert again.encode(text) == tokenizer.encode(text)


def test_tokenizers_without_a_name_in_llama_cpp_are_refused(tmp_path):
    directory = chat_families.write_tokenizer(tmp_path / "hf", chat_families.FAMILIES["qwen3"])
    with pytest.raises(UserError, match="llama.cpp has no name for how this tokenizer cuts text .known: gpt-2"):
        gguf_tokens(load_tokenizer(directory), 400)
