"""Tokenizers of GGUF files: the same tokens as the tokenizer that they were made of."""

import gguf_files
import numpy as np
import pytest
from chat_families import FAMILIES, WORDS, write_tokenizer

from prl_jax.errors import UserError
from prl_jax.text.gguf import CUTS
from prl_jax.text.hf_files import holds_tokenizer
from prl_jax.text.tokenizer import load_tokenizer

MODEL = gguf_files.CASES["llama-tied"]
PRE = {"llama3": "llama-bpe", "qwen2.5": "qwen2", "qwen3": "qwen2", "smollm": "qwen2", "base": "qwen2"}
TEXTS = (
    *("hi", " hello  user", "Assistant: Y\n\nor N", "caf\u00e9 \u65e5\u672c \U0001f9ff", "   ", ""),
    *("<s>[INST] hi [/INST]", "<|im_start|>", "<start_of_turn>user", "<think>hi</think>", " ".join(WORDS)),
)
CHAT = (("user", "hi user"), ("assistant", "hello"), ("user", " bye <|im_end|> </s>"))


def write(path, known, **changed):
    """A file with a tokenizer; `changed` replaces its keys."""
    changed = {f"tokenizer.ggml.{key}": value for key, value in changed.items()}
    rows = len(known["tokenizer.ggml.tokens"])
    return gguf_files.write(path, {**MODEL, "vocab_size": rows}, tokens={**known, **changed})


# Mistral's newest tokenizer puts no space before one that is there; llama.cpp does.
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mistral"])
def test_a_file_gives_the_directorys_tokens(family, tmp_path):
    directory = write_tokenizer(tmp_path / "hf", FAMILIES[family])
    path = tmp_path / "model.gguf"
    assert not holds_tokenizer(path)
    prefix = FAMILIES[family].text == "always"
    write(path, gguf_files.tokens_of(directory, PRE.get(family)), add_space_prefix=prefix)
    assert holds_tokenizer(path)
    theirs, ours = load_tokenizer(directory), load_tokenizer(path)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert ours.encode_chat(CHAT) == theirs.encode_chat(CHAT)
    for name in ("eos_id", "pad_id", "vocab_size", "rows_needed"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.special("bos") == theirs.special("bos") and ours.silent_ids() == theirs.silent_ids()
    # What is saved is a Hugging Face directory.
    ours.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.encode_chat(CHAT) == ours.encode_chat(CHAT) and again.silent_ids() == ours.silent_ids()


_ENDS = "! \u0120\u010a \u010a ( x )", "! \u0120\u010a\u010a (x )"
PIECES = {
    "gpt-2": f"Don 't \u0120say \u01202024 {_ENDS[0]}",
    "smollm": f"Don 't \u0120say \u0120 2 0 2 4 {_ENDS[0]}",
    "llama-bpe": f"Don 't \u0120say \u0120 202 4 {_ENDS[1]}",
    "qwen2": f"Don 't \u0120say \u0120 2 0 2 4 {_ENDS[1]}",
    "tekken": f"Don 't \u0120say \u0120 2 0 2 4 {_ENDS[1]}",
}


@pytest.mark.parametrize("pre", PIECES)
def test_text_is_cut_as_the_file_says(pre, tmp_path):
    directory = write_tokenizer(tmp_path / "hf", FAMILIES["qwen2.5"])
    tokenizer = load_tokenizer(write(tmp_path / "m.gguf", gguf_files.tokens_of(directory, pre)))
    found = tokenizer._hf.backend_tokenizer.pre_tokenizer.pre_tokenize_str("Don't say 2024! \n\n(x)")
    assert " ".join(piece for piece, _ in found) == PIECES[pre]
    composed = tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")
    assert composed == CUTS[pre].composed == (pre == "qwen2")


def test_tokens_that_fill_up_the_embedding_are_none(tmp_path):
    tokens = gguf_files.tokens_of(write_tokenizer(tmp_path / "hf", FAMILIES["qwen2.5"]), "qwen2")
    size, fill = len(tokens["tokenizer.ggml.tokens"]), 5
    filled = tokens["tokenizer.ggml.tokens"] + [f"[PAD{size + i}]" for i in range(fill)]
    types = np.concatenate([tokens["tokenizer.ggml.token_type"], np.full(fill, 5, np.int32)])
    tokenizer = load_tokenizer(write(tmp_path / "m.gguf", tokens, tokens=filled, token_type=types))
    assert tokenizer.vocab_size == size and tokenizer.unused_ids(size + fill) == ((size, size + fill),)


def test_runs_of_spaces_of_gemma_are_whole(tmp_path):
    tokens = gguf_files.tokens_of(write_tokenizer(tmp_path / "hf", FAMILIES["gemma"]))
    known = tokens["tokenizer.ggml.tokens"]
    types = np.concatenate([tokens["tokenizer.ggml.token_type"], [4, 4]]).astype(np.int32)
    scores = np.concatenate([tokens["tokenizer.ggml.scores"], [-1000.0, -1000.0]]).astype(np.float32)
    changed = dict(tokens=[*known, "  ", "   "], token_type=types, scores=scores, add_space_prefix=False)
    tokenizer = load_tokenizer(write(tmp_path / "m.gguf", tokens, **changed))
    assert tokenizer.encode("hi   hello  user") == [
        known.index("hi"), len(known) + 1, known.index("hello"), len(known), known.index("user"),
    ]  # fmt: skip
    assert tokenizer.decode(tokenizer.encode("hi   hello  user")) == "hi   hello  user"


def test_texts_begin_as_the_file_says(tmp_path):
    """For whoever uses the tokenizer without a chat template; the package's own prompts never ask."""
    tokens = gguf_files.tokens_of(write_tokenizer(tmp_path / "hf", FAMILIES["llama2"]))
    tokenizer = load_tokenizer(write(tmp_path / "m.gguf", tokens))
    bos, eos, plain = tokenizer.special("bos"), tokenizer._hf.eos_token_id, tokenizer.encode("hi")
    assert tokenizer._hf("hi").input_ids == [bos, *plain]
    tokenizer = load_tokenizer(write(tmp_path / "m.gguf", tokens, add_bos_token=False, add_eos_token=True))
    assert tokenizer._hf("hi").input_ids == [*plain, eos]


BYTE_LEVEL = {
    "tokenizer.ggml.model='bert' is not supported; supported: gpt2, llama": dict(model="bert"),
    "tokenizer.ggml.normalizer.lowercase is not supported": {"normalizer.lowercase": True},
    "tokenizer.ggml.remove_extra_whitespaces is not supported": dict(remove_extra_whitespaces=True),
    "tokenizer.ggml.model=None": dict(model=None),
    "tokenizer.ggml.pre='default' is not supported; supported: gpt-2": dict(pre="default"),
    "tokenizer.ggml.pre=None": dict(pre=None),
    "tokenizer.ggml.tokens: expected a list": dict(tokens=None),
    "tokenizer.ggml.merges: expected a list": dict(merges=None),
    "expected two texts with a space": dict(merges=["ab"]),
    "tokenizer.ggml.token_type: expected one number for each": dict(token_type=np.ones(3, np.int32)),
    "tokenizer.ggml.eos_token_id=100000, expected an id below": dict(eos_token_id=100_000),
    "cannot rebuild the tokenizer: ": dict(merges=["nowhere here"]),
    'the token "!" stands twice': dict(tokens=lambda tokens: [*tokens[:-1], "!"]),
}
SENTENCEPIECE = {
    "tokenizer.ggml.scores: expected one number for each": dict(scores=None),
    "tokenizer.ggml.scores: holds NaN": dict(scores=lambda scores: scores * np.nan),
    "has 300 characters, expected 256": dict(tokens=lambda tokens: [*tokens[:300], "x" * 300, *tokens[301:]]),
}


@pytest.mark.parametrize("words", [*BYTE_LEVEL, *SENTENCEPIECE])
def test_what_cannot_be_rebuilt_is_one_line(words, tmp_path):
    family, pre = ("qwen2.5", "qwen2") if words in BYTE_LEVEL else ("llama2", None)
    tokens = gguf_files.tokens_of(write_tokenizer(tmp_path / "hf", FAMILIES[family]), pre)
    changed = {
        key: value(tokens[f"tokenizer.ggml.{key}"]) if callable(value) else value
        for key, value in {**BYTE_LEVEL, **SENTENCEPIECE}[words].items()
    }
    path = write(tmp_path / "m.gguf", tokens, **changed)
    with pytest.raises(UserError) as error:
        load_tokenizer(path)
    message = str(error.value)
    assert words in message and str(path) in message and "\n" not in message


def test_files_without_a_tokenizer_and_none_at_all(tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf", MODEL)
    with pytest.raises(UserError, match="cannot rebuild the tokenizer: tokenizer.ggml.tokens"):
        load_tokenizer(path)
    with pytest.raises(UserError, match="nowhere.gguf: cannot be read"):
        load_tokenizer(tmp_path / "nowhere.gguf")
