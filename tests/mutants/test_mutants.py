"""Each row of the correctness list has a test, and mutants for `make mutants` to run that test on."""

import ast
import re
import subprocess

import pytest
from mutants import run

ROWS = set(range(1, 23))  # and those of 23 to 42 that have a test


def test_every_row_has_a_test_and_a_mutant():
    tests = "".join(path.read_text() for path in (run.ROOT / run.ROW_TESTS).glob("test_*.py"))
    tested = {run.row_of(name) for name in re.findall(r"^def (test_row_\d\d_)", tests, re.MULTILINE)}
    assert tested >= ROWS
    assert {mutant.row for mutant in run.mutants()} == tested


@pytest.mark.parametrize("mutant", run.mutants(), ids=lambda mutant: mutant.title)
def test_a_mutant_says_what_it_breaks_and_applies_to_the_present_code(mutant):
    assert re.fullmatch(r"[A-Z].*\.", mutant.wrong)
    path, text = run.mutated(run.ROOT, mutant)
    assert ast.dump(ast.parse(text)) != ast.dump(ast.parse((run.ROOT / path).read_text()))


CODE = """
LIMIT = 3
class Judge:
    size: int = 1
    @property
    def ask(self):
        if self.size:
            return call(
                first,
                second,
            )
def ask(first):
    return first + first
"""


@pytest.fixture
def package(tmp_path):
    """A package whose module `pkg.judges` holds CODE."""
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/judges.py").write_text(CODE)
    return tmp_path


def mutate(root, function: str, old: str, new: str) -> str:
    return run.mutated(root, run.Mutant(1, "x", "X.", function, old, new))[1]


@pytest.mark.parametrize(
    ("function", "old", "new", "text", "changed"),
    [
        ("pkg.judges:LIMIT", "3", "4", "LIMIT = 3", "LIMIT = 4"),
        ("pkg.judges:Judge.size", "int = 1", "int = 2", "int = 1", "int = 2"),
        ("pkg.judges:Judge.ask", "@property", "", "@property", ""),
        (
            "pkg.judges:Judge.ask",
            "first, second)",
            "second)",
            "first,\n                second,\n            )",
            "second)",
        ),
        (
            "pkg.judges:Judge.ask",
            "return call",
            "first = 1\nreturn call",
            "return call",
            "first = 1\n            return call",
        ),
        ("pkg.moved:Judge.ask", "call", "x", "call", "x"),
    ],
)
def test_a_mutant_changes_its_function_alone(package, function, old, new, text, changed):
    assert mutate(package, function, old, new) == CODE.replace(text, changed) != CODE


@pytest.mark.parametrize(
    ("function", "old", "message"),
    [
        ("pkg.judges:Judge.ask", "third", "stands 0 times in pkg.judges:Judge.ask"),
        ("pkg.judges:ask", "irst", "stands 0 times"),
        ("pkg.judges:ask", "first", "stands 3 times"),
        ("pkg.judges:tell", "first", "tell is defined nowhere in pkg"),
        ("pkg.moved:ask", "first", "ask is defined in pkg/judges.py, pkg/others.py: name the module of one"),
    ],
)
def test_a_mutant_that_does_not_apply_says_why(package, function, old, message):
    (package / "pkg/others.py").write_text("def ask(): ...\n")
    with pytest.raises(ValueError, match=message):
        mutate(package, function, old, "x")


@pytest.mark.parametrize(
    ("code", "line", "verdict"),
    [
        (0, "", "SURVIVED"),
        (1, "FAILED tests/a.py::test_row_01_x[k-1] - AssertionError: Not equal", "killed"),
        (1, "FAILED tests/a.py::test_row_01_x - assert 1 == 2", "killed"),
        (1, "FAILED tests/a.py::test_row_01_x - Failed: DID NOT RAISE UserError", "killed"),
        (1, "FAILED tests/a.py::test_row_01_x - NameError: name 'y'", "ERROR"),
        (1, "ERROR tests/a.py::test_row_01_x - AssertionError", "ERROR"),
        (2, "ERROR tests/a.py - ImportError: no module", "ERROR"),
        (5, "", "ERROR"),
    ],
)
def test_a_mutant_is_killed_by_an_assertion_alone(code, line, verdict):
    done = subprocess.CompletedProcess([], code, stdout=f"...\n{line}\n1 failed\n")
    assert run.judge(done) == (verdict, run.judge(done)[1])
    assert verdict != "killed" or run.judge(done)[1] == "test_row_01_x"
