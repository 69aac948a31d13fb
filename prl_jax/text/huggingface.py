"""Hugging Face tokenizer directories, with their chat templates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from prl_jax.errors import UserError
from prl_jax.files import moving_into
from prl_jax.text.common import valid_text, write_json
from prl_jax.text.hf_files import own_template, read_tokenizer
from prl_jax.text.quiet import quiet
from prl_jax.text.templates import ChatTemplate

DEFAULT_CHAT_TEMPLATE = (
    "{{ bos_token if bos_token else '' }}{% for message in messages %}"
    "### {{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""Jinja chat template of Hugging Face tokenizers that bring none; `save` writes it beside the tokenizer."""

# Reasoning models write these themselves, so they belong to a response's text unless the tokenizer flags them as
# special; templates write them too, and some take what they enclose out of earlier answers.
_THINKING = ("<think>", "</think>")
# Stand-ins for contents in rendered templates: a number between two private-use characters.
_HELD = re.compile("\ue0f0([0-9]+)\ue0f1")
_RARE = "\U0001f9ff\u16a0"  # what few vocabularies have a token for
_HOLD_MARKS = re.compile("[\ue0f0\ue0f1]")


NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})


class HFTokenizer:
    """A tokenizer directory in Hugging Face's format, read from local files only, without remote code.

    `encode` never yields a control token: a token flagged as special, or an added one that the chat template writes.
    (The unknown token is no control token unless it doubles as one; nor are `<think>` and `</think>` without the flag.)

    Args:
      directory: holds the tokenizer files.
      template_args: what the chat template is given beside the conversation, such as `enable_thinking`.
      template: a chat template in place of the directory's.

    Attributes:
      rows_needed: rows of an embedding that holds every id which text and templates can have. A special token that no
        template writes needs none (Gemma 3 has one for images, also where the model reads none).

    Raises:
      UserError: when the directory holds no tokenizer that can be read, or one without an end-of-sequence token.
    """

    def __init__(
        self, directory: Path, template_args: Mapping[str, Any] = NO_ARGUMENTS, template: str | None = None
    ) -> None:
        self._hf = read_tokenizer(directory)
        self._where = str(directory)
        if template is not None:
            self._hf.chat_template = template
        found = own_template(self._hf, self._where)
        if found is None:
            self._hf.chat_template = DEFAULT_CHAT_TEMPLATE
        specials = {name: str(token) for name, token in self._hf.special_tokens_map.items() if isinstance(token, str)}
        self._template = ChatTemplate(found or DEFAULT_CHAT_TEMPLATE, self._where, specials, template_args)
        self._control = self._control_ids()
        self.vocab_size = max(len(self._hf), max(self._hf.added_tokens_decoder, default=-1) + 1)
        self._opening = ""
        self._user_frame: tuple[list[int], list[int]] | None = None
        self._writes_system: bool | None = None
        self.eos_id, self._margins, self._opening = self._answer_frame()
        self.pad_id = self.eos_id if self._hf.pad_token_id is None else self._hf.pad_token_id
        self.rows_needed = self._rows_needed()

    def encode(self, text: str) -> list[int]:
        return self._encode_plain(valid_text(text))

    def decode(self, ids: Sequence[int]) -> str:
        kept = [int(i) for i in ids if 0 <= i < self.vocab_size and i not in self._control]
        return self._hf.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def special(self, name: str) -> int | None:
        return {"pad": self.pad_id, "eos": self.eos_id, "bos": self._hf.bos_token_id}.get(name)

    def save_pretrained(self, directory: Path) -> None:
        """Writes the tokenizer and its chat template in Hugging Face's format."""
        with quiet(), moving_into(directory) as folder:
            self._hf.save_pretrained(str(folder))

    def save(self, directory: Path) -> None:
        self.save_pretrained(directory)
        write_json(directory, {"kind": "huggingface", "version": 1})

    def encode_chat(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a conversation of (role, content) turns in the chat template, ready for the assistant's response.

        A content that could be read as control tokens is kept from the template's text and encoded as plain text. So
        is every answer of the assistant, which then has the tokens that it had as a response: the template neither
        trims it nor puts spaces beside it. Only thinking is left to a template that takes it out of earlier answers.
        """
        held: list[str] = []
        messages, answers = [], []
        for role, content in turns:
            content = valid_text(content)
            thinking = _THINKING[1] in content and _THINKING[1] in self._template.source
            answer = role == "assistant" and not thinking
            if answer or _HOLD_MARKS.search(content) or not self._control.isdisjoint(self._encode_text(content)):
                held.append(content)
                content = _hold(len(held) - 1)
                answers += [content] if role == "assistant" else []
            messages.append({"role": role, "content": content})
        text = self._render(messages, generate=True)
        if any(role == "system" for role, _ in turns):
            self._check_system()
        before, after = self._margins
        for mark in answers:
            text = text.replace(before + mark + after, mark)
        ids: list[int] = []
        for i, part in enumerate(_HELD.split(text)):  # odd parts are the numbers of held contents
            ids += self._encode_plain(held[int(part)]) if i % 2 else self._encode_text(part)
        return ids

    def user_frame(self) -> tuple[list[int], list[int]]:
        """The text that the chat template writes before and after a lone user turn's content, the assistant's opening
        included."""
        if self._user_frame is None:  # each row of a judge asks for it
            frame = self._frame("user", generate=True)
            if len(frame) != 2:
                raise UserError(f"{self._where}: the chat template does not write the user's content exactly once")
            self._user_frame = self._encode_text(frame[0]), self._encode_text(frame[1])
        before, after = self._user_frame
        return list(before), list(after)

    def _check_system(self) -> None:
        """Raises `UserError` where the chat template leaves out what the system's turn says."""
        if self._writes_system is None:  # each conversation asks for it
            messages = [{"role": role, "content": _hold(i)} for i, role in enumerate(("system", "user"))]
            self._writes_system = _hold(0) in self._render(messages, generate=True)
        if not self._writes_system:
            raise UserError(
                f"{self._where}: the chat template leaves out what the system's turn says; put it into the user's "
                "turn, or take it out"
            )

    def _frame(self, *roles: str, generate: bool) -> list[str]:
        """Returns what the chat template writes around the contents of turns of these roles."""
        messages = [{"role": role, "content": _hold(i)} for i, role in enumerate(roles)]
        return _HELD.split(self._render(messages, generate=generate))[::2]

    def _render(self, messages: list[dict[str, str]], *, generate: bool) -> str:
        return self._template.render(messages, generate=generate) + (self._opening if generate else "")

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
        ids = set(self._hf.all_special_ids)
        for token_id, token in self._hf.added_tokens_decoder.items():
            plain = token.content in _THINKING or token.content.isspace()
            if token.special or (token.content in self._template.source and not plain):
                ids.add(token_id)
        named = {self._hf.eos_token_id, self._hf.bos_token_id, self._hf.pad_token_id}
        ids -= {self._hf.unk_token_id} - named
        self._control_words = tuple(str(word) for word in self._hf.convert_ids_to_tokens(sorted(ids)))
        return frozenset(ids)

    def _answer_frame(self) -> tuple[int, tuple[str, str], str]:
        """How the chat template frames an answer.

        Returns:
          The token that ends it: the control token right after its content, else the end of sequence. The margins:
          whitespace around the content that belongs to neither side, since a response follows the assistant's opening
          and is followed by its end without it (Llama 2 and Mistral). And the opening where the template writes that
          only with an answer, so that prompts have to be given it.
        """
        end, before, after, opening = self._hf.eos_token_id, "", "", ""
        asked, turns = self._frame("user", generate=True), self._frame("user", "assistant", generate=False)
        if len(asked) < 2:
            raise UserError(f"{self._where}: the chat template does not write what the user's turn says; mend it")
        if len(turns) == 3:
            tail = turns[2].lstrip()
            ids = self._encode_text(tail)
            if ids and ids[0] in self._control:
                end, after = ids[0], turns[2].removesuffix(tail)
            space = turns[1].removeprefix(asked[-1]) if turns[1].startswith(asked[-1]) else ""
            before = space if space.isspace() else ""
            if not before and turns[1] != asked[-1] and asked == self._frame("user", generate=False):
                opening = self._missing_opening(asked[-1], turns[1])
        if end is None:
            raise UserError(
                f"{self._where}: the tokenizer has no end-of-sequence token (eos_token), which ends responses"
            )
        return end, (before, after), opening

    def _missing_opening(self, alone: str, answered: str) -> str:
        """Returns what stands between a question and its answer, beyond what stands behind a question alone."""
        if not answered.startswith(alone):
            raise UserError(
                f"{self._where}: the chat template has no generation prompt (add_generation_prompt changes nothing), "
                f"and the opening of an answer cannot be told: {alone[-60:]!r} stands behind a question alone, "
                f"{answered[-60:]!r} before an answer; add a generation prompt to the template"
            )
        return answered.removeprefix(alone)

    def _rows_needed(self) -> int:
        named = {self.eos_id, self.pad_id, self._hf.bos_token_id, self._hf.unk_token_id}
        idle = {
            token_id
            for token_id, token in self._hf.added_tokens_decoder.items()
            if token.special and token_id not in named and token.content not in self._template.source
        }
        size = self.vocab_size
        while size - 1 in idle:
            size -= 1
        return size

    def silent_ids(self) -> frozenset[int]:
        """The ids that leave no text: control tokens, and the unknown token unless some text has it."""
        unknown = self._hf.unk_token_id
        if unknown is None or unknown in self._encode_plain(_RARE):
            return self._control
        return self._control | {unknown}

    def token_id(self, token: str) -> int | None:
        """The id of a token by its text in the vocabulary; None where that has none."""
        return self._hf.get_vocab().get(token)

    def unused_ids(self, rows: int) -> tuple[tuple[int, int], ...]:
        """The ids below `rows` that are of no token, as ranges `(first, behind the last)`."""
        used = np.zeros(rows + 2, bool)
        used[[0, -1]] = True
        known = np.fromiter(self._hf.get_vocab().values(), int)
        used[known[known < rows] + 1] = True
        edges = np.flatnonzero(np.diff(used))
        return tuple((int(first), int(last)) for first, last in zip(edges[::2], edges[1::2], strict=True))

    def differing(self, other: HFTokenizer) -> list[str]:
        """The tokens of both vocabularies that have different ids in them."""
        known = other._hf.get_vocab()
        return sorted(token for token, i in self._hf.get_vocab().items() if known.get(token, i) != i)


def _hold(index: int) -> str:
    return f"\ue0f0{index}\ue0f1"
