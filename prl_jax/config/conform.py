"""Whether a section has the keys that are declared, with values of their types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from prl_jax.errors import UserError

_TYPES = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    tuple: "a list",
    dict: "a section",
}


def conform(given: Mapping[str, Any], declared: Mapping[str, Any], prefix: str) -> None:
    """Raises `UserError` unless `given` has the keys of `declared`, with values of the same types.

    Args:
      given: a section of a config.
      declared: the same section with its defaults.
      prefix: what stands before each key in a message, such as `sft.`.
    """
    for name in (*declared, *given):
        key = f"{prefix}{name}"
        if name not in declared:
            raise UserError(f"{key}: no such key; known: {', '.join(declared)}")
        if name not in given:
            raise UserError(f"{key}: is missing; make the section with prl_jax.stages.config, which has every key")
        value, default = given[name], declared[name]
        kind = dict if isinstance(default, Mapping) else type(default)
        accepted = {dict: (Mapping, ConfigDict), tuple: (tuple, list), float: (float, int)}.get(kind, (kind,))
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{key}={value!r}: expected {_TYPES[kind]}, such as {default!r}")
        if kind is float and not abs(value) < math.inf:
            raise UserError(f"{key}={value!r}: expected a finite number, such as {default!r}")
        if kind is dict and default:
            conform(dict(value.items()), default, f"{key}.")
