"""A judge that checks: responses are right or wrong by what is known of their prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from prl_jax.errors import UserError, quoted
from prl_jax.judges.base import Judged, Scored, check_lengths, logits
from prl_jax.judges.constraints import Constraint, read_constraint
from prl_jax.judges.final_number import final_number
from prl_jax.judges.patterns import has_answer, search
from prl_jax.processes import from_leader
from prl_jax.text.chat import Prompt, prompt_text

_META = ("instruction_id_list", "kwargs")  # as in IFEval's files


@runtime_checkable
class Check(Protocol):
    """How responses are checked.

    Attributes:
      reads_answers: whether it needs to know something of a prompt.
    """

    @property
    def reads_answers(self) -> bool: ...

    def expected(self, reference: str | None, meta: Mapping[str, Any]) -> Any:
        """Returns what a record says of the responses to its prompt: its reference answer, or its `meta`, read.

        Raises:
          UserError: it says nothing that can be checked.
        """

    def scores(self, responses: Sequence[str], expected: Sequence[Any]) -> list[float]:
        """Returns scores from 0, wrong, to 1, right."""


@dataclasses.dataclass(frozen=True)
class Exact:
    """The response is the reference answer, white space aside."""

    reads_answers = True

    def expected(self, reference: str | None, meta: Mapping[str, Any]) -> str:
        return _bare(_given(reference))

    def scores(self, responses: Sequence[str], expected: Sequence[str]) -> list[float]:
        return [float(_bare(text) == answer) for text, answer in zip(responses, expected, strict=True)]


@dataclasses.dataclass(frozen=True)
class Number:
    """The response ends in the number that the reference answer ends in (`final_number`).

    Attributes:
      tolerance: how far the two may be apart, as a share of the right one, or of 1 where that is larger; with 0 they
        are compared as exact fractions, so that 0.5 is 1/2, and 0.333 is not 1/3.
    """

    tolerance: float = 0.0
    reads_answers = True

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise UserError(f"tolerance={self.tolerance}, expected at least 0 and less than 1")

    def expected(self, reference: str | None, meta: Mapping[str, Any]) -> Fraction:
        found = final_number(_given(reference))
        if found is None:
            raise UserError(f"no number in the reference answer {quoted(_given(reference))}")
        return found

    def scores(self, responses: Sequence[str], expected: Sequence[Fraction]) -> list[float]:
        pairs = zip(map(final_number, responses), expected, strict=True)
        return [float(found is not None and self._near(found, answer)) for found, answer in pairs]

    def _near(self, found: Fraction, answer: Fraction) -> bool:
        return abs(found - answer) <= Fraction(self.tolerance) * max(abs(answer), 1)


@dataclasses.dataclass(frozen=True)
class Grade:
    """The response ends in a grade that compares two texts: 1 for that of the reference answer, 1/2 for another one
    that names the same winner, 0 else.

    It rewards a judge that writes its verdicts and is trained as a policy, on prompts that are comparisons (Think-RM,
    arXiv 2505.16265). For verdicts that are words, `Exact` does.

    Attributes:
      even: the grade between those that name the first response and those that name the second one, such as 3.5 on a
        scale from 1 to 6; it may be a grade itself, which names nobody.
    """

    even: float = 0.0
    reads_answers = True

    def expected(self, reference: str | None, meta: Mapping[str, Any]) -> Fraction:
        return Number().expected(reference, meta)

    def scores(self, responses: Sequence[str], expected: Sequence[Fraction]) -> list[float]:
        pairs = zip(map(final_number, responses), expected, strict=True)
        return [0.0 if found is None else self._score(found, right) for found, right in pairs]

    def _score(self, found: Fraction, right: Fraction) -> float:
        if found == right:
            return 1.0
        return 0.5 if (found - Fraction(self.even)) * (right - Fraction(self.even)) > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A regular expression is found in the response. What its group `answer` matches there, if it has one, is the
    reference answer, white space aside.

    Attributes:
      pattern: the expression, as of Python's `re`, whose first match counts.
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            has_answer(self.pattern)
        except UserError as error:
            raise UserError(f"pattern: {error}") from error

    @property
    def reads_answers(self) -> bool:
        return has_answer(self.pattern)

    def expected(self, reference: str | None, meta: Mapping[str, Any]) -> str:
        return _bare(_given(reference))

    def scores(self, responses: Sequence[str], expected: Sequence[str | None]) -> list[float]:
        pairs = zip(search(self.pattern, responses), expected, strict=True)
        if not self.reads_answers:
            return [float(found is not None) for found, _ in pairs]
        return [float(found is not None and _bare(found.answer or "") == answer) for found, answer in pairs]


@dataclasses.dataclass(frozen=True)
class Constraints:
    """The share of the constraints of its prompt (`constraints.CONSTRAINTS`) that a response keeps. An empty one keeps
    none."""

    reads_answers = True

    def expected(self, reference: str | None, meta: Mapping[str, Any]) -> tuple[Constraint, ...]:
        names, arguments = (meta.get(key) for key in _META)
        if not isinstance(names, list | tuple) or not isinstance(arguments, list | tuple) or not names:
            raise UserError(f'no constraints: expected lists "{_META[0]}" and "{_META[1]}" in "meta"')
        if len(names) != len(arguments):
            raise UserError(f"{len(names)} constraints and {len(arguments)} kwargs, expected as many")
        return tuple(map(read_constraint, names, arguments))

    def scores(self, responses: Sequence[str], expected: Sequence[tuple[Constraint, ...]]) -> list[float]:
        return [
            sum(one.keeps(text) for one in constraints) / len(constraints) if text.strip() else 0.0
            for text, constraints in zip(responses, expected, strict=True)
        ]


class VerifierJudge:
    """Scores responses by a check, and prefers the one with the higher score for certain: P is 1, 1/2 or 0.

    The score difference of a right and a wrong answer is 1, whose sigmoid would let the wrong one win in 27 of 100
    comparisons, and a policy that is always right would win 73.

    Args:
      check: tells right from wrong.
      known: prompt -> what the check expects of the responses to it; not looked at where it reads no answers.
      where: names the source of these in messages.
    """

    merge = "probability"  # the orders agree exactly

    def __init__(self, check: Check, known: Mapping[Prompt, Any], where: str):
        self.check, self.known, self.where = check, known, where

    def check_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Raises `UserError` for the first prompt of which nothing is known."""
        for prompt in prompts:
            self._expected(prompt)

    def scored(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Scored:
        """Scores from 0 to 1, of texts that are never cut."""
        check_lengths(prompts, responses)

        def ask() -> Float[np.ndarray, "N"]:
            return np.array(self.check.scores(responses, [self._expected(prompt) for prompt in prompts]), np.float64)

        # Time may run out for an expression in one process, and not in another.
        scores = from_leader(ask, len(prompts))
        return Scored(scores.astype(np.float32), np.zeros(len(prompts), bool))

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        check_lengths(prompts, first, second)
        scores = self.scored([*prompts, *prompts], [*first, *second]).scores
        z = logits(0.5 + 0.5 * np.sign(scores[: len(prompts)] - scores[len(prompts) :]))
        return Judged(z, -z, self.merge)

    def _expected(self, prompt: Prompt) -> Any:
        if not self.check.reads_answers:
            return None
        if prompt not in self.known:
            raise UserError(
                f"{self.where}: none of its {len(self.known)} prompts is {quoted(prompt_text(prompt))}, so that nobody "
                "knows what is right; expected an answer to every prompt that the judge is asked about"
            )
        return self.known[prompt]


def _given(reference: str | None) -> str:
    if reference is None or not reference.strip():
        raise UserError('no reference answer: expected "reference" or "response"')
    return reference


def _bare(text: str) -> str:
    """A text with single spaces instead of white space, and none around it."""
    return " ".join(text.split())
