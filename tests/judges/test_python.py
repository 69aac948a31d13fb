"""A user's function as a judge: both orders, and messages that name the function and the row."""

from pathlib import Path

import jax
import numpy as np
import pytest
from fakes import user

from prl_jax.errors import UserError
from prl_jax.judges import Judge, PythonJudge, ScoredPythonJudge, ScoringJudge, judge_pairs, load_function
from prl_jax.methods import Anchors, NoOpponent, Score, WinProbability
from prl_jax.training.compare import rewards_of

PROMPTS = [user(text) for text in ("p", "q", "r")]
FIRST, SECOND = ["a", "bbb", "cc"], ["aa", "b", "cc"]


def favours_slot_1(prompts, first, second):
    """The longer one, and of two equally likely the one in slot 1."""
    return [0.9 if len(a) > len(b) else 0.2 for a, b in zip(first, second, strict=True)]


def length(prompts, responses):
    return np.array([len(text) for text in responses])


def test_a_function_is_asked_in_both_orders():
    judge = PythonJudge(favours_slot_1, "rules")
    judged = judge(PROMPTS, FIRST, SECOND)
    np.testing.assert_allclose(judged.p_12, [0.2, 0.9, 0.2], rtol=1e-6)
    np.testing.assert_allclose(judged.p_21, [0.9, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(judged.p_first, [0.15, 0.85, 0.5], rtol=1e-6)
    assert isinstance(judge, Judge) and not isinstance(judge, ScoringJudge)
    assert judge_pairs(judge, PROMPTS, FIRST, SECOND).p_first[2] == 0.5  # identical: not asked


def test_certainty_is_believed_and_stays_finite():
    judged = PythonJudge(lambda prompts, first, second: [1, 0, True], "rules")(PROMPTS, FIRST, SECOND)
    np.testing.assert_allclose(judged.p_12, [1, 0, 1], atol=1e-6)
    assert np.isfinite(judged.z_12).all()


def test_a_function_of_single_responses_scores_and_compares():
    judge = ScoredPythonJudge(length, "rules")
    assert isinstance(judge, ScoringJudge)
    np.testing.assert_array_equal(judge.scores(PROMPTS, FIRST), [1, 3, 2])
    judged = judge(PROMPTS, FIRST, SECOND)
    np.testing.assert_allclose(judged.p_first, 1 / (1 + np.exp([1.0, -2.0, 0.0])), rtol=1e-6)
    np.testing.assert_array_equal(judged.z_12, -judged.z_21)


def test_rewards_come_from_a_function():
    """Of pairs, and of single responses."""
    others = dict(group_size=1, anchors=[("aa",)] * 3, keys=jax.random.split(jax.random.key(0), 3))
    got = rewards_of([PythonJudge(favours_slot_1, "r")], Anchors(), WinProbability(), PROMPTS, FIRST, **others)
    np.testing.assert_allclose(got.reward, [0.15, 0.85, 0.5], rtol=1e-5)
    got = rewards_of([ScoredPythonJudge(length, "r")], NoOpponent(), Score(), PROMPTS, FIRST, **others)
    np.testing.assert_array_equal(got.reward, [1, 3, 2])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0.5, 0.5], "rules: returned 2 values for 3 rows, expected 3 numbers"),
        (0.5, "rules: returned float 0.5, expected 3 numbers"),
        (None, "rules: returned NoneType None, expected 3 numbers"),
        ([0.1, 1.5, -1], r"rules: row 2 of 3 is 1.5, expected a probability in \[0, 1\]"),
        ([0.1, 0.2, float("nan")], "rules: row 3 of 3 is nan, expected a finite number"),
        ([0.1, "yes", 0.2], "rules: row 2 of 3 is str 'yes', expected one number"),
        ([[0.1, 0.2], [0.1, 0.2], [0.1, 0.2]], r"rules: row 1 of 3 is list \[0.1, 0.2\], expected one number"),
        (np.zeros((3, 1)), "rules: row 1 of 3 is ndarray .*, expected one number"),
    ],
    ids=str,
)
def test_what_a_function_returns_is_checked(answer, message):
    with pytest.raises(UserError, match=message):
        PythonJudge(lambda *_: answer, "rules")(PROMPTS, FIRST, SECOND)


def test_scores_have_no_range_but_are_finite():
    assert ScoredPythonJudge(lambda *_: [-3, 1e6, 0.5], "rules").scores(PROMPTS, FIRST).tolist() == [-3, 1e6, 0.5]
    for value in (float("inf"), -1e300):
        with pytest.raises(UserError, match="rules: row 1 of 3 is .*, expected a finite number in the range of fl"):
            ScoredPythonJudge(lambda *_, value=value: [value, 0, 0], "rules").scores(PROMPTS, FIRST)


def test_an_exception_of_the_function_names_it():
    with pytest.raises(UserError, match="rules: failed on 3 rows: ZeroDivisionError: division by zero"):
        PythonJudge(lambda *_: 1 / 0, "rules")(PROMPTS, FIRST, SECOND)


RULES = "from dataclasses import dataclass\n@dataclass\nclass Rule:\n    x: int = 0\n"
RULES += "def longer(prompts, first, second):\n    return [float(len(a) > len(b)) for a, b in zip(first, second)]\n"
RULES += "LIMIT = 3\n"


def test_functions_are_loaded_from_files_and_modules(tmp_path: Path):
    (tmp_path / "my_rules.py").write_text(RULES)
    function = load_function(f"{tmp_path}/my_rules.py:longer")
    assert function([], ["aa"], ["b"]) == [1.0]
    assert load_function("posixpath:join")("a", "b") == "a/b"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_rules.py", "expected FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION"),
        ("my_rules.py:f()", "expected FILE.py:FUNCTION"),
        (":longer", "expected FILE.py:FUNCTION"),
        ("{}/none.py:longer", "no file .*none.py"),
        ("{}/my_rules.py:shorter", "has no 'shorter'; it has Rule, dataclass, longer"),
        ("{}/my_rules.py:LIMIT", "'LIMIT' is int 3, expected a function"),
        ("{}/broken.py:longer", "broken.py cannot be imported: SyntaxError"),
        ("no_such_module_here:f", "module no_such_module_here cannot be imported: ModuleNotFoundError"),
        ("a-b/c:f", "neither a file that ends in .py nor the name of a module"),
    ],
)
def test_what_cannot_be_loaded_is_told(tmp_path: Path, path: str, message: str):
    (tmp_path / "my_rules.py").write_text(RULES)
    (tmp_path / "broken.py").write_text("def longer(:\n")
    with pytest.raises(UserError, match=message):
        load_function(path.format(tmp_path))
