"""Measurements are kept in the workdir, so that a run that is continued does not read everything again.

A file holds what its numbers were made from: the fingerprint of the data, which rows, the tokenizer, the versions of
what renders and encodes. What does not say just that, or is no such file, is measured anew.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import prl_jax
from prl_jax.files import parse_json, write_json
from prl_jax.measuring.records import COLUMNS, Measured
from prl_jax.text.tokenizer import Tokenizer

_PACKAGES = ("transformers", "tokenizers", "jinja2")


def identity(tokenizer: Tokenizer | None) -> str:
    """Tells tokenizers apart by what they save: vocabulary, merges, special tokens, chat template."""
    if tokenizer is None:
        return ""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix="prl-") as folder:
        tokenizer.save(Path(folder))
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            data = path.read_bytes()
            digest.update(f"{path.relative_to(folder)} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of the code that the numbers come from."""
    return {"prl_jax": prl_jax.__version__, **{name: metadata.version(name) for name in _PACKAGES}}


def read_measured(folder: Path, made_from: dict[str, Any], count: int) -> Measured | None:
    """The kept measurements of `count` records; None where none were kept, or none that can be used."""
    try:
        found = parse_json(_path(folder, made_from).read_text(encoding="utf-8"))
        columns = [found["columns"][name] for name in COLUMNS]
        rows = np.array(columns, np.int32).reshape(len(COLUMNS), -1).T
        counts = [number for column in columns for number in column]
        reason, same = str(found["reason"]), found["made_from"] == made_from
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    if not same or len(rows) != count or any(type(number) is not int or number < 0 for number in counts):
        return None
    return Measured.of(rows, reason)


def keep_measured(folder: Path, made_from: dict[str, Any], measured: Measured) -> None:
    """Keeps what was measured."""
    columns = {name: column.tolist() for name, column in zip(COLUMNS, measured.rows.T, strict=True)}
    write_json(_path(folder, made_from), {"made_from": made_from, "reason": measured.reason, "columns": columns})


def _path(folder: Path, made_from: dict[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{name}.json"
