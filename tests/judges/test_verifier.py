"""A judge that checks: numbers, exact answers, expressions and constraints, and what it says of pairs."""

import time
from fractions import Fraction

import numpy as np
import pytest
from fakes import user

from prl_jax.errors import UserError
from prl_jax.judges import Constraints, Exact, Grade, Number, Pattern, ScoringJudge, VerifierJudge, patterns
from prl_jax.judges.constraints import CONSTRAINTS, read_constraint
from prl_jax.judges.final_number import final_number

NUMBERS = {
    "Natalia sold 48/2 = <<48/2=24>>24 clips.\nAltogether 72.\n#### 72": 72,
    "#### -1,234.50 dollars\nor 7": Fraction("-1234.5"),
    "#### 1. Add\n2+2 = 4\n#### Step 2\nSo \\boxed{4}. Next 5.": 4,
    "#### 12\nCheck:\n#### Answer in 3 words": 12,
    "A: 366.": 366,
    "on 7/4/20": 20,
    "So he made a profit of $70,000": 70000,
    "it is -$5": -5,
    "10-5": 5,
    "x = −3": -3,
    "about 150%": 150,
    "3/4 of it": Fraction(3, 4),
    "2 1/2 hours": Fraction(5, 2),
    r"\boxed{-\frac{3}{4}}, see step 2": Fraction(-3, 4),
    r"thus \boxed{\text{total} = 1{,}234}": 1234,
    "1.5e3 and (3,5)": 5,
    "H2O at v2.0": None,
    "no number": None,
    "#### ": None,
    "5/0": None,
    "9" * 5000: None,
}


@pytest.mark.parametrize(("text", "number"), NUMBERS.items(), ids=range(len(NUMBERS)))
def test_the_number_that_a_text_ends_in(text, number):
    assert final_number(text) == number


def test_long_texts_are_read_fast():
    start = time.monotonic()
    for part in ("1", "1 ", "1,", "-", "$ ", "1/", r"\boxed{", r"\frac{", "1 1/"):
        final_number(part * 4000)
    assert time.monotonic() - start < 2


# Name -> arguments, a response that keeps it, and one that does not.
KEPT_AND_NOT = {
    "keywords:existence": ({"keywords": ["cat", "C++"]}, "Cats in c++", "cats"),
    "keywords:frequency": ({"keyword": "tea", "frequency": 2, "relation": "at least"}, "Tea or tea", "tea"),
    "keywords:forbidden_words": ({"forbidden_words": ["run"]}, "running", "Run!"),
    "keywords:letter_frequency": ({"letter": "O", "let_frequency": 2, "let_relation": "less than"}, "To", "foo"),
    "length_constraints:number_sentences": (
        {"num_sentences": 2, "relation": "at least"},
        'Dr. A. Low paid 3.5. "Why?" he asked',
        "Mr. Low paid 3.5 e.g. in May.",
    ),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "a\n***\nb", "a\n***\n\n***\nb"),
    "length_constraints:number_words": ({"num_words": 3.0, "relation": "less than"}, "two, words", "three-word text"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "elm"},
        'Oak\n\n\n\n"Elm, he said',
        "Elm\n\nOak",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[name] at [place]", "[name]"),
    "detectable_content:postscript": ({"postscript_marker": "P.P.S"}, "x\np. p.s bye", "P.S. bye"),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n - b\n**c**", "* a\n* b\n- c"),
    "detectable_format:constrained_response": ({}, "Well: My answer is maybe.", "maybe"),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a* and **b**", "*a* and ** **"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1 a Part 2 b",
        "Part one, Part 2",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": [1]}\n```', "[" * 100_000),
    "detectable_format:title": ({}, "<<A title>>\ntext", "<< >>"),
    "combination:two_responses": ({}, "yes\n******\nno", "yes ****** yes"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it."}, " say it. Said", "It is said"),
    "startend:end_checker": ({"end_phrase": "Bye."}, 'Done. bye."', "Bye. Done."),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        "A WELL-KNOWN fact",
        "WELL-KNOWN",
    ),
    "change_case:english_capital": ({}, "ALL 3!", "All 3!"),
    "change_case:english_lowercase": ({}, "all 3!", "All 3!"),
    "punctuation:no_comma": ({}, "a b", "a, b"),
    "startend:quotation": ({}, ' "so" ', '"'),
}


def test_every_constraint_has_an_example():
    assert list(KEPT_AND_NOT) == list(CONSTRAINTS) and len(CONSTRAINTS) == 24


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_constraint_is_kept_or_not(name):
    arguments, kept, broken = KEPT_AND_NOT[name]
    constraint = read_constraint(name, {**arguments, "of_others": None})  # some files have every key in every row
    assert constraint.keeps(kept) and not constraint.keeps(broken)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("language:response_language", {"language": "de"}, '"language:response_language" is none of the 24'),
        ("keywords:existence", {}, "keywords is missing, expected a list of texts"),
        ("keywords:existence", {"keywords": "cat"}, "keywords is 'cat', expected a list"),
        ("punctuation:no_comma", {"strict": True}, 'no argument "strict"; known: it has none'),
        ("length_constraints:number_words", {"num_words": True, "relation": "at least"}, "num_words is True"),
        ("length_constraints:number_words", {"num_words": 3, "relation": "around"}, "'less than' or 'at least'"),
        ("punctuation:no_comma", None, "expected an object in kwargs"),
    ],
)
def test_constraints_that_cannot_be_are_refused(name, arguments, message):
    with pytest.raises(UserError, match=message):
        read_constraint(name, arguments)


def scores(check, reference, responses, **meta):
    return check.scores(responses, [check.expected(reference, meta)] * len(responses))


def test_each_check_tells_right_from_wrong():
    assert scores(Exact(), " the  Nile\n", ["the Nile", "The Nile", "the Nile."]) == [1, 0, 0]
    assert scores(Number(), "#### 1/3", ["2/6", "0.333", "one third"]) == [1, 0, 0]
    assert scores(Number(tolerance=0.01), "#### 1/3", ["0.333", "0.35", "-1/3"]) == [1, 0, 0]
    assert scores(Number(tolerance=0.1), "0", ["0.1", "0.2", "-0.1"]) == [1, 0, 1]
    assert scores(Grade(3.5), "#### 2", ["I say 2", "1", "3", "4", "none", "2.5"]) == [1, 0.5, 0.5, 0, 0, 0.5]
    assert scores(Grade(), "-2", ["-2", "-1", "0", "2"]) == [1, 0.5, 0, 0]
    assert scores(Grade(), "0", ["0", "1", "-1"]) == [1, 0, 0]
    answer = Pattern(r"Answer: (?P<answer>\S+)")
    assert scores(answer, "42", ["x\nAnswer: 42", "Answer: 41", "42"]) == [1, 0, 0]
    plain = Pattern("(?i)^yes|no$")
    assert not plain.reads_answers and plain.scores(["Yes it is", "I say no", "a yes"], [None] * 3) == [1, 1, 0]
    two = dict(instruction_id_list=["punctuation:no_comma", "change_case:english_lowercase"], kwargs=[{}, {}])
    assert scores(Constraints(), None, ["a b", "A b", "A, b", " "], **two) == [1, 0.5, 0, 0]


def test_an_expression_that_runs_away_is_ended():
    with pytest.raises(
        UserError, match=r'"\(a\+\)\+b": took more than 0.2 seconds.*row 2 of 3, a text of 60 characters'
    ):
        patterns.search("(a+)+b", ["aab", "a" * 60, "b"], seconds=0.2)


@pytest.mark.parametrize(
    ("check", "reference", "meta", "message"),
    [
        (Exact(), None, {}, "no reference answer"),
        (Number(), "none", {}, 'no number in the reference answer "none"'),
        (Grade(), "A", {}, 'no number in the reference answer "A"'),
        (Constraints(), "x", {}, 'expected lists "instruction_id_list" and "kwargs" in "meta"'),
        (Constraints(), "x", {"instruction_id_list": ["a"], "kwargs": []}, "1 constraints and 0 kwargs"),
    ],
)
def test_records_that_say_nothing_are_refused(check, reference, meta, message):
    with pytest.raises(UserError, match=message):
        check.expected(reference, meta)


def test_a_right_answer_wins_for_certain():
    """And two right or two wrong ones are even."""
    judge = VerifierJudge(Number(), {user("1+1"): Fraction(2), user("1+2"): Fraction(3)}, "sums.jsonl")
    assert isinstance(judge, ScoringJudge)
    prompts = [user("1+1"), user("1+1"), user("1+2"), user("1+2")]
    judged = judge(prompts, ["2", "5", "3", "4"], ["3", "2", "it is 3", "5"])
    np.testing.assert_allclose(judged.p_first, [1, 0, 0.5, 0.5], atol=1e-6)
    np.testing.assert_array_equal(judged.z_12, -judged.z_21)
    assert np.isfinite(judged.z_12).all() and judged.p_first[3] == 0.5
    np.testing.assert_array_equal(judge.scored(prompts, ["2", "5", "3", "4"]).scores, [1, 0, 1, 0])
    with pytest.raises(UserError, match='sums.jsonl: none of its 2 prompts is "1\\+3"'):
        judge.scored([user("1+3")], ["4"])
