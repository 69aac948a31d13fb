"""Metadata of GGUF files: what is read, and what is refused by name."""

import gguf_files
import numpy as np
import pytest
from gguf_files import CASES

from prl_jax.errors import UserError
from prl_jax.gguf_file import read_header
from prl_jax.models.gguf import hf_config
from prl_jax.models.hf import decoder_config
from prl_jax.models.hf.config import context_length

LLAMA, GEMMA2, GEMMA3 = CASES["llama"], CASES["gemma2"], CASES["gemma3"]


def read(path, config, **changed):
    """The config of a file; `__` stands for the dot of a key."""
    changed = {key.replace("__", "."): value for key, value in changed.items()}
    values = hf_config(read_header(gguf_files.write(path, config, changed=changed)))
    return values, decoder_config(values, str(path))


@pytest.mark.parametrize("case", CASES)
def test_contexts_are_those_of_the_checkpoint(case, tmp_path):
    values, _ = read(tmp_path / "m.gguf", CASES[case])
    assert context_length(values, "f") == context_length(CASES[case], "f")
    assert values["architectures"] == CASES[case]["architectures"] and values["torch_dtype"] == "float32"


def test_what_gguf_leaves_out_is_what_llama_cpp_takes(tmp_path):
    path = tmp_path / "m.gguf"
    _, config = read(path, LLAMA, llama__attention__key_length=None, llama__rope__freq_base=None)
    assert (config.head_dim, config.rope_theta, config.query_scale) == (8, 1e4, 0.0)
    _, config = read(path, LLAMA, llama__attention__head_count_kv=None)
    assert config.kv_heads == 4
    _, config = read(path, GEMMA2, gemma2__attention__sliding_window=None, gemma2__attn_logit_softcapping=None)
    assert (config.window, config.windowed, config.attention_softcap) == (4096, (True, False, True), 50.0)
    _, config = read(path, GEMMA2, gemma2__attn_logit_softcapping=0.0, gemma2__final_logit_softcapping=0.0)
    assert (config.attention_softcap, config.logit_softcap, config.query_scale) == (0.0, 0.0, 16**-0.5)
    _, config = read(path, GEMMA3)
    assert (config.local_rope_theta, config.windowed) == (1e4, (True,) * 5 + (False, True))
    _, config = read(path, GEMMA3, gemma3__attention__sliding_window=None)
    assert (config.window, config.windowed) == (0, ())
    # The largest ones scale queries as if heads were width / heads.
    _, config = read(path, {**GEMMA3, "num_hidden_layers": 1}, gemma3__block_count=62)
    assert config.query_scale == (32 // 4) ** -0.5
    _, config = read(path, {**GEMMA2, "num_hidden_layers": 1}, gemma2__block_count=46)
    assert config.query_scale == (32 // 4) ** -0.5


def test_windows_of_each_layer(tmp_path):
    every = np.array([True, False, True, True, False, False, True])
    _, config = read(tmp_path / "m.gguf", GEMMA3, gemma3__attention__sliding_window_pattern=every.astype(np.int32))
    assert config.windowed == tuple(every.tolist())
    for wrong in (np.ones(3, np.int32), 0, "x"):
        with pytest.raises(UserError, match=r"gemma3\.attention\.sliding_window_pattern"):
            read(tmp_path / "m.gguf", GEMMA3, gemma3__attention__sliding_window_pattern=wrong)


def test_numbers_for_each_layer_have_to_be_the_same(tmp_path):
    same, other = np.array([48] * 3), np.array([48, 48, 32])
    assert read(tmp_path / "m.gguf", LLAMA, llama__feed_forward_length=same)[1].mlp_width == 48
    with pytest.raises(UserError, match=r"llama\.feed_forward_length="):
        read(tmp_path / "m.gguf", LLAMA, llama__feed_forward_length=other)


def test_tokens_that_end_a_response(tmp_path):
    ids = dict(tokenizer__ggml__eos_token_id=2, tokenizer__ggml__eot_token_id=7, tokenizer__ggml__bos_token_id=1)
    values, _ = read(tmp_path / "m.gguf", LLAMA, **ids, tokenizer__ggml__padding_token_id=0)
    assert (values["eos_token_id"], values["bos_token_id"], values["pad_token_id"]) == ([2, 7], 1, 0)
    values, _ = read(tmp_path / "m.gguf", LLAMA, tokenizer__ggml__eos_token_id=2, tokenizer__ggml__eot_token_id=2)
    assert values["eos_token_id"] == 2 and "pad_token_id" not in values
    with pytest.raises(UserError, match=r"tokenizer\.ggml\.eos_token_id='x', expected a token id"):
        read(tmp_path / "m.gguf", LLAMA, tokenizer__ggml__eos_token_id="x")


REFUSED = {
    "llama.expert_count=8 (supported: 0)": dict(llama__expert_count=8),
    "llama.attention.causal=False (supported: True)": dict(llama__attention__causal=False),
    "llama.rope.scaling.attn_factor=2.0": dict(llama__rope__scaling__attn_factor=2.0),
    "llama.attention.sliding_window=7 (unknown)": dict(llama__attention__sliding_window=7),
    "llama.logit_scale=2.0 (unknown)": dict(llama__logit_scale=2.0),
    "llama.block_count is missing": dict(llama__block_count=None),
    "llama.block_count=4294967295, expected at most 4096": dict(llama__block_count=2**32 - 1),
    "llama.embedding_length='x' (expected a whole number above 0)": dict(llama__embedding_length="x"),
    "llama.attention.head_count=True": dict(llama__attention__head_count=True),
    "llama.attention.layer_norm_rms_epsilon=nan": dict(llama__attention__layer_norm_rms_epsilon=float("nan")),
    "llama.rope.freq_base='x' (expected a number above 0)": dict(llama__rope__freq_base="x"),
    "llama.rope.dimension_count=4, expected 8": dict(llama__rope__dimension_count=4),
    "llama.vocab_size=41, but token_embd.weight has 40 rows": dict(llama__vocab_size=41),
    "llama.attention.value_length=16, expected 8": dict(llama__attention__value_length=16),
    "rope.scaling.type='longrope' is not supported": dict(llama__rope__scaling__type="longrope"),
    "rope.scaling.type='yarn' without": dict(llama__rope__scaling__type="yarn"),
    "is one of 3 files of a model": dict(split__count=3),
    "is one of array([1, 1]": dict(split__count=np.array([1, 1])),
    "general.type=array([1": dict(general__type=np.array([1, 2])),
    "llama.expert_count=[0, 0] (supported: 0)": dict(llama__expert_count=np.array([0, 0])),
    "llama.rope.freq_base=[0.0, 0.0] (expected": dict(llama__rope__freq_base=np.zeros(2)),
    "llama.block_count=['a']": dict(llama__block_count=["a"]),
    "general.type='adapter'": dict(general__type="adapter"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_not_known_is_refused_by_name(words, tmp_path):
    with pytest.raises(UserError) as error:
        read(tmp_path / "m.gguf", LLAMA, **REFUSED[words])
    message = str(error.value)
    assert words in message and "\n" not in message and "m.gguf" in message


def test_other_architectures_are_refused(tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf", LLAMA)
    path.write_bytes(path.read_bytes().replace(b"llama", b"phi22"))
    with pytest.raises(UserError, match="general.architecture='phi22' is not supported; supported: llama, qwen2"):
        hf_config(read_header(path))


def test_factors_that_cannot_be_read_are_refused(tmp_path):
    header = read_header(gguf_files.write(tmp_path / "m.gguf", CASES["llama-llama3"]))
    factors = header.tensors["rope_freqs.weight"]
    wrong = {**header.tensors, "rope_freqs.weight": factors._replace(kind="I32")}
    with pytest.raises(UserError, match="rope_freqs.weight .* of type I32, expected 16 factors"):
        hf_config(header._replace(tensors=wrong))


def test_both_ways_to_stretch_positions_are_one_too_many(tmp_path):
    with pytest.raises(UserError, match="has both rope.scaling.type='linear' and rope_freqs.weight"):
        read(
            tmp_path / "m.gguf",
            CASES["llama-llama3"],
            llama__rope__scaling__type="linear",
            llama__rope__scaling__factor=2.0,
        )


def test_what_other_programs_note_is_left_alone(tmp_path):
    noted = {"general.name": "x", "quantize.imatrix.file": "y", "mradermacher.quantized_by": "z"}
    noted |= {"llama.rope.scaling.finetuned": True, "llama.expert_count": 0, "llama.rope.scaling.attn_factor": 1.0}
    values = hf_config(read_header(gguf_files.write(tmp_path / "m.gguf", LLAMA, changed=noted)))
    assert decoder_config(values, "f") == decoder_config(LLAMA, "f")
