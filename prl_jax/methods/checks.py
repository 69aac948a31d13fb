"""Checks that pieces make of their own fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prl_jax.errors import UserError


def check_range(piece: Any, names: Sequence[str], low: float | int, high: float | int, *, above: bool = False) -> None:
    """Raises `UserError`, with the field's name, for a number that is not in `[low, high]`.

    With `above`, `low` itself is refused too.
    """
    for name in names:
        value = getattr(piece, name)
        if not low <= value <= high or (above and value == low):
            least = f"above {low:g}" if above else f"at least {low:g}"
            most = "" if high == float("inf") else f" and at most {high:g}"
            raise UserError(f"{name}={value!r}, expected {least}{most}")


def check_word(piece: Any, name: str, words: Sequence[str]) -> None:
    """Raises `UserError`, with the field's name, for a word that is not one of `words`."""
    value = getattr(piece, name)
    if value not in words:
        raise UserError(f"{name}={value!r}, expected one of {', '.join(map(repr, words))}")
