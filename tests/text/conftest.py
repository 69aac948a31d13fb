"""A tiny Hugging Face tokenizer directory, made on the spot."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<|answer|>{% endif %}"
)


@pytest.fixture
def make_hf(tmp_path: Path) -> Callable[..., Path]:
    """`make_hf(name, template=None, bos=False, lower=False)` writes a byte-level BPE tokenizer and returns its folder.

    Its vocabulary joins " Y" and " N". `<|answer|>` is an added token that is not flagged as special, but belongs to
    the template. `lower` lowercases text, so that "<S>" reads as "<s>".
    """

    def make(name: str, template: str | None = None, *, bos: bool = False, lower: bool = False) -> Path:
        logging.getLogger("transformers").setLevel(logging.ERROR)
        from transformers import PreTrainedTokenizerFast

        logging.getLogger("transformers").setLevel(logging.ERROR)
        backend = Tokenizer(models.BPE())
        if lower:
            backend.normalizer = normalizers.Lowercase()
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=256 + 3 + 40,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            show_progress=False,
        )
        backend.train_from_iterator(["Answer: Y or N, Y N Y N hello world"] * 4, trainer)
        backend.add_tokens([AddedToken("<|answer|>", special=False, normalized=lower)])
        names = {"eos_token": "<|endoftext|>"}
        if bos:
            names["bos_token"] = "<s>"
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
        if template is not None:
            tokenizer.chat_template = template
        tokenizer.save_pretrained(str(tmp_path / name))
        return tmp_path / name

    return make


@pytest.fixture
def chatml() -> str:
    """A chat template that ends turns with `<|im_end|>` and opens answers with `<|im_start|>assistant`."""
    return CHATML
