"""Exported GGUF files in llama.cpp itself: it loads them, and computes the same."""

import json
import random
import unicodedata
import urllib.request
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_models import hf_checkpoints, jax_logits, token_rows

from prl_jax.models import Decoder, DecoderConfig, from_gguf, from_hf, preset, to_gguf
from prl_jax.text.gguf_export import gguf_tokens
from prl_jax.text.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer

import chat_families  # isort: skip  (of the tests, found once `hf_models` is imported)
import gguf_files  # isort: skip

llama_cpp = pytest.importorskip("xllamacpp")
TOKENIZERS = {"llama": "llama2", "qwen2": "qwen2.5", "qwen3": "qwen3", "gemma2": "gemma", "gemma3_text": "gemma"}
CASES = {**gguf_files.CASES, "llama-yarn": hf_checkpoints.CASES["llama-yarn"]}  # with the betas that llama.cpp has
LIKELIEST, LENGTHS = 20, (3, 17, 40)  # the longest beyond every window
LETTERS = "aZ\u00e9 \u00df\n\t  '0123\u00bd\u4e2d\u65e5\U0001f9ff.,;:!?-_#<>|/\\\"()[]{}=+*&^%$@~`\u00a0\u0301\uff21"


class Server:
    """llama.cpp with a model, one thread, and keys and values in float32."""

    def __init__(self, model: Path):
        params = llama_cpp.CommonParams()
        params.model.path, params.port = str(model), 0
        params.n_ctx, params.n_parallel, params.warmup, params.cpuparams.n_threads = 512, 1, False, 1
        params.cache_type_k = params.cache_type_v = llama_cpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = llama_cpp.Server(params)

    def ask(self, what: str, **body: Any) -> Any:
        request = urllib.request.Request(
            f"{self._server.listening_address}/{what}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())

    def tokens(self, text: str) -> list[int]:
        return self.ask("tokenize", content=text, add_special=False, parse_special=False)["tokens"]

    def likeliest(self, tokens: list[int]) -> dict[int, float]:
        """Id -> log-probability of the tokens that most likely follow."""
        options = dict(n_predict=1, temperature=0.0, n_probs=LIKELIEST, cache_prompt=False, ignore_eos=True)
        found = self.ask("completion", prompt=tokens, **options).get("completion_probabilities")
        return {one["id"]: one["logprob"] for one in found[0]["top_logprobs"]} if found else {}


def texts() -> list[str]:
    """In the normal form C, which Qwen's tokenizer makes and llama.cpp does not."""
    draw = random.Random(0)
    found = ["".join(draw.choice(LETTERS) for _ in range(draw.randint(1, 30))) for _ in range(100)]
    return [unicodedata.normalize("NFC", text) for text in found]


def log_probabilities(model: Decoder, tokens: list[int]) -> np.ndarray:
    row = np.array([tokens])
    return np.asarray(jax.nn.log_softmax(jax_logits(model, token_rows(row, np.ones_like(row, bool)))[0, -1]))


# Gemma's GELU is a table in half precision there, and quantised products round activations to 8 bits.
@pytest.mark.parametrize("kind, bound, of_gemma", [("f32", 2e-5, 5e-3), ("q8_0", 0.5, 0.5), ("q4_1", 0.5, 0.5)])
@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_and_tokens(case, kind, bound, of_gemma, tmp_path):
    config, family = CASES[case], CASES[case]["model_type"]
    directory = chat_families.write_tokenizer(tmp_path / "t", chat_families.FAMILIES[TOKENIZERS[family]])
    tokens = gguf_files.tokens_of(directory, "qwen2" if family.startswith("qwen") else None)
    tokens["tokenizer.ggml.add_space_prefix"] = family == "llama"
    sizes = dict(hidden_size=64, intermediate_size=96, head_dim=16 if family == "qwen2" else 32)
    config = {**config, **sizes, "vocab_size": len(tokens["tokenizer.ggml.tokens"]), "max_position_embeddings": 128}
    if "query_pre_attn_scalar" in config:
        config["query_pre_attn_scalar"] = 32
    tokenizer = load_tokenizer(gguf_files.write(tmp_path / "t.gguf", config, tokens=tokens))
    model, path = from_hf(hf_checkpoints.write(tmp_path / "hf", config)), tmp_path / "model.gguf"
    to_gguf(model, path, kind=kind, tokens=gguf_tokens(tokenizer, config["vocab_size"]), source=config)
    ours, server, draw, found = from_gguf(path), Server(path), np.random.default_rng(0), 0
    for length in LENGTHS:
        prompt = draw.integers(260, config["vocab_size"] - 8, length).tolist()
        expected, actual = server.likeliest(prompt), log_probabilities(ours, prompt)
        found += len(expected)
        assert all(abs(actual[i] - value) < (of_gemma if "gemma" in case else bound) for i, value in expected.items())
    assert found >= LIKELIEST  # a token without text has no list
    if kind == "f32":
        assert [server.tokens(text) for text in texts()] == [tokenizer.encode(text) for text in texts()]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPETokenizer.train(["hi hello bye ciao user"] * 4, 300)])
def test_models_made_from_scratch(tokenizer: Tokenizer, tmp_path):
    config = DecoderConfig.from_dict(preset("tiny"), vocab_size=tokenizer.vocab_size)
    model, path = Decoder(config, key=jax.random.key(0)), tmp_path / "model.gguf"
    to_gguf(model, path, tokens=gguf_tokens(tokenizer, config.vocab_size))
    server = Server(path)
    assert [server.tokens(text) for text in texts()] == [tokenizer.encode(text) for text in texts()]
    actual = log_probabilities(model, [1, 2, 3])
    for i, value in server.likeliest([1, 2, 3]).items():
        assert abs(actual[i] - value) < 2e-5 and jnp.isfinite(value)
