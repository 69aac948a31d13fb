"""Reading the files of a Hugging Face tokenizer, from local files only, without remote code."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from prl_jax.errors import UserError
from prl_jax.files import local_path, read_object
from prl_jax.gguf_file import is_gguf
from prl_jax.text.common import one_line
from prl_jax.text.gguf import read_gguf_tokenizer
from prl_jax.text.quiet import quiet

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
TEMPLATE_FILE = "chat_template.jinja"
_DROP_TEMPLATE = f"delete that file and the key chat_template of {FILES[1]} for the default template"
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def holds_tokenizer(directory: Path) -> bool:
    """Whether a directory has files of a tokenizer; a GGUF file has its own."""
    return (is_gguf(directory) and directory.is_file()) or any((directory / name).is_file() for name in FILES)


def read_tokenizer(directory: Path) -> Any:
    """The tokenizer of transformers.

    Raises:
      UserError: the directory holds none, or one that cannot be read.
    """
    if is_gguf(local_path(directory)):
        return read_gguf_tokenizer(local_path(directory))
    if not holds_tokenizer(local_path(directory)):
        raise UserError(f"{directory}: no tokenizer files (expected one of {', '.join(FILES)})")
    _check_packages(directory)
    with quiet():
        from transformers import AutoTokenizer
    with quiet():  # now that the library has its own way to the terminal
        try:
            return AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False, clean_up_tokenization_spaces=False
            )
        except Exception as error:  # the library raises many kinds for broken files
            _name_broken(directory)
            raise UserError(f"{directory}: cannot read the tokenizer: {one_line(error)}") from error


def _name_broken(directory: Path) -> None:
    """Raises `UserError` for a file of the tokenizer that is no JSON object: what the library says of one names
    another file, or a package."""
    for name in (name for name in (*FILES, "special_tokens_map.json") if name.endswith(".json")):
        if (directory / name).is_file():
            try:
                read_object(directory / name)
            except UserError as error:
                raise UserError(f"{error}: the file is damaged; download it again") from error


def _check_packages(directory: Path) -> None:
    """transformers guesses which package is missing for a vocabulary without tokenizer.json, and often wrongly."""
    found = next((directory / name for name in _SENTENCEPIECE if (directory / name).is_file()), None)
    if found is None or (directory / "tokenizer.json").is_file():
        return
    # Llama 3's file of that name is tiktoken's: lines of base64 and a number.
    with open(found, "rb") as file:
        start = file.read(64).split(b"\n")[0]
    tiktoken = start.count(b" ") == 1 and start.isascii() and start.split()[-1:] == [b"0"]
    needed = ("tiktoken",) if tiktoken else ("sentencepiece", "google.protobuf")
    missing = [name.replace("google.protobuf", "protobuf") for name in needed if not _installed(name)]
    if missing:
        raise UserError(
            f"{found}: reading this vocabulary needs the package {' and '.join(missing)}: pip install "
            f"{' '.join(missing)}; or save the tokenizer as tokenizer.json, which needs none"
        )


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def own_template(hf: Any, where: str) -> str | None:
    """The chat template of a tokenizer, the one called "default" where there are several; None where it has none."""
    template = hf.chat_template
    if isinstance(template, str) and not template.strip():
        raise UserError(f"{where}: the chat template is empty; put one into {TEMPLATE_FILE}, or {_DROP_TEMPLATE}")
    if isinstance(template, dict) and template:
        if "default" not in template:
            raise UserError(
                f'{where}: the chat templates are called {", ".join(sorted(template))}; none is "default": save the '
                f"one to use as {TEMPLATE_FILE}"
            )
        template = template["default"]
    if template and not isinstance(template, str):
        raise UserError(f"{where}: chat_template is no text")
    return template or None
