"""Pieces as sections of a config, and back: a `kind`, and the fields of its dataclass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from prl_jax.errors import UserError
from prl_jax.methods import baselines, opponents, regularisers, rewards, scores, surrogates
from prl_jax.methods.direct import DIRECT_LOSSES
from prl_jax.methods.method import Method
from prl_jax.methods.selection import SELECTIONS

_CLASSES: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "opponents": (
            opponents.NoOpponent,
            opponents.Anchors,
            opponents.Pool,
            opponents.Peer,
            opponents.Group,
            opponents.Circular,
            opponents.RandomPeer,
            opponents.Greedy,
            opponents.Past,
            opponents.Mixture,
        ),
        "reward": (
            rewards.WinProbability,
            scores.Score,
            scores.Centred,
            scores.PAR,
            scores.LSC,
            scores.Tanh,
            scores.Clip,
            scores.MinMax,
            scores.RunningNorm,
            scores.Several,
        ),
        "baseline": (
            baselines.Critic,
            baselines.GroupMean,
            baselines.LeaveOneOut,
            baselines.Standardised,
            baselines.Difference,
            baselines.Greedy,
            baselines.Batch,
            baselines.Constant,
        ),
        "surrogate": (
            surrogates.TokenClip,
            surrogates.CISPO,
            surrogates.Reinforce,
            surrogates.PairClip,
            surrogates.PairTokenClip,
            surrogates.PairRegression,
            surrogates.SingleRegression,
        ),
        "regulariser": (
            regularisers.RewardKL,
            regularisers.LossKL,
            regularisers.InsideKL,
            regularisers.Mixture,
        ),
    }
)
SLOTS = tuple(_CLASSES)  # of a method that trains a policy on its own samples
# Slot -> kind -> class. A new piece is one more class here.
PIECES: Mapping[str, Mapping[str, type]] = MappingProxyType(
    {slot: MappingProxyType({cls.kind: cls for cls in classes}) for slot, classes in _CLASSES.items()}
)
# The same of stages that learn from fixed pairs, or make them.
_OTHERS: Mapping[str, Mapping[str, type]] = MappingProxyType({"loss": DIRECT_LOSSES, "select": SELECTIONS})


def section_of(piece: Any) -> dict[str, Any]:
    """`Peer() -> {"kind": "peer"}`: the kind, and every field."""
    return {"kind": piece.kind, **{field.name: getattr(piece, field.name) for field in dataclasses.fields(piece)}}


def piece_of(slot: str, section: Mapping[str, Any]) -> Any:
    """The piece that a section describes; fields that it leaves out have their defaults.

    Raises:
      UserError: there is no such kind, it has no such field, or a field may not have that value. The message names the
        key.
    """
    kinds, values = {**PIECES, **_OTHERS}[slot], dict(section)
    kind = values.pop("kind", None)
    if kind not in kinds:
        raise UserError(f"{slot}.kind={kind!r}, expected one of {', '.join(map(repr, kinds))}")
    fields = {field.name: field for field in dataclasses.fields(kinds[kind])}
    for name, value in values.items():
        if name not in fields:
            known = ", ".join(fields) or "it has none"
            raise UserError(f"{slot}.{name}: {kind!r} has no such key; known: {known}")
        values[name] = _typed(f"{slot}.{name}", value, fields[name])
    try:
        return kinds[kind](**values)
    except UserError as error:  # it begins with the field
        raise UserError(f"{slot}.{error}") from error


def method_of(sections: Mapping[str, Mapping[str, Any]]) -> Method:
    """The method that the sections of a config describe. Errors: `UserError` that names the key."""
    return Method(**{slot: piece_of(slot, sections[slot]) for slot in SLOTS})


def _typed(key: str, value: Any, field: dataclasses.Field[Any]) -> Any:
    """The value as the type of the field, which that of the default is."""
    default: Any = field.default
    kind = type(default)
    accepted: tuple[type[Any], ...] = {float: (float, int), tuple: (tuple, list)}.get(kind, (kind,))
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{key}={value!r}: expected {kind.__name__}, such as {default!r}")
    if isinstance(value, tuple | list):
        words = field.type == "tuple[str, ...]"
        if not all(isinstance(x, str if words else float | int) and not isinstance(x, bool) for x in value):
            raise UserError(f"{key}={value!r}: expected {'names' if words else 'numbers'}")
        value = tuple(value) if words else tuple(map(float, value))
    else:
        value = kind(value)
    if not all(math.isfinite(x) for x in (value if kind is tuple else (value,)) if isinstance(x, float)):
        raise UserError(f"{key}={value!r}: expected {'finite numbers' if kind is tuple else 'a finite number'}")
    return value
