"""Each row of the correctness list has a test and a patch that breaks it; `make mutants` runs tests on patches."""

import ast
import re
import subprocess

import pytest
from mutants import run

ROWS = set(range(1, 23))


def test_every_row_has_a_test_and_a_patch():
    tests = "".join(path.read_text() for path in (run.ROOT / run.ROW_TESTS).glob("test_*.py"))
    assert {run.row_of(name) for name in re.findall(r"^def (test_row_\d\d_)", tests, re.MULTILINE)} == ROWS
    assert {run.row_of(patch.stem) for patch in run.patches()} == ROWS


@pytest.mark.parametrize("patch", run.patches(), ids=lambda path: path.stem)
def test_a_patch_says_what_it_breaks_and_applies_to_the_present_code(patch):
    assert re.match(rf"# Row {run.row_of(patch.stem)}: \S.*\.\n--- a/prl_jax/", patch.read_text())
    for path, text in run.patched(run.ROOT, patch).items():
        assert path.startswith("prl_jax/") and text != (run.ROOT / path).read_text()
        ast.parse(text)


def write(tmp_path, old: str, new: str):
    """A file of lines a..e, and a patch that expects `old` in it."""
    (tmp_path / "file.py").write_text("".join(f"{letter}\n" for letter in "abcdbc"))
    (tmp_path / "01_x.patch").write_text(f"# Row 1: x.\n--- a/file.py\n+++ b/file.py\n@@ -9,2 +9,2 @@\n{old}{new}")
    return tmp_path / "01_x.patch"


def test_a_patch_applies_where_its_lines_stand_once(tmp_path):
    patch = write(tmp_path, " c\n-d\n", "+x\n+y\n")
    assert run.patched(tmp_path, patch) == {"file.py": "a\nb\nc\nx\ny\nb\nc\n"}
    for lines, count in ((" b\n-c\n", 2), (" c\n-e\n", 0)):
        with pytest.raises(ValueError, match=f"stand {count} times in file.py"):
            run.patched(tmp_path, write(tmp_path, lines, "+x\n"))


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
