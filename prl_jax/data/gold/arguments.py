"""Arguments of the builder, checked once and part of the data set's name."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from prl_jax.data.gold.families import DIFFICULTIES, FAMILIES
from prl_jax.errors import UserError

KINDS = ("preference", "sft", "prompt")
SPLITS = ("train", "validation", "test")
_TRAIN_ROWS = {"preference": 24_000, "sft": 12_000, "prompt": 4_000}


@dataclasses.dataclass(frozen=True)
class GoldArguments:
    """The arguments that decide the rows of the built-in data.

    Attributes:
      seed: seed of everything that is sampled.
      families, difficulties: which tasks; rows are spread evenly over them.
      train_rows: rows of the train split; None for 24,000 pairs, 12,000 demonstrations or 4,000 prompts.
      validation_rows, test_rows: rows of the other splits.
      form_ignored: how often a demonstration is plain although another form is asked for.
      filler: how often a demonstration ends in filler that nobody asked for.
      slip: how often a demonstration of a family with a systematic slip makes it.
      noise: how often a label is flipped.
      ties: probability of a tie where p* is 1/2.
      intransitivity: weight of the cyclic part of p*, in units of utility.
      scale: how sharply utility decides, the same for all prompts; 0: each prompt has a scale of its own.
      reference: what prompt rows carry as their reference, "demonstration" or "gold" (the best response).
    """

    seed: int = 0
    families: tuple[str, ...] = tuple(FAMILIES)
    difficulties: tuple[int, ...] = (0,)
    train_rows: int | None = None
    validation_rows: int = 1_000
    test_rows: int = 1_000
    form_ignored: float = 0.65
    filler: float = 0.65
    slip: float = 0.6
    noise: float = 0.05
    ties: float = 0.1
    intransitivity: float = 0.0
    scale: float = 0.0
    reference: str = "demonstration"

    def rows(self, kind: str, split: str) -> int:
        """How many rows the split of this kind has."""
        if split == "train":
            return _TRAIN_ROWS[kind] if self.train_rows is None else self.train_rows
        return self.validation_rows if split == "validation" else self.test_rows

    def digest(self) -> str:
        """Twelve hexadecimal digits that tell sets of arguments apart."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _fail(name: str, value: Any, expected: str) -> None:
    raise UserError(f"built-in data: argument {name} = {value!r}; expected {expected}")


def _subset(name: str, value: Any, known: tuple) -> tuple:
    items = tuple(value) if isinstance(value, (tuple, list)) else ()
    if not items or len(set(items)) < len(items) or not set(items) <= set(known):
        _fail(name, value, f"a non-empty list of distinct values out of {', '.join(map(str, known))}")
    return items


def _number(name: str, value: Any, low: int | float, high: int | float, kind: type) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or (kind is int and int(value) != value):
        _fail(name, value, f"{'an integer' if kind is int else 'a number'} in [{low}, {high}]")
    return kind(value)


def make_arguments(given: Mapping[str, Any]) -> GoldArguments:
    """Checked arguments; `UserError` names an unknown argument (and the known ones) or a value that makes no sense."""
    known = [field.name for field in dataclasses.fields(GoldArguments)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"built-in data: unknown argument {name!r}{hint} (known: {', '.join(known)})")
    values = dict(given)
    if "families" in values:
        values["families"] = _subset("families", values["families"], tuple(FAMILIES))
    if "difficulties" in values:
        values["difficulties"] = _subset("difficulties", values["difficulties"], DIFFICULTIES)
    for name in ("train_rows", "validation_rows", "test_rows"):
        if values.get(name) is not None:
            values[name] = _number(name, values[name], 1, 10_000_000, int)
    if "seed" in values:
        values["seed"] = _number("seed", values["seed"], 0, 2**63 - 1, int)
    for name in ("form_ignored", "filler", "slip", "noise", "ties"):
        if name in values:
            values[name] = _number(name, values[name], 0.0, 0.5 if name == "noise" else 1.0, float)
    for name, most in (("intransitivity", 10.0), ("scale", 100.0)):
        if name in values:
            values[name] = _number(name, values[name], 0.0, most, float)
    if values.get("reference", "gold") not in ("demonstration", "gold"):
        _fail("reference", values["reference"], "'demonstration' or 'gold'")
    for name in ("validation_rows", "test_rows"):
        if name in values and values[name] is None:
            _fail(name, None, "an integer")
    return GoldArguments(**values)
