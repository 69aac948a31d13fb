"""The project's own tokenizers in Hugging Face's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prl_jax.files import write_json, write_text

# Template `chat-v1` of `prl_jax.text.chat`, with the structural tokens that `save_pretrained` names so.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|eos|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def byte_backend() -> Any:
    """A `tokenizers` tokenizer whose ids 0..255 are the bytes of UTF-8."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(_alphabet())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def save_pretrained(directory: Path, backend: Any, specials: Mapping[str, int]) -> None:
    """Writes `tokenizer.json`, and `tokenizer_config.json` with the chat template.

    Args:
      directory: where to.
      backend: a `tokenizers` tokenizer without special tokens.
      specials: ids of the structural tokens, which follow its vocabulary; `name` becomes `<|name|>`.
    """
    from tokenizers import AddedToken, Tokenizer

    backend = Tokenizer.from_str(backend.to_str())
    names = sorted(specials, key=specials.__getitem__)
    backend.add_special_tokens([AddedToken(f"<|{name}|>", special=True, normalized=False) for name in names])
    assert all(backend.token_to_id(f"<|{name}|>") == specials[name] for name in names)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|eos|>",
        "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(directory / "tokenizer_config.json", config, indent=2)
    write_text(directory / "tokenizer.json", backend.to_str(pretty=True))


def _alphabet() -> list[str]:
    """The character that byte-level tokenizers write for each byte: itself where it prints, else the next free one."""
    printed = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printed else chr(next(others)) for byte in range(256)]
