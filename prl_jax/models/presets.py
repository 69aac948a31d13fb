"""Sizes by name. The vocabulary comes from the tokenizer."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

PRESETS = MappingProxyType(
    {
        # Trains in seconds on two cores; the built-in tasks' size.
        "tiny": dict(width=64, layers=3, heads=4, kv_heads=2, head_dim=16, mlp_width=192),
        "mini": dict(width=128, layers=4, heads=4, kv_heads=2, head_dim=32, mlp_width=384),
        "small": dict(width=256, layers=4, heads=4, kv_heads=2, head_dim=64, mlp_width=688),
        "medium": dict(width=512, layers=8, heads=8, kv_heads=4, head_dim=64, mlp_width=1376),
    }
)


def preset(name: str) -> dict[str, Any]:
    """The fields of a named size, for `DecoderConfig.from_dict`. Raises KeyError for an unknown name."""
    return dict(PRESETS[name])
