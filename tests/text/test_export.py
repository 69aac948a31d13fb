"""The project's own tokenizers in Hugging Face's format: the same ids, text and conversations."""

import json
import logging

import pytest

from prl_jax.text.chat import Turn, encode_prompt, encode_response
from prl_jax.text.tokenizer import SPECIALS, BPETokenizer, ByteTokenizer, load_tokenizer

TEXTS = ["hello world, hello  there\n\tx's héllo 漢字 🙂 \x00\x01\x7f\xa0", "  lead", "1234 abc", " ", "a" * 50]


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request):
    return ByteTokenizer() if request.param == "bytes" else BPETokenizer.train(TEXTS * 3, 300)


@pytest.fixture
def exported(tokenizer, tmp_path):
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    return AutoTokenizer.from_pretrained(str(tmp_path / "out"), local_files_only=True)


def test_ids_and_text_are_the_same(tokenizer, exported):
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert exported.encode(text) == ids and exported.decode(ids) == text
    assert len({i for text in TEXTS for i in tokenizer.encode(text)}) > 30
    assert exported.convert_tokens_to_ids([f"<|{name}|>" for name in SPECIALS]) == [
        tokenizer.special(name) for name in SPECIALS
    ]
    assert (exported.eos_token_id, exported.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)


def test_every_byte_is_a_token():
    from prl_jax.text.export import byte_backend

    backend = byte_backend()
    text = bytes(range(128)).decode() + "".join(map(chr, range(128, 2048)))
    assert backend.encode(text).ids == list(text.encode())
    assert backend.get_vocab_size() == 256 and backend.decode(list("ß€".encode())) == "ß€"


def test_conversations_have_the_same_tokens(tokenizer, exported, tmp_path):
    prompt = (Turn("system", "be kind"), Turn("user", "hi  there"), Turn("assistant", " yo\n"), Turn("user", "q"))
    messages = [turn._asdict() for turn in prompt]
    rendered = exported.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert exported.encode(rendered, add_special_tokens=False) == encode_prompt(tokenizer, prompt)
    answered = exported.apply_chat_template([*messages, {"role": "assistant", "content": "ok"}], tokenize=False)
    ids = exported.encode(answered, add_special_tokens=False)
    assert ids == encode_prompt(tokenizer, prompt) + encode_response(tokenizer, "ok")
    # Read by this package, it is a tokenizer like any of Hugging Face's, with the same prompts.
    again = load_tokenizer(tmp_path / "out")
    assert encode_prompt(again, prompt) == encode_prompt(tokenizer, prompt) and again.eos_id == tokenizer.eos_id


def test_the_project_s_own_files_stay_as_they_are(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    before = json.loads((tmp_path / "prl_tokenizer.json").read_text())
    tokenizer.save_pretrained(tmp_path / "out")
    tokenizer.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "prl_tokenizer.json").read_text()) == before
