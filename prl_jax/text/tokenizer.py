"""Tokenizers: bytes, byte-level BPE trained here, and any Hugging Face tokenizer directory.

All of them keep one promise: `encode` treats its text as text. No user input, whatever it says, yields a special token;
only templates write those.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from prl_jax.errors import UserError
from prl_jax.files import local_path, read_object
from prl_jax.gguf_file import is_gguf
from prl_jax.text import export
from prl_jax.text.common import FILE_NAME, one_line, valid_text, write_json
from prl_jax.text.huggingface import NO_ARGUMENTS, HFTokenizer

SPECIALS = ("pad", "eos", "system", "user", "assistant", "first", "second", "verdict", "reference")
_VOCAB_MULTIPLE = 16  # embedding rows come in multiples of this, so that matrix shapes suit accelerators
IdRanges = tuple[tuple[int, int], ...]
"""Ids as ranges `(first, behind the last)`."""


@runtime_checkable
class Tokenizer(Protocol):
    """The methods of a tokenizer that the package uses.

    Attributes:
      vocab_size: number of embedding rows needed; every id is below it.
      pad_id: fills rows. Never a reason to mask: masks come from lengths.
      eos_id: ends a response (the end-of-turn token where there is one).
    """

    vocab_size: int
    pad_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; never a special token. Lone surrogates become U+FFFD."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens are left out, invalid UTF-8 becomes U+FFFD."""
        ...

    def special(self, name: str) -> int | None:
        """Id of a structural token such as "user", or None when the vocabulary has none."""
        ...

    def save(self, directory: Path) -> None:
        """Writes data files (JSON) from which `load_tokenizer` makes an equal tokenizer."""
        ...


class ByteTokenizer:
    """Ids 0..255 are bytes of UTF-8, then the special tokens; the vocabulary is padded to 272."""

    def __init__(self) -> None:
        self._specials = {name: 256 + i for i, name in enumerate(SPECIALS)}
        self.vocab_size = _round_up(256 + len(SPECIALS))
        self.pad_id = self._specials["pad"]
        self.eos_id = self._specials["eos"]

    def encode(self, text: str) -> list[int]:
        return list(valid_text(text).encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(int(i) for i in ids if 0 <= i < 256).decode("utf-8", errors="replace")

    def special(self, name: str) -> int | None:
        return self._specials.get(name)

    def save(self, directory: Path) -> None:
        write_json(directory, {"kind": "bytes", "version": 1})

    def save_pretrained(self, directory: Path) -> None:
        """Writes the tokenizer and its chat template in Hugging Face's format."""
        export.save_pretrained(directory, export.byte_backend(), self._specials)


class BPETokenizer:
    """Byte-level BPE of the `tokenizers` library; the special tokens follow its vocabulary.

    The library's own vocabulary holds no special tokens at all, so its `encode` cannot yield one.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        size = backend.get_vocab_size()
        self._size = size
        self._specials = {name: size + i for i, name in enumerate(SPECIALS)}
        self.vocab_size = _round_up(size + len(SPECIALS))
        self.pad_id = self._specials["pad"]
        self.eos_id = self._specials["eos"]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learns merges from `texts`; at most `vocab_size` ids, special tokens included (then padded to 16).

        Raises:
          UserError: when `vocab_size` leaves no room for the 256 bytes and the special tokens.
        """
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers, trainers

        if vocab_size < 256 + len(SPECIALS):
            raise UserError(
                f"BPE vocabulary of {vocab_size} is too small: expected at least {256 + len(SPECIALS)} "
                f"(256 bytes and {len(SPECIALS)} special tokens)"
            )
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIALS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator((valid_text(text) for text in texts), trainer)
        return cls(backend)

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(valid_text(text), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode([int(i) for i in ids if 0 <= i < self._size], skip_special_tokens=False)

    def special(self, name: str) -> int | None:
        return self._specials.get(name)

    def save(self, directory: Path) -> None:
        write_json(directory, {"kind": "bpe", "version": 1, "tokenizer": json.loads(self._backend.to_str())})

    def save_pretrained(self, directory: Path) -> None:
        """Writes the tokenizer and its chat template in Hugging Face's format."""
        export.save_pretrained(directory, self._backend, self._specials)


def load_tokenizer(directory: Path, template_args: Mapping[str, Any] = NO_ARGUMENTS) -> Tokenizer:
    """Reads what `save` wrote, a Hugging Face tokenizer directory, or the tokenizer of a GGUF file.

    Args:
      directory: holds the tokenizer; or a GGUF file.
      template_args: what the chat template is given beside the conversation; only Hugging Face tokenizers take any.

    Raises:
      UserError: when the directory is missing or holds neither.
    """
    directory = local_path(directory)
    path = directory / FILE_NAME
    if is_gguf(directory):
        return HFTokenizer(directory, template_args)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory (expected one with {FILE_NAME} or Hugging Face files)")
    data = read_object(path) if path.is_file() else {"kind": "huggingface"}
    kind = data.get("kind")
    if kind == "huggingface":
        return HFTokenizer(directory, template_args)
    if template_args:
        raise UserError(f"{path}: template_args={dict(template_args)}: this tokenizer's chat template takes none")
    if kind == "bytes":
        return ByteTokenizer()
    if kind != "bpe":
        raise UserError(f'{path}: unknown tokenizer kind "{kind}": expected bytes, bpe or huggingface')
    from tokenizers import Tokenizer as Backend

    try:
        return BPETokenizer(Backend.from_str(json.dumps(data["tokenizer"])))
    except Exception as error:  # `tokenizers` raises plain Exception
        raise UserError(f"{path}: not a tokenizer file: {one_line(error)}") from error


def check_rows(tokenizer: Tokenizer, rows: int, where: Path) -> None:
    """Raises `UserError` for a tokenizer with ids that a model's embedding of so many rows does not have.

    They would be clamped to the last row, without a word.
    """
    if getattr(tokenizer, "rows_needed", tokenizer.vocab_size) > rows:
        raise UserError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} ids, but the model's embedding only {rows} rows; give "
            "the model the tokenizer that it was trained with, or resize its embedding and train the new tokens"
        )


def unused_ids(tokenizer: Tokenizer, rows: int) -> IdRanges:
    """The rows of an embedding that are of no token, as ranges `(first, behind the last)`: no text has them.

    The few that fill up the vocabularies of this package's own tokenizers are left as they are: a model that is made
    for one learns not to give them any probability, and they are not sampled (`unsampled_ids`).
    """
    return tokenizer.unused_ids(rows) if isinstance(tokenizer, HFTokenizer) else ()


def unsampled_ids(tokenizer: Tokenizer, rows: int, stop_ids: Collection[int]) -> IdRanges:
    """The ids that no response may have, as ranges `(first, behind the last)`: those that leave no text.

    Nobody who reads a response would see them, a judge neither, and the policy would be trained on them all the same.

    Args:
      tokenizer: of the model.
      rows: of its embedding.
      stop_ids: tokens that end a response; they leave no text either, and have to be sampled.
    """
    if isinstance(tokenizer, HFTokenizer):
        silent = tokenizer.silent_ids()
    else:
        silent = {i for i in range(rows) if not tokenizer.decode([i])}
    return id_ranges({i for i in silent if i < rows} - set(stop_ids))


def id_ranges(ids: Collection[int]) -> IdRanges:
    """Returns the shortest ranges, in ascending order, that hold these ids and no others."""
    members, ordered = set(ids), sorted(ids)
    starts = [i for i in ordered if i - 1 not in members]
    ends = [i + 1 for i in ordered if i + 1 not in members]
    return tuple(zip(starts, ends, strict=True))


def _round_up(size: int) -> int:
    return -(-size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
