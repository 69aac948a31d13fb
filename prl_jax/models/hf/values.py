"""Checks of JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

KINDS: Mapping[type, str] = MappingProxyType(
    {
        int: "a whole number above 0",
        float: "a number above 0",
        bool: "true or false",
        str: "a string",
        dict: "an object",
        list: "a list",
    }
)


def is_a(kind: type, value: Any) -> bool:
    """Whether a JSON value is of one of `KINDS`."""
    if kind in (int, float):
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        return number and 0 < value < math.inf
    return isinstance(value, kind)


def short(value: Any) -> str:
    """A value, cut to fit a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
