"""GGUF files beside transformers' loading of them: logits, tokens, and a real model."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from hf_models import PAD, hf_checkpoints, jax_logits, padded, token_rows, torch_logits
from transformers import AutoModelForCausalLM, AutoTokenizer

from prl_jax.models import from_gguf
from prl_jax.text.tokenizer import load_tokenizer

import chat_families  # isort: skip  (of the tests, found once `hf_models` is imported)
import gguf_files  # isort: skip

LENGTHS = (17, 9)
# transformers reads neither the caps, the query scale nor the local base of Gemma, nor how positions are stretched:
# these have the numbers that it takes without.
_GEMMA = dict(head_dim=256, query_pre_attn_scalar=256, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
CASES = {
    **{name: gguf_files.CASES[name] for name in ("llama", "llama-tied", "llama-multi-head", "qwen2", "qwen2-tied")},
    "qwen3": {**gguf_files.CASES["qwen3"], "head_dim": 128},
    "gemma2": {**gguf_files.CASES["gemma2"], **_GEMMA},
    "gemma3": {**gguf_files.CASES["gemma3"], **_GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None},
}
MODEL = os.environ.get("PRL_GGUF", "")


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def load(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("case", CASES)
def test_logits_of_files(case, kind, tmp_path):
    """Whole rows longer than the windows, left-padded and right-padded ones, of the dequantised weights."""
    config = {**CASES[case], "hidden_size": 64, "intermediate_size": 64}
    words = {
        "tokenizer.ggml.tokens": [str(i) for i in range(config["vocab_size"])]
    }  # which tell it the vocabulary's size
    path = gguf_files.write(tmp_path / "model.gguf", config, kind, tokens=words)
    tokens, mask = padded(hf_checkpoints.rows(), LENGTHS)
    expected = torch_logits(load(path), tokens, mask)
    assert expected[mask].std() > 0.3
    actual = np.asarray(jax_logits(from_gguf(path), token_rows(tokens, mask)))
    np.testing.assert_allclose(actual[mask], expected[mask], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["qwen2.5", "gemma"])
def test_tokens_of_files(family, tmp_path):
    """Texts become the same tokens. Transformers gives text neither the normal form of Qwen nor SmolLM's digits."""
    directory = chat_families.write_tokenizer(tmp_path / "hf", chat_families.FAMILIES[family])
    tokens = gguf_files.tokens_of(directory, "qwen2" if family == "qwen2.5" else None)
    tokens["tokenizer.ggml.add_space_prefix"] = False
    config = {**CASES["qwen2" if family == "qwen2.5" else "gemma3"], "vocab_size": len(tokens["tokenizer.ggml.tokens"])}
    path = gguf_files.write(tmp_path / "model.gguf", config, tokens=tokens)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name), load_tokenizer(path)
    for text in ("hi hello  user", "Assistant: Y\n\nor N 2024", "caf\u00e9 \u65e5\u672c"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


@pytest.mark.skipif(not MODEL, reason="PRL_GGUF names no file; `prl models get smollm2` fetches one")
def test_a_real_model_answers_alike():
    """Greedy answers, token for token."""
    path, tokenizer = Path(MODEL), load_tokenizer(MODEL)
    theirs, ours = load(path), from_gguf(path)
    for question in ("What is the capital of France?", "Write one sentence about the sea.", "What is 2 + 2?"):
        ids = tokenizer.encode_chat([("user", question)])
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=PAD, eos_token_id=tokenizer.eos_id
            )[0].tolist()
        row = np.array([out[:-1]])
        logits = np.asarray(jax_logits(ours, token_rows(row, np.ones_like(row, bool))))[0]
        assert logits.argmax(-1)[len(ids) - 1 :].tolist() == out[len(ids) :]
