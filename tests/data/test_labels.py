"""Files of labels: every text comes back, whatever spreadsheets do to a CSV, and each wrong line is told."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prl_jax.data.labels import COLUMNS, Comparison, Labels, presented, read_labels, slot_of_chosen, write_labels
from prl_jax.data.lines import Limits
from prl_jax.data.records import PreferenceRecord
from prl_jax.errors import UserError
from prl_jax.text.chat import Turn

HEADER = ",".join(COLUMNS)
# Texts of any characters, and of those that CSV, spreadsheets and the escape itself care about.
TEXTS = st.text(max_size=30) | st.text("'\"=+-@\t\r\n,;0127/.: eE%\x00\ufeffaé", max_size=8)
COMPARISONS = st.builds(
    Comparison, TEXTS.filter(str.strip), TEXTS, TEXTS, TEXTS, st.sampled_from(["", "1", "2", "tie"]), TEXTS
)
MANY = st.lists(COMPARISONS, max_size=4, unique_by=lambda one: one.id)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labels")


def read(path: Path) -> list[Comparison]:
    labels = read_labels(path)
    labels.refuse_problems()
    return list(labels.lines.values())


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def pair(chosen: str, rejected: str, id: str = "a", prompt: str = "q") -> PreferenceRecord:
    return PreferenceRecord(id, (Turn("user", prompt),), chosen, rejected)


@given(MANY)
@settings(max_examples=300, deadline=None)
def test_every_text_comes_back_from_csv(folder: Path, comparisons: list[Comparison]) -> None:
    write_labels(folder / "a.csv", comparisons)
    assert read(folder / "a.csv") == comparisons
    saved = _text_of(folder / "a.csv")
    for row in csv.reader(io.StringIO(saved, newline="")):
        assert not any(cell[:1] in tuple("=+-@\t\r\n＝＋－＠") for cell in row if cell)


@given(MANY)
@settings(max_examples=100, deadline=None)
def test_every_text_comes_back_from_json_lines(folder: Path, comparisons: list[Comparison]) -> None:
    write_labels(folder / "a.jsonl", comparisons)
    assert read(folder / "a.jsonl") == comparisons


@given(MANY, st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_csv_is_read_as_spreadsheets_save_it(
    folder: Path, comparisons: list[Comparison], delimiter: str, ending: str, mark: bool, padded: bool
) -> None:
    """Other delimiters, line ends and quotes, no byte order mark, empty rows and columns."""
    write_labels(folder / "b.csv", comparisons)
    rows = list(csv.reader(io.StringIO(_text_of(folder / "b.csv"), newline="")))
    if padded:
        rows = [row for filled in rows for row in ([*filled, "", ""], [""] * 8, [])]
    text = "".join(delimiter.join(_quoted(cell, delimiter) for cell in row) + ending for row in rows)
    written(folder / "b.csv", text.encode("utf-8-sig" if mark else "utf-8"))
    assert read(folder / "b.csv") == comparisons


def _quoted(cell: str, delimiter: str) -> str:
    """A cell in quotes only where it needs them."""
    needed = any(character in cell for character in (delimiter, '"', "\r", "\n"))
    return '"' + cell.replace('"', '""') + '"' if needed else cell


def _text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "＝1", "'=1", "''-", "007", "1/2", "1e5", "12:30", " 5", ".5", "50%",
     "TRUE", "1234567890123456"],
)  # fmt: skip
def test_what_a_spreadsheet_would_change_has_an_apostrophe_in_front(folder: Path, text: str) -> None:
    write_labels(folder / "c.csv", [Comparison(text, text, text, text)])
    (_, row) = csv.reader(io.StringIO(_text_of(folder / "c.csv"), newline=""))
    assert row == [f"'{text}"] * 4 + ["", ""]
    assert read(folder / "c.csv") == [Comparison(text, text, text, text)]


@pytest.mark.parametrize("text", ["12", "0", "'tis", "1st", "a=b", "true story", "e", "…", "é"])
def test_other_texts_stand_as_they_are(folder: Path, text: str) -> None:
    write_labels(folder / "c.csv", [Comparison(text, text, text, text)])
    (_, row) = csv.reader(io.StringIO(_text_of(folder / "c.csv"), newline=""))
    assert row[:4] == [text] * 4


def test_very_long_texts_and_apostrophes(folder: Path) -> None:
    long = Comparison("a", "x" * 300_000, "'" * 200_000 + "1", "'" * 200_000 + "=")
    before = csv.field_size_limit()
    write_labels(folder / "d.csv", [long])
    assert read(folder / "d.csv") == [long] and csv.field_size_limit() == before


def test_columns_stand_in_any_order_and_preferences_in_any_case(tmp_path: Path) -> None:
    text = " Preferred ,ID,response_2,response_1,Prompt\n TIE ,a,two,one,q\n\xa02,b,two,one,q\n\n,c,two,one,q\n"
    labels = read_labels(written(tmp_path / "a.csv", text))
    assert {number: (one.id, one.preferred) for number, one in labels.lines.items()} == {
        2: ("a", "tie"), 3: ("b", "2"), 5: ("c", ""),
    }  # fmt: skip
    assert labels.lines[2] == Comparison("a", "q", "one", "two", "tie")


def test_empty_fields_at_the_end_of_a_line_may_be_missing(tmp_path: Path) -> None:
    """Excel leaves them out where sixteen lines have none."""
    assert read(written(tmp_path / "a.csv", f"{HEADER}\na,q,one,two\nb,q,one,two,1\n")) == [
        Comparison("a", "q", "one", "two"),
        Comparison("b", "q", "one", "two", "1"),
    ]


def test_columns_without_a_name_are_empty(tmp_path: Path) -> None:
    labels = read_labels(written(tmp_path / "a.csv", f"{HEADER},,\na,q,one,two,1,, ,\nb,q,one,two,1,,note,\n"))
    assert list(labels.lines) == [2] and 'unknown column ""' in labels.problems[3]


def test_lines_that_end_in_cr_alone(tmp_path: Path) -> None:
    labels = read_labels(written(tmp_path / "a.csv", f"{HEADER}\ra,q,one,two,1,\rb,q,one,two,3,\r"))
    assert list(labels.lines) == [2] and list(labels.problems) == [3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('b,q,one,two,"A",', 'field "preferred" is "A" (expected 1, 2 or tie, or nothing)'),
        ("b,q,one,two,12,", 'field "preferred" is "12" (expected 1, 2 or tie, or nothing)'),
        ("b,q,one", "has 3 columns (expected 6, as the header)"),
        ("b,q,one,two,1,,", "has 7 columns (expected 6, as the header)"),
        ("a,q,one,two,1,", 'id "a" stands in line 2 too (expected once)'),
        (",q,one,two,1,", 'field "id" is empty (expected the id that the line was exported with)'),
        ('b,"q"x,one,two,1,', "malformed CSV: "),
        ('b,"q,one,two,1,', "malformed CSV: unexpected end of data"),
        (b"b,q,\xff,two,1,", 'field "response_1" is no text in UTF-8'),
    ],
)
def test_wrong_lines_of_csv(tmp_path: Path, line: str | bytes, message: str) -> None:
    """A comparison that spans lines is named by the first of them."""
    line = line if isinstance(line, bytes) else line.encode()
    path = written(tmp_path / "a.csv", HEADER.encode() + b'\na,"q\nq",one,two,,\n' + line + b"\n")
    labels = read_labels(path)
    assert list(labels.lines.values()) == [Comparison("a", "q\nq", "one", "two")] and list(labels.problems) == [4]
    with pytest.raises(UserError) as caught:
        labels.refuse_problems()
    assert str(caught.value).startswith(f"{path}:4: {message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b"', "malformed JSON"),
        ('{"id": "b", "prompt": "q", "response_1": "one"}', 'there is no column "response_2"'),
        ('{"id": "b", "prompt": "q", "response_1": "", "response_2": "", "x": 1}', 'unknown column "x"'),
        ('{"id": "b", "prompt": "q", "response_1": "", "response_2": "", "preferred": true}', "expected a string"),
        ('{"id": "b", "prompt": "q", "response_1": "", "response_2": "", "preferred": 3}', "expected 1, 2 or tie"),
        ('{"id": "a", "prompt": "q", "response_1": "", "response_2": ""}', "stands in line 1 too"),
    ],
)
def test_wrong_lines_of_json(tmp_path: Path, line: str, message: str) -> None:
    good = '{"id": "a", "prompt": "q", "response_1": "one", "response_2": "two", "preferred": 2}\n\n'
    labels = read_labels(written(tmp_path / "a.jsonl", good + line + "\n"))
    assert labels.lines == {1: Comparison("a", "q", "one", "two", "2")}
    with pytest.raises(UserError, match=r"a\.jsonl:3: .*") as caught:
        labels.refuse_problems()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "is no header of labels (expected id, prompt, response_1, response_2, preferred, comment)"),
        (b"prompt,chosen,rejected\nq,a,b\n", "is no header of labels"),
        (f"{HEADER}\n".encode("utf-16"), "is no text in UTF-8"),
        (b"id,prompt,response_1,preferred\n", 'there is no column "response_2"'),
        (f"{HEADER},notes\n".encode(), 'unknown column "notes"'),
        (f"{HEADER},id\n".encode(), "a column stands twice"),
    ],
)
def test_other_files(tmp_path: Path, contents: bytes, message: str) -> None:
    with pytest.raises(UserError, match=r"a\.csv:1: ") as caught:
        read_labels(written(tmp_path / "a.csv", contents))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_labels(tmp_path / "a.csv")
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(UserError, match="no regular file"):
        read_labels(tmp_path / "b.csv")
    with pytest.raises(UserError, match=r"expected a name that ends in \.csv or \.jsonl"):
        read_labels(tmp_path / "a.xlsx")
    with pytest.raises(UserError, match="has more than 1 MiB"):
        read_labels(written(tmp_path / "c.csv", b"x" * (2**20 + 1)), Limits(max_unpacked_mib=1))


def test_the_first_problem_is_told_with_the_number_of_others() -> None:
    labels = Labels(Path("a.csv"), problems={7: "a.csv:7: late", 3: "a.csv:3: early"})
    with pytest.raises(UserError, match=r"^a\.csv:3: early \(1 other line is wrong too\)$"):
        labels.refuse_problems()
    labels.problems[9] = "a.csv:9: last"
    with pytest.raises(UserError, match=r"\(2 other lines are wrong too\)$"):
        labels.refuse_problems()
    Labels(Path("a.csv")).refuse_problems()


@given(TEXTS, TEXTS, st.integers(0, 9))
def test_the_order_does_not_tell_which_response_is_chosen(one: str, two: str, seed: int) -> None:
    assert presented(pair(one, two), seed) == presented(pair(two, one), seed)


def test_each_order_is_as_likely_and_seed_and_id_draw_it() -> None:
    slots = [[slot_of_chosen(presented(p, s), p) for s in (0, 1)] for p in (pair("x", "y", str(n)) for n in range(400))]
    for seed in (0, 1):
        assert 150 < sum(both[seed] == 1 for both in slots) < 250
    assert 150 < sum(first == second for first, second in slots) < 250


@given(TEXTS, TEXTS, TEXTS, st.booleans())
def test_the_slot_of_chosen(prompt: str, chosen: str, rejected: str, swapped: bool) -> None:
    shown = (rejected, chosen) if swapped else (chosen, rejected)
    comparison = Comparison("a", prompt, *shown)
    assert slot_of_chosen(comparison, pair(chosen, rejected, prompt=prompt)) == 1 + (swapped and chosen != rejected)
    assert slot_of_chosen(comparison, pair(chosen + "x", rejected, prompt=prompt)) is None or rejected == chosen + "x"
    assert slot_of_chosen(comparison, pair(chosen, rejected, prompt=prompt + " ")) is None


def test_line_breaks_may_change_unless_they_alone_tell_the_responses_apart() -> None:
    record = pair("a\r\nb", "c\rd", prompt="q\r\n")
    assert slot_of_chosen(Comparison("a", "q\n", "c\nd", "a\nb"), record) == 2
    assert slot_of_chosen(Comparison("a", "q\n", "a\nb", "a\nb"), pair("a\r\nb", "a\nb", prompt="q\n")) is None
    assert slot_of_chosen(Comparison("a", "q", "a\nb", "a\r\nb"), pair("a\r\nb", "a\nb")) == 2
