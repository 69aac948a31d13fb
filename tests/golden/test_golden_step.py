"""One real update of PPO and of each reward model gives the numbers that it gave before."""

import json
import math

import pytest
from golden import steps

# Wide enough for other processors and compilers, far below what a changed formula does.
RTOL, ATOL = 1e-4, 2e-6
WHEN = """
These numbers say what training computes. A refactoring must not move them, nor must a faster way to the same result:
then the change is wrong. They may be rewritten only where a formula, a default or these inputs are meant to change, in
that commit, whose message names what was changed and why; say so in CHANGELOG.md where a user can notice. To rewrite:
    PYTHONPATH=tests .venv/bin/python -m golden.steps
and read in the diff that nothing else has moved."""


def moved(got: steps.Numbers, golden: steps.Numbers) -> list[str]:
    """A line for each number that differs."""
    names = sorted({*got, *golden})
    pairs = [(name, golden.get(name, math.nan), got.get(name, math.nan)) for name in names]
    return [
        f"{name}: {new:.7g}, was {old:.7g}"
        for name, old, new in pairs
        if not math.isclose(new, old, rel_tol=RTOL, abs_tol=ATOL)
    ]


@pytest.mark.parametrize("name", steps.STEPS)
def test_a_step_gives_the_golden_numbers(name):
    golden = json.loads(steps.FILE.read_text())[name]
    lines = moved(steps.STEPS[name](), golden)
    if lines:
        pytest.fail("\n".join([f"{len(lines)} of {len(golden)} numbers moved:", *lines, WHEN]), pytrace=False)


def test_moved_numbers_are_named():
    golden = {"a": 1.0, "b": 0.0, "c": 2.0, "gone": 1.0}
    got = {"a": 1.0 + 9e-5, "b": 1e-6, "c": 2.001, "new": 0.0}
    assert moved(got, golden) == ["c: 2.001, was 2", "gone: nan, was 1", "new: 0, was nan"]
    assert moved({"a": math.nan}, {"a": 1.0}) and moved({"a": math.inf}, {"a": 1.0})
