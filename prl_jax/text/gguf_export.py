"""Tokenizers as the metadata of a GGUF file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prl_jax.errors import UserError
from prl_jax.files import parse_json
from prl_jax.text.gguf import BYTE, CONTROL, CUTS, NORMAL, SPACE, SPECIALS, UNKNOWN, UNUSED, USER_DEFINED
from prl_jax.text.huggingface import HFTokenizer

_ADVICE = "export to Hugging Face's format"


def gguf_tokens(tokenizer: Any, rows: int) -> dict[str, Any]:
    """The keys of a tokenizer and its chat template, as llama.cpp reads them.

    Args:
      tokenizer: one that can be saved in Hugging Face's format.
      rows: of the embedding; rows of no token get one that no text has.

    Raises:
      UserError: llama.cpp has no tokenizer like it.
    """
    with tempfile.TemporaryDirectory(prefix="prl-") as folder:
        tokenizer.save_pretrained(Path(folder))
        hf = HFTokenizer(Path(folder))
    saved = parse_json(hf._hf.backend_tokenizer.to_str())
    model = saved["model"]
    if model.get("type") != "BPE":
        raise UserError(f"export: llama.cpp knows no tokenizers of kind {model.get('type')!r} as this one; {_ADVICE}")
    added = {token["id"]: token for token in saved["added_tokens"]}
    ids = {i: token for token, i in model["vocab"].items()} | {i: token["content"] for i, token in added.items()}
    pairs = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ", 1)) for pair in model["merges"]]
    pieces = bool(model.get("byte_fallback"))
    kinds = np.array([_kind(ids, added, i, hf._hf.unk_token, pieces) for i in range(rows)], np.int32)
    tokens = [ids.get(i, f"[PAD{i}]") for i in range(rows)]
    said: dict[str, Any] = {"model": "llama" if pieces else "gpt2", "token_type": kinds}
    if pieces:
        spaces = [token.replace(SPACE, " ") if kinds[i] == USER_DEFINED else token for i, token in enumerate(tokens)]
        prefix = _prefix(saved)
        said |= {"pre": "default", "tokens": spaces, "scores": _scores(tokens, pairs), "add_space_prefix": prefix}
    else:
        said |= {"pre": _name(saved, bool(pairs)), "tokens": tokens, "merges": [" ".join(pair) for pair in pairs]}
    said |= _specials(hf, rows)
    template = hf._hf.chat_template
    found = {f"tokenizer.ggml.{key}": value for key, value in said.items()}
    return {**found, "tokenizer.chat_template": template} if isinstance(template, str) else found


def _kind(ids: Mapping[int, str], added: Mapping[int, Any], i: int, unknown: str | None, pieces: bool) -> int:
    """llama.cpp's type of the token with an id."""
    if i not in ids:
        return UNUSED
    if i in added:
        if pieces and ids[i] == unknown:
            return UNKNOWN
        return CONTROL if added[i]["special"] else USER_DEFINED
    byte = pieces and len(ids[i]) == len("<0x00>") and ids[i].startswith("<0x")
    return BYTE if byte else NORMAL


def _scores(tokens: list[str], pairs: list[tuple[str, ...]]) -> np.ndarray:
    """Scores by which SentencePiece joins the pairs in their order."""
    ranks: dict[str, int] = {}
    for pair in pairs:
        ranks.setdefault("".join(pair), len(ranks))
    return -np.array([ranks.get(token, len(ranks)) for token in tokens], np.float32)


def _prefix(saved: Mapping[str, Any]) -> bool:
    """Whether a text gets a space in front."""
    steps = _steps(saved.get("normalizer"), "normalizers") + _steps(saved.get("pre_tokenizer"), "pretokenizers")
    prepends = any(step["type"] == "Prepend" for step in steps)
    return prepends or any(step["type"] == "Metaspace" and step.get("prepend_scheme") != "never" for step in steps)


def _name(saved: Mapping[str, Any], merges: bool) -> str:
    """llama.cpp's name of the rule that cuts text before its bytes are merged."""
    steps = _steps(saved.get("pre_tokenizer"), "pretokenizers")
    forms = [step["type"] for step in _steps(saved.get("normalizer"), "normalizers")]
    patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    levels = [step for step in steps if step["type"] == "ByteLevel"]
    usual = {"Split", "ByteLevel", "Digits"} >= {step["type"] for step in steps} and forms in ([], ["NFC"])
    if usual and len(levels) == 1 and len(patterns) <= 1 and not levels[0].get("add_prefix_space"):
        if not merges:  # single bytes, however text is cut
            return next(iter(CUTS))
        digits = any(step.get("individual_digits") for step in steps if step["type"] == "Digits")
        for name, cut in CUTS.items():
            same = (cut.pattern or None) == (patterns[0] if patterns else None) and cut.digits == digits
            usual = levels[0].get("use_regex", True) is not bool(cut.pattern)
            whole = cut.whole == bool(saved["model"].get("ignore_merges"))
            if same and usual and whole and cut.composed == (forms == ["NFC"]):
                return name
    raise UserError(
        f"export: llama.cpp has no name for how this tokenizer cuts text (known: {', '.join(CUTS)}); {_ADVICE}"
    )


def _steps(part: Any, key: str) -> list[dict[str, Any]]:
    """The parts of a sequence in a tokenizer.json, or the one that stands alone."""
    if part is None:
        return []
    return list(part[key]) if part["type"] == "Sequence" else [part]


def _specials(tokenizer: HFTokenizer, rows: int) -> dict[str, Any]:
    """The ids of special tokens, and whether a text begins and ends with any."""
    hf = tokenizer._hf
    ids = {key: getattr(hf, f"{name}_id") for name, key in SPECIALS.items()}
    if tokenizer.eos_id != ids["eos"]:
        ids["eot"] = tokenizer.eos_id
    found: dict[str, Any] = {f"{key}_token_id": int(i) for key, i in ids.items() if i is not None and i < rows}
    around = hf("a").input_ids
    found["add_bos_token"] = hf.bos_token_id is not None and around[:1] == [hf.bos_token_id]
    found["add_eos_token"] = hf.eos_token_id is not None and around[-1:] == [hf.eos_token_id]
    return found
