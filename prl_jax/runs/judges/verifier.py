"""A judge that checks responses against what a source says of their prompts, or against a regular expression."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from prl_jax.config.declare import filled, source
from prl_jax.data.sources import Records
from prl_jax.errors import UserError, naming
from prl_jax.judges import Check, Constraints, Exact, Grade, Number, Pattern, VerifierJudge
from prl_jax.runs.judges.kind import JudgeKind, Surroundings
from prl_jax.text.chat import Prompt


class _Way(NamedTuple):
    """A way to check: the keys of its own, beside `answers`, and section -> the check."""

    keys: tuple[str, ...]
    made: Callable[[ConfigDict], Check]


_WAYS = {
    "exact": _Way((), lambda section: Exact()),
    "number": _Way(("tolerance",), lambda section: Number(section.tolerance)),
    "grade": _Way(("even",), lambda section: Grade(section.even)),
    "regex": _Way(("pattern",), lambda section: Pattern(section.pattern)),
    "constraints": _Way((), lambda section: Constraints()),
}


def declare(**values: Any) -> dict[str, Any]:
    """Returns the section of a verifier."""
    defaults = dict(
        kind="verifier",
        check="exact",  # or "number", "grade", "regex", "constraints" (`judges.verifier`)
        # Records that say what is right: each prompt's reference answer or, for constraints, its `meta`.
        answers=source(),
        tolerance=0.0,  # of numbers: a share of the right one; 0 compares exact fractions
        even=0.0,  # of grades: what stands between those for one response and those for the other
        pattern="",  # of regex; what its group `answer` matches has to be the reference answer, if it has that group
    )
    return filled(defaults, values, "judge")


def check(section: ConfigDict) -> None:
    """Raises `UserError` for a check that is none, for a key that it does not read, and for a value that it refuses."""
    if section.check not in _WAYS:
        raise UserError(f"check={section.check!r}, expected one of {', '.join(map(repr, _WAYS))}")
    way, defaults = _WAYS[section.check], declare()
    for key in ("tolerance", "even", "pattern"):
        if key not in way.keys and section[key] != defaults[key]:
            raise UserError(f"{key}={section[key]!r}: check={section.check!r} does not read it; leave it out")
    if not way.made(section).reads_answers and section.answers.to_dict() != defaults["answers"]:
        raise UserError("answers: the pattern has no group (?P<answer>...) to compare with them; leave them out")


def load(section: ConfigDict, around: Surroundings) -> VerifierJudge:
    """The verifier, with all that its source says."""
    made, answers = _WAYS[section.check].made(section), section.answers
    with naming("answers"):
        known = _expected(made, around.records(answers, "prompt")) if made.reads_answers else {}
    return VerifierJudge(made, known, answers.path or "the built-in tasks")


def check_prompts(section: ConfigDict, around: Surroundings, prompts: Iterable[Prompt]) -> None:
    """Raises `UserError` for the first prompt whose answer is not known."""
    load(section, around).check_prompts(prompts)


def _expected(made: Check, records: Records) -> Mapping[Prompt, Any]:
    """Prompt -> what a check expects.

    Raises:
      UserError: for the first record that says nothing which can be checked, or something else than an earlier one with
        its prompt, with the number of the others.
    """
    found: dict[Prompt, tuple[int, Any]] = {}
    problems = []
    for i in range(len(records)):
        try:
            record = records[i]
            expected = made.expected(record.reference, record.meta)
        except UserError as error:
            problems.append(f"{records.place(i)}: {str(error).removeprefix(f'{records.place(i)}: ')}")
            continue
        first, before = found.setdefault(record.prompt, (i, expected))
        if before != expected:
            problems.append(f"{records.place(i)}: another answer to the same prompt is at {records.place(first)}")
    if problems:
        more = f" ({len(problems) - 1} more of {len(records)} rows cannot be used)" if problems[1:] else ""
        raise UserError(problems[0] + more)
    return {prompt: expected for prompt, (_, expected) in found.items()}


KIND = JudgeKind(
    name="verifier",
    declare=declare,
    load=load,
    check=check,
    sources=("answers",),
    scores=lambda section: True,
    check_prompts=check_prompts,
)
