"""Hugging Face tokenizer directories, with their chat templates."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prl_jax.errors import UserError
from prl_jax.text.common import one_line, valid_text, write_json

_HF_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
DEFAULT_CHAT_TEMPLATE = (
    "{{ bos_token if bos_token else '' }}{% for message in messages %}"
    "### {{ message['role'] | capitalize }}:\n{{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""Jinja chat template of Hugging Face tokenizers that bring none."""

# Stand-ins for contents in rendered templates: a number between two private-use characters.
_HELD = re.compile("\ue0f0([0-9]+)\ue0f1")
_HOLD_MARKS = re.compile("[\ue0f0\ue0f1]")


class HFTokenizer:
    """A tokenizer directory in Hugging Face's format, read from local files only, without remote code.

    `encode` never yields a control token: a token flagged as special, or an added one that the chat template writes.
    (The unknown token is no control token unless it doubles as one.)

    Args:
      directory: holds the tokenizer files.

    Raises:
      UserError: when the directory holds no tokenizer that can be read, or one without an end-of-sequence token.
    """

    def __init__(self, directory: Path) -> None:
        if not any((directory / name).is_file() for name in _HF_FILES):
            raise UserError(f"{directory}: no tokenizer files (expected one of {', '.join(_HF_FILES)})")
        with _quiet():
            from transformers import AutoTokenizer

            try:
                self._hf = AutoTokenizer.from_pretrained(
                    str(directory), local_files_only=True, trust_remote_code=False, clean_up_tokenization_spaces=False
                )
            except Exception as error:  # the library raises many kinds for broken files
                raise UserError(f"{directory}: cannot read the tokenizer: {one_line(error)}") from error
        self._where = str(directory)
        self._template = None if self._hf.chat_template else DEFAULT_CHAT_TEMPLATE
        self._control = self._control_ids()
        self.vocab_size = max(len(self._hf), max(self._hf.added_tokens_decoder, default=-1) + 1)
        self.eos_id = self._end_of_turn()
        self.pad_id = self.eos_id if self._hf.pad_token_id is None else self._hf.pad_token_id

    def encode(self, text: str) -> list[int]:
        return self._encode_plain(valid_text(text))

    def decode(self, ids: Sequence[int]) -> str:
        kept = [int(i) for i in ids if 0 <= i < self.vocab_size and i not in self._control]
        return self._hf.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def special(self, name: str) -> int | None:
        return {"pad": self.pad_id, "eos": self.eos_id, "bos": self._hf.bos_token_id}.get(name)

    def save(self, directory: Path) -> None:
        with _quiet():
            self._hf.save_pretrained(str(directory))
        write_json(directory, {"kind": "huggingface", "version": 1})

    def encode_chat(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a conversation of (role, content) turns in the chat template, ready for the assistant's response.

        A content that could be read as control tokens is kept from the template's text and encoded as plain text.
        """
        held: list[str] = []
        messages = []
        for role, content in turns:
            content = valid_text(content)
            if _HOLD_MARKS.search(content) or not self._control.isdisjoint(self._encode_text(content)):
                held.append(content)
                content = _hold(len(held) - 1)
            messages.append({"role": role, "content": content})
        parts = _HELD.split(self._render(messages, generate=True))
        ids: list[int] = []
        for i, part in enumerate(parts):  # odd parts are the numbers of held contents
            ids += self._encode_plain(held[int(part)]) if i % 2 else self._encode_text(part)
        return ids

    def user_frame(self) -> tuple[list[int], list[int]]:
        """What the chat template writes before and after the content of a lone user turn, the assistant's opening
        included."""
        parts = _HELD.split(self._render([{"role": "user", "content": _hold(0)}], generate=True))
        if len(parts) != 3:
            raise UserError(f"{self._where}: the chat template does not write the user's content exactly once")
        return self._encode_text(parts[0]), self._encode_text(parts[2])

    def _render(self, messages: list[dict[str, str]], *, generate: bool) -> str:
        try:
            return self._hf.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=generate
            )
        except Exception as error:  # templates raise their own kinds, e.g. for a role that they do not know
            raise UserError(f"{self._where}: the chat template refuses this conversation: {one_line(error)}") from error

    def _encode_text(self, text: str) -> list[int]:
        """Template text: control tokens in it are control tokens."""
        return list(self._hf.encode(text, add_special_tokens=False, verbose=False)) if text else []

    def _encode_plain(self, text: str) -> list[int]:
        if not text:
            return []
        ids = list(self._hf.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False))
        if self._control.isdisjoint(ids):
            return ids
        # Some tokenizers still read a control token here (an added token that is not flagged as special, a vocabulary
        # that lists it as a word): halves of the text cannot spell it, down to a character, which is then dropped.
        if len(text) == 1:
            return []
        cut = self._cut(text)
        return self._encode_plain(text[:cut]) + self._encode_plain(text[cut:])

    def _cut(self, text: str) -> int:
        """Where to cut a text that reads as a control token: inside the first one spelled out, else in the middle."""
        found = [(text.find(word), len(word)) for word in self._control_words if len(word) > 1 and word in text]
        if not found:
            return len(text) // 2
        start, length = min(found)
        return start + length // 2

    def _control_ids(self) -> frozenset[int]:
        source = str(self._hf.chat_template or "")
        ids = set(self._hf.all_special_ids)
        for token_id, token in self._hf.added_tokens_decoder.items():
            if token.special or (token.content in source and not token.content.isspace()):
                ids.add(token_id)
        named = {self._hf.eos_token_id, self._hf.bos_token_id, self._hf.pad_token_id}
        ids -= {self._hf.unk_token_id} - named
        self._control_words = tuple(str(word) for word in self._hf.convert_ids_to_tokens(sorted(ids)))
        return frozenset(ids)

    def _end_of_turn(self) -> int:
        """The control token right after an assistant's content in the chat template, else the end of sequence."""
        eos = self._hf.eos_token_id
        if self._template is None:
            messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _hold(0)}]
            parts = _HELD.split(self._render(messages, generate=False))
            tail = self._encode_text(parts[2].lstrip()) if len(parts) == 3 else []
            if tail and tail[0] in self._control:
                return tail[0]
        if eos is None:
            raise UserError(
                f"{self._where}: the tokenizer has no end-of-sequence token (eos_token), which ends responses"
            )
        return eos


def _hold(index: int) -> str:
    return f"\ue0f0{index}\ue0f1"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from telling the terminal that it found no PyTorch; leaves its log level as it was."""
    logger = logging.getLogger("transformers")

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(errors_only)
    try:
        yield
    finally:
        logger.removeFilter(errors_only)
