"""`generation_config.json` of a Hugging Face checkpoint: which tokens end a response."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prl_jax.errors import UserError
from prl_jax.files import read_object
from prl_jax.models.hf.values import short

GENERATION_FILE = "generation_config.json"
# Keys that decide what a response is, and that nothing here follows.
_REFUSED = ("stop_strings", "forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids")


def read_generation(directory: Path) -> dict[str, Any] | None:
    """The file's content, None where there is none."""
    path = directory / GENERATION_FILE
    return read_object(path) if path.is_file() else None


def end_tokens(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None, rows: int, where: str
) -> tuple[int, ...]:
    """The tokens that end a response, as `config.json` and `generation_config.json` name them (a number or a list).

    Args:
      config, generation: what the two files hold.
      rows: of the embedding; an id behind them is of no token and ends nothing.
      where: the directory, for messages.

    Raises:
      UserError: something else stands there, or another way to end responses.
    """
    found: list[int] = []
    for file, values in (("config.json", config), (GENERATION_FILE, generation or {})):
        ends = values.get("eos_token_id")
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        if not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
            raise UserError(f"{where}/{file}: eos_token_id={short(ends)}, expected a token id or a list of them")
        found += [end for end in ends if 0 <= end < rows]
    for key in _REFUSED:
        if (generation or {}).get(key):
            raise UserError(
                f"{where}/{GENERATION_FILE}: {key}={short(generation[key])} is not supported; take it out to generate "
                "without it"
            )
    return tuple(dict.fromkeys(found))
