"""A Python function as a judge: rules, checkers, calls of something else."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from prl_jax.errors import UserError
from prl_jax.judges.base import Judged, Scored, check_lengths, logits
from prl_jax.processes import from_leader
from prl_jax.text.chat import Prompt

PairFunction = Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], Any]
ScoreFunction = Callable[[Sequence[Prompt], Sequence[str]], Any]


class PythonJudge:
    """A judge that asks a function: a batch of rows in, one number a row out.

    What it returns is checked row by row, since it is not this package's: a `UserError` names the function and the row.

    Args:
      function: `(prompts, first, second) -> [N]` probabilities that the response in slot 1 is better. It is asked in
        both orders; whether it minds the order shows in the metrics.
      name: how messages call it, such as "my_rules.py:longer".
    """

    merge = "probability"

    def __init__(self, function: PairFunction, name: str):
        self.function, self.name = function, name

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        check_lengths(prompts, first, second)
        z_12, z_21 = (self._logits(prompts, a, b) for a, b in ((first, second), (second, first)))
        return Judged(z_12, z_21, self.merge)

    def one_order(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        """As `OneOrderJudge` has it."""
        check_lengths(prompts, first, second)
        z = self._logits(prompts, first, second)
        return Judged(z, -z, self.merge)

    def _logits(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Float[np.ndarray, "N"]:
        return logits(answers(self.name, self.function, prompts, first, second, check=_check_probabilities))


class ScoredPythonJudge:
    """A judge that asks a function for a score of each response: `P = sigmoid(score_1 - score_2)`.

    Args:
      function: `(prompts, responses) -> [N]` numbers, the larger the better.
      name: how messages call it.
    """

    merge = "probability"  # the orders agree exactly

    def __init__(self, function: ScoreFunction, name: str):
        self.function, self.name = function, name

    def scores(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[np.ndarray, "N"]:
        """`[N]` float32 scores."""
        check_lengths(prompts, responses)
        return answers(self.name, self.function, prompts, responses).astype(np.float32)

    def scored(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Scored:
        """The scores, of texts that are never cut."""
        return Scored(self.scores(prompts, responses), np.zeros(len(prompts), bool))

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        check_lengths(prompts, first, second)
        scores = self.scores([*prompts, *prompts], [*first, *second])
        gap = scores[: len(prompts)] - scores[len(prompts) :]
        return Judged(gap, -gap, self.merge)


def answers(
    name: str,
    function: Callable[..., Any],
    *columns: Sequence[Any],
    check: Callable[[Float[np.ndarray, "N"], str], None] = lambda numbers, name: None,
) -> Float[np.ndarray, "N"]:
    """`[N]` float64, what a function answers on `N` rows. In a run of several processes the first one asks for all.

    Args:
      name: how messages call it.
      function: columns, a list each -> one number a row.
      columns: of the rows.
      check: `(numbers, name)` raises `UserError` for numbers that it must not give.
    """

    def ask() -> Float[np.ndarray, "N"]:
        numbers = checked_numbers(_called(name, function, *map(list, columns)), len(columns[0]), name)
        check(numbers, name)
        return numbers

    return from_leader(ask, len(columns[0]))


def _check_probabilities(p: Float[np.ndarray, "N"], name: str) -> None:
    outside = np.flatnonzero((p < 0) | (p > 1))
    if len(outside):
        i = int(outside[0])
        raise UserError(
            f"{name}: row {i + 1} of {len(p)} is {p[i]:g}, expected a probability in [0, 1] that the response in slot "
            "1 is better; scores go through a function of (prompts, responses) (ScoredPythonJudge)"
        )


def checked_numbers(returned: Any, count: int, name: str) -> Float[np.ndarray, "N"]:
    """`[N]` float64, what a function returned for `count` rows.

    Raises:
      UserError: it is no sequence of that many finite numbers in the range of float32. The message names the function
        and the row.
    """
    shape = f"expected {count} numbers, one for each row"
    try:
        rows = list(returned)
    except TypeError:
        raise UserError(f"{name}: returned {_described(returned)}, {shape}") from None
    if len(rows) != count:
        raise UserError(f"{name}: returned {len(rows)} values for {count} rows, {shape}")
    out = np.empty(count, np.float64)
    for i, row in enumerate(rows):
        where = f"{name}: row {i + 1} of {count}"
        value = np.asarray(row)
        if value.shape != () or value.dtype.kind not in "bifu":
            raise UserError(f"{where} is {_described(row)}, expected one number")
        if not abs(value) <= np.finfo(np.float32).max:
            raise UserError(f"{where} is {value}, expected a finite number in the range of float32")
        out[i] = value
    return out


def load_function(path: str) -> Callable[..., Any]:
    """The function that `file.py:function` or `package.module:function` names.

    The file runs as a module of its own; a module is imported as Python imports it. Nothing of the path is evaluated.

    Raises:
      UserError: the path has another form, or what it names is not there, cannot be imported or is no function.
    """
    place, separator, name = path.rpartition(":")
    if not (separator and place and name.isidentifier()):
        raise UserError(f"{path!r}: expected FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION, such as my_rules.py:longer")
    module = _from_file(Path(place), path) if place.endswith(".py") else _from_name(place, path)
    found = vars(module).get(name)
    if found is None:
        known = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise UserError(f"{path}: {place} has no {name!r}; it has {', '.join(known) or 'no function'}")
    if not callable(found):
        raise UserError(f"{path}: {name!r} is {_described(found)}, expected a function")
    return found


def file_of(path: str) -> Path | None:
    """The file that a function of `load_function` stands in; None where it is in none that Python reads."""
    place = path.rpartition(":")[0]
    if place.endswith(".py"):
        return Path(place)
    found = importlib.util.find_spec(place)
    return Path(found.origin) if found is not None and found.has_location and found.origin else None


def _from_file(file: Path, path: str) -> Any:
    if not file.is_file():
        raise UserError(f"{path}: no file {file}")
    spec = importlib.util.spec_from_file_location(f"prl_judge_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # a name that ends in .py has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import does: dataclasses, for one, look there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise UserError(f"{path}: {file} cannot be imported: {_reason(error)}") from error
    return module


def _from_name(name: str, path: str) -> Any:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{path!r}: {name!r} is neither a file that ends in .py nor the name of a module")
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UserError(f"{path}: module {name} cannot be imported: {_reason(error)}") from error


def _called(name: str, function: Callable[..., Any], *columns: list[Any]) -> Any:
    """Returns what a function returns, and raises its exception as a `UserError` that names it."""
    try:
        return function(*columns)
    except Exception as error:
        raise UserError(f"{name}: failed on {len(columns[0])} rows: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _described(value: Any) -> str:
    """A value in a few words."""
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '...'}"
