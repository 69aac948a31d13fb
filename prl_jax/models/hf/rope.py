"""Rotary positions as `config.json` says them: `rope_theta` and `rope_scaling`, or the newer `rope_parameters`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from prl_jax.errors import UserError
from prl_jax.models.config import RopeScaling
from prl_jax.models.hf.families import FULL, SLIDING, Family
from prl_jax.models.hf.values import KINDS, is_a, short

# What each `rope_type` takes.
_OPTIONS: Mapping[str, Mapping[str, type]] = MappingProxyType(
    {
        "default": {},
        "linear": {"factor": float},
        "llama3": {
            "factor": float,
            "low_freq_factor": float,
            "high_freq_factor": float,
            "original_max_position_embeddings": int,
        },
        "yarn": {
            "factor": float,
            "original_max_position_embeddings": int,
            "attention_factor": float,
            "beta_fast": float,
            "beta_slow": float,
            "mscale": float,
            "mscale_all_dim": float,
            "truncate": bool,
        },
    }
)
_NEEDED = ("factor", "low_freq_factor", "high_freq_factor")


def read_rope(hf: Mapping[str, Any], values: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    """The fields of `DecoderConfig` about RoPE.

    Args:
      hf, values: `config.json`, and the same with missing keys filled in.
      family: of the checkpoint.
      where: the file, for messages.
    """
    old, new = values["rope_scaling"], values["rope_parameters"]
    if old is not None and new is not None:
        raise UserError(f"{where}: has both rope_scaling and rope_parameters; keep one")
    label = f"{where}: {'rope_parameters' if old is None else 'rope_scaling'}"
    far, near = (old or new or {}), {}
    two_kinds = "rope_local_base_freq" in family.defaults
    if two_kinds and new is not None:
        if set(new) - {FULL, SLIDING}:
            raise UserError(f"{label} has the keys {sorted(new)}, expected {FULL} and {SLIDING}")
        far, near = new.get(FULL) or {}, new.get(SLIDING) or {}
    theta, scaling = _read_part(hf, values, far, "rope_theta", label)
    fields = dict(rope_theta=theta, rope_scaling=scaling)
    if two_kinds:
        local, stretched = _read_part(hf, values, near, "rope_local_base_freq", f"{label}.{SLIDING}")
        if stretched is not None:
            raise UserError(f"{label}.{SLIDING} stretches the frequencies of windowed layers, which is not supported")
        fields.update(local_rope_theta=local)
    return fields


def write_rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The older keys, which every version of transformers reads."""
    if scaling is None:
        return dict(rope_theta=theta, rope_scaling=None)
    part = dict(rope_type=scaling.kind, factor=scaling.factor)
    if scaling.kind != "linear":
        part.update(original_max_position_embeddings=scaling.original_positions)
    if scaling.kind == "llama3":
        part.update(low_freq_factor=scaling.low_frequency, high_freq_factor=scaling.high_frequency)
    if scaling.kind == "yarn":
        part.update(
            beta_fast=scaling.beta_fast,
            beta_slow=scaling.beta_slow,
            attention_factor=scaling.attention_factor,
            truncate=scaling.truncate,
        )
    return dict(rope_theta=theta, rope_scaling=part)


def _read_part(
    hf: Mapping[str, Any], values: Mapping[str, Any], part: Mapping[str, Any], theta_key: str, where: str
) -> tuple[float, RopeScaling | None]:
    """Base and scaling of one object."""
    part = {key: value for key, value in part.items() if value is not None}
    kinds = {part.pop(key) for key in ("rope_type", "type") if key in part} or {"default"}
    if len(kinds) > 1 or not kinds <= set(_OPTIONS):
        raise UserError(
            f"{where}: rope_type={'/'.join(sorted(kinds))!r} is not supported; known: {', '.join(_OPTIONS)}"
        )
    (kind,) = kinds
    theta = part.pop("rope_theta", values[theta_key])
    if not is_a(float, theta) or (theta_key in hf and theta != hf[theta_key]):
        raise UserError(f"{where}: rope_theta={theta!r} has to be {KINDS[float]}, the same as {theta_key}")
    if part.pop("partial_rotary_factor", 1) != 1:
        raise UserError(f"{where}: partial_rotary_factor is not supported")
    options = _OPTIONS[kind]
    if "original_max_position_embeddings" in options:
        part.setdefault("original_max_position_embeddings", values["max_position_embeddings"])
    wrong = [f"{k}={short(v)}" for k, v in part.items() if k not in options or not is_a(options[k], v)]
    wrong += [f"{key} is missing" for key in _NEEDED if key in options and key not in part]
    if wrong:
        takes = ", ".join(f"{key} ({KINDS[kind]})" for key, kind in options.items()) or "no options"
        raise UserError(f"{where}, type {kind!r}: {', '.join(wrong)}; it takes {takes}")
    return float(theta), _scaling(kind, part, where)


def _scaling(kind: str, part: Mapping[str, Any], where: str) -> RopeScaling | None:
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind, float(part["factor"]))
    common = dict(factor=float(part["factor"]), original_positions=part["original_max_position_embeddings"])
    if kind == "llama3":
        low, high = float(part["low_freq_factor"]), float(part["high_freq_factor"])
        if not low < high:
            raise UserError(f"{where}: low_freq_factor={low} has to be below high_freq_factor={high}")
        return RopeScaling(kind, **common, low_frequency=low, high_frequency=high)
    return RopeScaling(
        kind,
        **common,
        beta_fast=float(part.get("beta_fast", 32.0)),
        beta_slow=float(part.get("beta_slow", 1.0)),
        attention_factor=_attention_factor(part, where),
        truncate=part.get("truncate", True),
    )


def _attention_factor(part: Mapping[str, Any], where: str) -> float:
    """Returns the factor of YaRN's cosines and sines: given, or from `factor` (arXiv 2309.00071, equation 22)."""
    scales = [float(part[key]) for key in ("mscale", "mscale_all_dim") if key in part]
    if len(scales) == 1 or (scales and "attention_factor" in part):
        raise UserError(f"{where}: mscale and mscale_all_dim go together, and without attention_factor")
    if "attention_factor" in part:
        return float(part["attention_factor"])
    above, below = (0.1 * scale * math.log(max(part["factor"], 1.0)) + 1.0 for scale in scales or (1.0, 0.0))
    return above / below
