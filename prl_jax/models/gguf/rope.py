"""Rotary positions as GGUF files say them: keys of metadata, or one factor for each frequency (`rope_freqs.weight`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from prl_jax.errors import UserError
from prl_jax.models.config import RopeScaling
from prl_jax.models.rope import stretched

FACTORS = "rope_freqs.weight"
_CLOSE = 1e-5  # relative: factors are stored in float32
_LINEAR, _YARN = "linear", "yarn"
_BETAS: Mapping[str, float] = MappingProxyType({"beta_fast": 32.0, "beta_slow": 1.0})


def read_scaling(said: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """`rope_scaling` of a `config.json`, by what the keys under `rope.scaling.` say; None where nothing is stretched.

    Raises:
      UserError: another kind of scaling than linear and yarn, or one without its factor.
    """
    kind, factor = said.get("rope.scaling.type", "none"), said.get("rope.scaling.factor", 0.0)
    if kind == "none" or (kind == _LINEAR and factor in (0.0, 1.0)):
        return None
    if kind not in (_LINEAR, _YARN):
        raise UserError(f"{where}: rope.scaling.type={kind!r} is not supported; supported: none, {_LINEAR}, {_YARN}")
    if not factor > 0:
        raise UserError(f"{where}: rope.scaling.type={kind!r} without a rope.scaling.factor above 0")
    found: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == _YARN:
        known = {"original_max_position_embeddings": "rope.scaling.original_context_length"}
        known |= {beta: f"rope.scaling.yarn_{beta}" for beta in _BETAS}
        found |= {name: said[key] for name, key in known.items() if key in said}
    return found


def write_scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    """The keys under the architecture that say so; those of llama3 are the factors of `frequency_factors`.

    Raises:
      UserError: llama.cpp has no such scaling.
    """
    if scaling is None or scaling.kind == "llama3":
        return {}
    found: dict[str, Any] = {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
    if scaling.kind == _YARN:
        # llama.cpp takes these whatever the file says; keys for both betas exist, which it reads of other families.
        factor = 0.1 * math.log(max(scaling.factor, 1.0)) + 1.0
        fixed = {"attention_factor": factor, "truncate": True, **_BETAS}
        wrong = [
            f"{name}={getattr(scaling, name)} (not {value:.6g})"
            for name, value in fixed.items()
            if not math.isclose(getattr(scaling, name), value, rel_tol=_CLOSE)
        ]
        if wrong:
            raise UserError(
                f"export: llama.cpp computes no yarn with {', '.join(wrong)}; export to Hugging Face's format"
            )
        found["rope.scaling.original_context_length"] = scaling.original_positions
    return found


def frequency_factors(scaling: RopeScaling, head_dim: int, theta: float) -> np.ndarray:
    """How much longer each wavelength becomes, `[head_dim / 2]` float32: what llama.cpp divides frequencies by."""
    plain = _frequencies(head_dim, theta)
    return (plain / stretched(plain, head_dim, theta, scaling)).astype(np.float32)


def scaling_of(factors: np.ndarray, head_dim: int, theta: float, where: str) -> dict[str, Any] | None:
    """The `rope_scaling` of kind llama3 that has these factors, `[head_dim / 2]`; None where all are 1.

    Files hold the factors alone. Of wavelength `w` and original context `C` the share that is kept is
    `(C / w - low) / (high - low)`, cut to 0..1 (arXiv 2407.21783): a straight line in the frequency, which the factors
    between both ends tell. Its scale is free, and `low` is 1 in every model there is.

    Raises:
      UserError: no such scaling has these factors.
    """
    if factors.shape != (head_dim // 2,) or not np.all(np.isfinite(factors)) or not np.all(factors >= 1.0 - _CLOSE):
        raise UserError(f"{where}: {FACTORS} {list(factors.shape)}, expected {head_dim // 2} factors of at least 1")
    if np.allclose(factors, 1.0, rtol=_CLOSE, atol=0):
        return None
    factor = float(str(np.float32(factors.max())))
    factor = float(round(factor)) if math.isclose(factor, round(factor), rel_tol=_CLOSE) else factor
    for high, positions in _candidates(factors.astype(np.float64), factor, head_dim, theta):
        scaling = RopeScaling("llama3", factor, positions, 1.0, high)
        if np.allclose(frequency_factors(scaling, head_dim, theta), factors, rtol=_CLOSE, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": positions,
            }
    raise UserError(f"{where}: the factors of {FACTORS} are of no scaling that is supported (llama3)")


def _candidates(factors: np.ndarray, factor: float, head_dim: int, theta: float) -> list[tuple[float, int]]:
    """Values of `high` and of the original context that may have made the factors."""
    with np.errstate(all="ignore"):  # of a base that no model has
        turns = _frequencies(head_dim, theta).astype(np.float64) / (2 * math.pi)  # of a position
    if not (np.all(np.isfinite(turns)) and np.all(turns > 0) and factor > 1.0 + _CLOSE):
        return []
    kept = (1.0 / factors - 1.0 / factor) / (1.0 - 1.0 / factor)
    between = np.flatnonzero((kept > 10 * _CLOSE) & (kept < 1.0 - 10 * _CLOSE))
    contexts = [2**i for i in range(24)]
    if len(between) > 1:
        slope, offset = np.polyfit(turns[between], kept[between], 1)
        if not (slope > 0 > offset):
            return []
        width = -1.0 / offset  # high - low, at low = 1
        highs, lengths = [1.0 + width, float(round(1.0 + width))], [slope * width]
    elif len(between) == 1:
        highs, lengths = [4.0], [(1.0 + 3.0 * kept[between[0]]) / turns[between[0]]]
    else:  # nothing tells more than between which frequencies it happens
        highs, lengths = [4.0], []
    found = [(high, round(length)) for high, length in itertools.product(highs[::-1], lengths) if 1 <= length < 2**31]
    return found + [(4.0, length) for length in contexts]


def _frequencies(head_dim: int, theta: float) -> np.ndarray:
    return theta ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
