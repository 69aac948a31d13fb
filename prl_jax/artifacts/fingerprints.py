"""Tells a model directory from what it may become: a run that goes on has to read the model that it began with.

Sizes and checksums of the files that make up a model, those of its base included. Times are left out, since a copy has
others. Of a large file the beginning (a safetensors file's header) and blocks spread over the rest are read: training
moves nearly every weight, so that another model shows without reading all of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from prl_jax.artifacts.cards import EXPORT_FILE
from prl_jax.errors import UserError
from prl_jax.file_names import CHECKPOINTS_DIR, MODEL_FILE, TOKENIZER_DIR
from prl_jax.files import read_object
from prl_jax.gguf_file import is_gguf
from prl_jax.models.hf.peft import adapter_base

# Names of the files of a model in Hugging Face's format, its tokenizer included.
HUGGINGFACE_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", EXPORT_FILE),
    *("adapter_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.*"),
    *("vocab.*", "merges.txt", "*.model"),
)
_STAGE_FOLDERS = (TOKENIZER_DIR, CHECKPOINTS_DIR)
_WHOLE = 64 * 2**20  # bytes of a file that is read to its end
_BLOCK, _BLOCKS = 2**16, 64


def model_files(directory: Path) -> dict[str, str]:
    """File of a model directory -> its size and checksum, in words; those of the model that it adapts begin with
    "base/". A GGUF file is one of its own; nothing for what is neither.

    Raises:
      UserError: a file cannot be read.
    """
    if is_gguf(directory) and os.path.isfile(directory):
        return {directory.name: _look(directory)}
    if not os.path.isdir(directory):  # a text that is too long for a path is none either
        return {}
    paths = [path for path in directory.iterdir() if any(fnmatch(path.name, name) for name in HUGGINGFACE_FILES)]
    paths += [directory / MODEL_FILE]
    paths += [path for name in _STAGE_FOLDERS for path in (directory / name).rglob("*")]
    found = {str(path.relative_to(directory)): _look(path) for path in sorted(set(paths)) if path.is_file()}
    base = adapter_base(directory)
    if base is None and (directory / MODEL_FILE).is_file():
        name = read_object(directory / MODEL_FILE).get("base")
        base = directory / name if isinstance(name, str) else None
    below = {} if base is None else model_files(base)
    return found | {f"base/{name}": value for name, value in below.items()}


def looks(files: Iterable[Path]) -> dict[str, str]:
    """Each file -> its size and checksum, in words.

    Raises:
      UserError: a file cannot be read.
    """
    return {str(file): _look(file) for file in files}


def difference(before: dict[str, str], now: dict[str, str]) -> str:
    """Which files differ, in words; "" where none does."""
    changed = [f"{name} is gone" for name in before if name not in now]
    changed += [f"{name} is new" for name in now if name not in before]
    changed += [
        f"{name} had {before[name]} then, {now[name]} now"
        for name in before
        if now.get(name, "") != before[name] and name in now
    ]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return "; ".join(changed[:3]) + more


def _look(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _WHOLE:
                digest = hashlib.file_digest(file, "sha256")
            else:
                digest.update(file.read(2**20))
                for i in range(_BLOCKS):
                    file.seek((size - _BLOCK) * i // (_BLOCKS - 1))
                    digest.update(file.read(_BLOCK))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return f"{size:,} bytes (SHA-256 {digest.hexdigest()[:12]})"
