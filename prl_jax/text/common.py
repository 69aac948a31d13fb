"""The parts that the tokenizers share: text cleaning, their file, error texts."""

from pathlib import Path
from typing import Any

from prl_jax import files

FILE_NAME = "prl_tokenizer.json"


def valid_text(text: str) -> str:
    """`text` with lone surrogates, which no UTF-8 can hold, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def one_line(error: Exception) -> str:
    """An exception's message, fit for one line of a terminal."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def write_json(directory: Path, data: dict[str, Any]) -> None:
    """Writes `directory/prl_tokenizer.json`, whole or not at all."""
    files.write_json(directory / FILE_NAME, data, indent=None)
