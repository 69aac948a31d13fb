"""Small tokenizers of the shapes that model families have: how they cut text, control tokens, chat template.

The templates are written here, after the form of each family's. Vocabularies hold the words of the tests' conversation
whole, so that expected tokens can be written down.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

WORDS = (
    "hi",
    "hello",
    "bye",
    "ciao",
    "brief",
    "user",
    "assistant",
    "system",
    "model",
    "###",
    "User",
    "Assistant",
    "Y",
    "N",
)

_CHATML_TURNS = """
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}"""
_CHATML_OPENING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def _chatml(default_system: str) -> str:
    """ChatML that adds a system turn where there is none."""
    return (
        "{%- if messages[0].role != 'system' %}"
        + f"{{{{- '<|im_start|>system\\n{default_system}<|im_end|>\\n' }}}}"
        + "{%- endif %}"
        + _CHATML_TURNS
        + _CHATML_OPENING
    )


_LLAMA3 = """{{- bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

_LLAMA2 = """
{%- set system = '' %}
{%- if messages[0].role == 'system' %}
    {%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + m.content.strip() + ' [/INST]' }}
    {%- else %}
        {{- ' ' + m.content.strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}"""

_MISTRAL = """{{- bos_token }}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant/user/...') }}
    {%- endif %}
    {%- if m.role == 'user' %}
        {{- '[INST] ' + m.content + ' [/INST]' }}
    {%- else %}
        {{- ' ' + m.content + eos_token }}
    {%- endif %}
{%- endfor %}"""

_QWEN3 = """
{%- set ns = namespace(asked=0) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set said, thought = m.content, '' %}
    {%- if m.role == 'assistant' and '</think>' in m.content %}
        {%- set said = m.content.split('</think>')[-1].lstrip('\\n') %}
        {%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
    {%- endif %}
    {%- if m.role == 'assistant' and loop.index0 > ns.asked %}
        {%- set said = '<think>\\n' + thought + '\\n</think>\\n\\n' + said %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' + said + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

_GEMMA = """{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim }}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""


class Family(NamedTuple):
    """A tokenizer to make.

    Attributes:
      template: its chat template, or None.
      special: tokens that it flags as special.
      names: what they are called, e.g. `eos_token`.
      added: tokens that are added without the flag.
      text: how it cuts text: "bytes" (byte-level BPE), or SentencePiece's BPE, with a space put in front of text
        "never", before the "first" word or "always", after a control token too.
    """

    template: str | None
    special: Sequence[str]
    names: Mapping[str, str]
    added: Sequence[str] = ()
    text: str = "bytes"


# Words with one character in front, numbers, punctuation, line breaks, spaces: what Llama 3 and Qwen cut text into.
_PATTERN = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_EOS = {"eos_token": "<|endoftext|>"}
_S = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
FAMILIES: Mapping[str, Family] = {
    "llama3": Family(
        _LLAMA3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    ),
    "llama2": Family(_LLAMA2, ("<s>", "</s>", "<unk>"), _S, text="always"),
    "mistral": Family(_MISTRAL, ("<s>", "</s>", "<unk>", "[INST]", "[/INST]"), _S, text="first"),
    "qwen2.5": Family(_chatml("brief"), _CHATML, _EOS, ("<tool_call>",)),
    "qwen3": Family(_QWEN3, _CHATML, _EOS, ("<think>", "</think>")),
    "gemma": Family(
        _GEMMA,
        ("<bos>", "<eos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"},
        text="never",
    ),
    "smollm": Family(_chatml("hi"), _CHATML, {**_EOS, "pad_token": "<|im_end|>"}),
    "base": Family(None, ("<s>", "</s>"), {"bos_token": "<s>", "eos_token": "</s>"}),
}


def write_tokenizer(directory: Path, family: Family) -> Path:
    """Writes the family's tokenizer as a Hugging Face directory."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers import PreTrainedTokenizerFast

    logging.getLogger("transformers").setLevel(logging.ERROR)
    backend = _byte_level() if family.text == "bytes" else _sentencepiece(family.text)
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in family.special])
    backend.add_tokens([AddedToken(word, special=False, normalized=False) for word in family.added])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **family.names)
    if family.template is not None:
        tokenizer.chat_template = family.template
    tokenizer.save_pretrained(str(directory))
    return directory


def _byte_level() -> Tokenizer:
    """Byte-level BPE; "Ġ" is a space, "Ċ" a line break."""
    backend = Tokenizer(_whole_words(sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġ", ["ĊĊ"]))
    cut = pre_tokenizers.Split(_PATTERN, "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(space: str) -> Tokenizer:
    """BPE on characters with bytes for those that it lacks; "▁" is a space."""
    letters = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "\n", *map(chr, range(33, 127))]
    backend = Tokenizer(_whole_words(letters, "▁", [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if space == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        prepend = [normalizers.Prepend("▁")] if space == "always" else []
        backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [] if space == "never" else [decoders.Strip(" ", 1, 0)]
    joined = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*joined, *strip])
    return backend


def _whole_words(letters: Sequence[str], space: str, more: Sequence[str], **options: object) -> models.BPE:
    """A vocabulary of letters, with the merges that make whole `WORDS` (letter by letter), a space in front or not."""
    merges = [(word[:at], word[at]) for word in (*WORDS, *more) for at in range(1, len(word))]
    merges = list(dict.fromkeys([*merges, *((space, word) for word in WORDS)]))
    tokens = dict.fromkeys([*letters, *("".join(pair) for pair in merges)])
    return models.BPE({token: i for i, token in enumerate(tokens)}, merges, **options)
