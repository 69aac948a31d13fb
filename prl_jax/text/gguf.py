"""Tokenizers of GGUF files, rebuilt from their metadata as transformers' own.

A file has no `tokenizer.json`: it has the vocabulary, the merges, and the name of the rule by which text is cut before
them. Two kinds are rebuilt: byte-level BPE ("gpt2" in llama.cpp) and SentencePiece's BPE ("llama"). What transformers
has for this knows neither the rule of SmolLM nor the normal form of Qwen.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from prl_jax.errors import UserError, quoted
from prl_jax.gguf_file import read_header, stamp
from prl_jax.text.common import one_line
from prl_jax.text.quiet import quiet

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's types of tokens
SPACE = "\u2581"  # what SentencePiece writes for a space
MAX_PIECE = 256  # characters of a token that merges are told from; the longest known have half as many
# Keys under `tokenizer.ggml.`, beside the ids of special tokens. Another one may change what text becomes.
_KEYS = frozenset(
    {"model", "pre", "tokens", "token_type", "token_type_count", "scores", "merges", "add_bos_token", "add_eos_token"}
    | {"add_sep_token", "add_space_prefix", "remove_extra_whitespaces"}
)
SPECIALS: Mapping[str, str] = MappingProxyType(
    {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
)
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEHIND = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _BEHIND
_QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _BEHIND
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class Cut:
    """How byte-level BPE cuts text before it merges.

    Attributes:
      pattern: of the pieces; "" for that of GPT-2.
      digits: whether each digit is a piece of its own, before the pattern.
      whole: whether a piece that is a token stays one, whatever the merges say.
      composed: whether text is brought into the normal form C.
      bos: whether a text begins with the first token, where the file does not say.
    """

    pattern: str = ""
    digits: bool = False
    whole: bool = False
    composed: bool = False
    bos: bool = False


_GPT2, _DIGITS = Cut(), Cut(digits=True)
_LLAMA_BPE, _QWEN = Cut(_LLAMA3, whole=True, bos=True), Cut(_QWEN2, composed=True)
# Value of `tokenizer.ggml.pre` -> the rule; the first of several names of one rule is the one that is written.
CUTS: Mapping[str, Cut] = MappingProxyType(
    {
        **{"gpt-2": _GPT2, "mpt": _GPT2, "olmo": _GPT2},
        **{"smollm": _DIGITS, "starcoder": _DIGITS, "refact": _DIGITS, "command-r": _DIGITS, "codeshell": _DIGITS},
        **{"llama-bpe": _LLAMA_BPE, "llama3": _LLAMA_BPE, "llama-v3": _LLAMA_BPE, "falcon3": _LLAMA_BPE},
        **{"smaug-bpe": Cut(_LLAMA3), "dbrx": Cut(_LLAMA3)},
        **{"qwen2": _QWEN, "deepseek-r1-qwen": _QWEN, "stablelm2": Cut(_QWEN2)},
        "tekken": Cut(_TEKKEN, whole=True),
    }
)


class Vocabulary:
    """The tokens of a file and their types. Those that fill up the embedding's last rows are left out.

    Raises:
      UserError: there are none, or they do not go together.
    """

    def __init__(self, said: Mapping[str, Any], where: str) -> None:
        self.said, self.where = said, where
        keys = [key.removeprefix("tokenizer.ggml.") for key in said if key.startswith("tokenizer.ggml.")]
        unknown = [key for key in keys if key not in _KEYS and not key.endswith("_token_id")]
        if unknown or self.flag("remove_extra_whitespaces", False):
            key = unknown[0] if unknown else "remove_extra_whitespaces"
            raise self.broken(f"tokenizer.ggml.{key} is not supported")
        tokens, types = self.get("tokens"), self.get("token_type")
        if not isinstance(tokens, list) or not tokens:
            raise self.broken("tokenizer.ggml.tokens: expected a list of texts")
        if types is None:
            types = np.full(len(tokens), NORMAL)
        if not isinstance(types, np.ndarray) or len(types) != len(tokens):
            raise self.broken(f"tokenizer.ggml.token_type: expected one number for each of {len(tokens)} tokens")
        size = len(tokens)
        while size and types[size - 1] == UNUSED and tokens[size - 1] == f"[PAD{size - 1}]":
            size -= 1
        self.tokens, self.types = tokens[:size], types[:size].astype(int)

    def get(self, key: str) -> Any:
        return self.said.get(f"tokenizer.ggml.{key}")

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        return default if value is None else bool(value)

    def broken(self, what: str) -> UserError:
        return UserError(f"{self.where}: cannot rebuild the tokenizer: {what}")

    def ids(self) -> dict[str, int]:
        """Token -> id."""
        found = {token: i for i, token in enumerate(self.tokens)}
        if len(found) < len(self.tokens):
            twice = next(token for i, token in enumerate(self.tokens) if found[token] != i)
            raise self.broken(f"the token {quoted(twice)} stands twice")
        return found

    def special(self, name: str) -> str | None:
        """The token of a name such as "eos"."""
        key = f"{name}_token_id"
        i = self.get(key)
        if i is None:
            return None
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(self.tokens):
            raise self.broken(f"tokenizer.ggml.{key}={i!r}, expected an id below {len(self.tokens)}")
        return self.tokens[i]

    def of_type(self, kind: int) -> list[str]:
        return [self.tokens[i] for i in np.flatnonzero(self.types == kind)]


def read_gguf_tokenizer(path: Path) -> Any:
    """The tokenizer of a file, with its chat template, as one of transformers.

    Raises:
      UserError: the file has none, or one that cannot be rebuilt; by name.
    """
    backend, names = _built(Path(path), *stamp(path))
    return _wrapped(backend, names, read_header(path).metadata.get("tokenizer.chat_template"))


@functools.lru_cache(maxsize=2)
def _built(path: Path, *_: int) -> tuple[Any, dict[str, str | None]]:
    """The `tokenizers` tokenizer of a file, and its special tokens by name. It is kept, since a large vocabulary takes
    seconds, and whoever gets it makes a copy."""
    vocabulary = Vocabulary(read_header(path).metadata, str(path))
    kind = vocabulary.get("model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise vocabulary.broken(f"tokenizer.ggml.model={kind!r} is not supported; supported: {', '.join(builders)}")
    names = {name: vocabulary.special(key) for name, key in SPECIALS.items()}
    try:
        backend = builders[kind](vocabulary)
        _add_tokens(backend, vocabulary)
        _add_ends(backend, vocabulary, names)
    except UserError:
        raise
    except Exception as error:  # the library raises many kinds for broken vocabularies
        raise vocabulary.broken(one_line(error)) from error
    return backend, names


def _byte_level(vocabulary: Vocabulary) -> Any:
    """Byte-level BPE; its tokens are written in the alphabet that prints each byte."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name, merges = vocabulary.get("pre"), vocabulary.get("merges")
    cut = CUTS.get(name) if isinstance(name, str) else None
    if cut is None:
        raise vocabulary.broken(f"tokenizer.ggml.pre={name!r} is not supported; supported: {', '.join(CUTS)}")
    if not isinstance(merges, list):
        raise vocabulary.broken("tokenizer.ggml.merges: expected a list of texts")
    pairs = [(merge[:at], merge[at + 1 :]) for merge in merges if (at := merge.find(" ", 1)) > 0]
    if len(pairs) < len(merges):
        raise vocabulary.broken("tokenizer.ggml.merges: expected two texts with a space between them in each")
    backend = Tokenizer(models.BPE(vocabulary.ids(), pairs, ignore_merges=cut.whole))
    if cut.composed:
        backend.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut.digits else []
    if cut.pattern:
        steps.append(pre_tokenizers.Split(Regex(cut.pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cut.pattern))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(vocabulary: Vocabulary) -> Any:
    """SentencePiece's BPE, with bytes for characters that it lacks.

    Text gets a space in front, and behind each control token, unless the file says otherwise, as Gemma's do.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    prefix = vocabulary.flag("add_space_prefix", True)
    # llama.cpp writes runs of spaces as such where they are tokens of the user's; here text has none left.
    vocabulary.tokens = [
        SPACE * len(token) if kind == USER_DEFINED and not token.strip(" ") else token
        for token, kind in zip(vocabulary.tokens, vocabulary.types.tolist(), strict=True)
    ]
    unknown = vocabulary.special("unknown") or next(iter(vocabulary.of_type(UNKNOWN)), None)
    options: dict[str, Any] = {} if unknown is None else {"unk_token": unknown, "fuse_unk": True}
    backend = Tokenizer(models.BPE(vocabulary.ids(), _merges(vocabulary), byte_fallback=True, **options))
    spaces = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The pairs of tokens that make up another one, the best first.

    SentencePiece joins the two neighbours whose token has the highest score, and those that make up a token of the
    user's before all others.
    """
    ids, scores = vocabulary.ids(), vocabulary.get("scores")
    if not isinstance(scores, np.ndarray) or len(scores) < len(ids):
        raise vocabulary.broken(f"tokenizer.ggml.scores: expected one number for each of {len(ids)} tokens")
    kinds, found = vocabulary.types, []
    if not np.all(np.isfinite(scores)):
        raise vocabulary.broken("tokenizer.ggml.scores: holds NaN or infinity")
    ranks = np.where(kinds == USER_DEFINED, -np.inf, -scores[: len(ids)].astype(float)).tolist()
    for i, token in enumerate(vocabulary.tokens):
        if kinds[i] not in (NORMAL, USER_DEFINED) or len(token) < 2:
            continue
        if len(token) > MAX_PIECE:
            raise vocabulary.broken(f"the token {quoted(token)} has {len(token)} characters, expected {MAX_PIECE}")
        for at in range(1, len(token)):
            left, right = ids.get(token[:at]), ids.get(token[at:])
            if left is not None and right is not None:
                found.append((ranks[i], i, left, right))
    found.sort()
    return [(vocabulary.tokens[left], vocabulary.tokens[right]) for *_, left, right in found]


def _add_tokens(backend: Any, vocabulary: Vocabulary) -> None:
    """Tokens that text is cut at before anything else: control tokens, and those that were added for a use."""
    from tokenizers import AddedToken

    control = dict.fromkeys([*vocabulary.of_type(UNKNOWN), *vocabulary.of_type(CONTROL)])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    plain = [token for token in vocabulary.of_type(USER_DEFINED) if token.strip(SPACE)]
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])


def _add_ends(backend: Any, vocabulary: Vocabulary, names: Mapping[str, str | None]) -> None:
    """Tokens at both ends of a text, as the file says; chat templates write their own."""
    from tokenizers.processors import TemplateProcessing

    cut = CUTS.get(str(vocabulary.get("pre")), _GPT2)
    bos = vocabulary.flag("add_bos_token", cut.bos or vocabulary.get("model") == "llama")
    first = names["bos_token"] if bos else None
    last = names["eos_token"] if vocabulary.flag("add_eos_token", False) else None

    def around(slot: str) -> list[str]:
        return [*([first] if first else []), slot, *([last] if last else [])]

    if first or last:
        used = [(token, backend.token_to_id(token)) for token in dict.fromkeys([first, last]) if token]
        backend.post_processor = TemplateProcessing(
            single=around("$A"), pair=[*around("$A"), *around("$B")], special_tokens=used
        )


def _wrapped(backend: Any, names: Mapping[str, str | None], template: Any) -> Any:
    with quiet():
        from transformers import PreTrainedTokenizerFast
    with quiet():
        given: dict[str, Any] = {name: token for name, token in names.items() if token is not None}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **given)
    if isinstance(template, str) and template.strip():
        tokenizer.chat_template = template
    return tokenizer
