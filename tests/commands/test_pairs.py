"""`prl pairs export` and `prl pairs import`: what a person gets to see, what becomes of it, and what is refused."""

import csv
import json
import os
from pathlib import Path

import pytest
from running import prl, read_rows, refused, says, write_rows

from prl_jax.data.labels import Comparison, read_labels, write_labels
from prl_jax.data.parsers import parse_preference
from prl_jax.data.sources import SourceSpec, load_records

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "=SUM?"}]
PAIRS = [
    {"id": "plain", "prompt": "Say é.", "chosen": "é\r\n", "rejected": "-e", "source": "s", "meta": {"k": [1]}},
    {"id": "turns", "prompt": TURNS, "chosen": "'=1", "rejected": "=1", "p_chosen": 0.9},
    {"id": "votes", "prompt": "q", "chosen": "x", "rejected": "y", "meta": {"votes": [1, 3, 0], "pos": 2, "z_12": 1.5}},
    {"id": "tie", "prompt": "q", "chosen": "left", "rejected": "right", "tie": True, "meta": {"comment": "old"}},
    {"id": "same", "prompt": "q", "chosen": "one", "rejected": "one"},
    {"prompt": "no id", "chosen": "a", "rejected": "b"},
    {"id": "twice", "prompt": "q", "chosen": "c", "rejected": "d"},
    {"id": "twice", "prompt": "q", "chosen": "e", "rejected": "f"},
]
IDS = ["plain", "turns", "votes", "tie", "same", "pairs.jsonl:6", "pairs.jsonl:7", "pairs.jsonl:8"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", PAIRS)


@pytest.fixture(params=["labels.csv", "labels.jsonl", "labels.jsonl.gz"])
def labels(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


def export(pairs: Path, out: Path, *flags: str) -> list[Comparison]:
    done = prl("pairs", "export", "--pairs", pairs, "--out", out, *flags)
    assert (done.code, done.err) == (0, "") and says(done.out, "comparisons", str(out)), done
    return list(read_labels(out).lines.values())


def fill(path: Path, answers: dict[str, str], **comments: str) -> None:
    """Writes preferences: for "chosen" and "rejected" the slot in which the pair has it."""
    rows = {id: row for id, row in zip(IDS, PAIRS, strict=True)}
    lines = []
    for one in read_labels(path).lines.values():
        answer = answers.get(one.id, "")
        if answer in ("chosen", "rejected"):
            answer = "1" if one.response_1 == rows[one.id][answer] else "2"
        lines.append(Comparison(one.id, one.prompt, one.response_1, one.response_2, answer, comments.get(one.id, "")))
    write_labels(path, lines)


def bring(pairs: Path, labels: Path, out: Path) -> dict[str, dict]:
    done = prl("pairs", "import", "--pairs", pairs, "--labels", labels, "--out", out)
    assert (done.code, done.err) == (0, ""), done
    return {row["id"]: row for row in read_rows(out)} | {"": {"printed": done.out}}


def test_a_person_sees_texts_and_nothing_else(pairs, labels):
    lines = export(pairs, labels)
    assert [one.id for one in lines] == IDS
    for one, row in zip(lines, PAIRS, strict=True):
        assert {one.response_1, one.response_2} == {row["chosen"], row["rejected"]}
        assert (one.preferred, one.comment) == ("", "")
    assert lines[0].prompt == "Say é." and lines[1].prompt == "system: Be brief.\nuser: =SUM?"


def test_the_file_is_the_same_whichever_response_is_chosen(pairs, labels, tmp_path):
    export(pairs, labels)
    before = labels.read_bytes()
    exchanged = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS]
    export(write_rows(pairs, exchanged), labels)
    assert labels.read_bytes() == before


def test_lines_do_not_depend_on_other_lines_or_the_folder_but_on_the_seed(pairs, table, tmp_path):
    lines = export(pairs, table)
    (tmp_path / "there").mkdir()
    more = [*PAIRS, {"id": "more", "prompt": "q", "chosen": "1", "rejected": "2"}]
    other = write_rows(tmp_path / "there" / "pairs.jsonl", more)
    assert export(other, tmp_path / "there" / "b.csv")[:-1] == lines
    assert export(pairs, tmp_path / "c.csv", "--limit=3") == lines[:3]
    assert any(export(pairs, tmp_path / f"{seed}.csv", f"--seed={seed}") != lines for seed in range(1, 5))


def test_labels_become_preference_rows(pairs, labels, tmp_path):
    export(pairs, labels)
    answers = {"plain": "rejected", "turns": "chosen", "votes": " Rejected", "tie": "chosen", "pairs.jsonl:8": "tie"}
    fill(labels, {**answers, "votes": "rejected", "same": "2"}, plain=" too loud ", tie="=new")
    shown = {one.id: one for one in read_labels(labels).lines.values()}
    rows = bring(pairs, labels, tmp_path / "out.jsonl")
    assert list(rows) == ["plain", "turns", "votes", "tie", "same", "pairs.jsonl:8", ""]
    assert says(rows.pop("")["printed"], "6 labels", "2 lines without a label", "1 of 3 prefer the response")
    for id, row in rows.items():
        assert list(row) == ["prompt", "chosen", "rejected", "tie", "slot", "id", "source", "meta"]
        responses = (shown[id].response_1, shown[id].response_2)
        assert (row["chosen"], row["rejected"]) == (responses if row["slot"] == 1 else responses[::-1])
        record = parse_preference(row, "out")
        assert (record.p_chosen, record.slot, record.tie) == (None, row["slot"], row["tie"]), "labels speak alone"
    assert rows["plain"] == {
        "prompt": [{"role": "user", "content": "Say é."}], "chosen": "-e", "rejected": "é\r\n", "tie": False,
        "slot": int(shown["plain"].preferred), "id": "plain", "source": "s",
        "meta": {"k": [1], "before": {"tie": False, "exchanged": True}, "comment": "too loud"},
    }  # fmt: skip
    assert rows["turns"]["prompt"] == TURNS and rows["turns"]["chosen"] == "'=1"
    assert rows["turns"]["meta"] == {"before": {"tie": False, "exchanged": False, "p_chosen": 0.9}}
    assert rows["votes"]["meta"] == {
        "before": {"votes": [1, 3, 0], "pos": 2, "z_12": 1.5, "tie": False, "exchanged": True, "p_chosen": 0.75},
    }  # fmt: skip
    assert rows["tie"]["meta"] == {"before": {"comment": "old", "tie": True, "exchanged": False}, "comment": "=new"}
    assert rows["same"]["tie"] and rows["same"]["slot"] == 2 and not rows["same"]["meta"]["before"]["exchanged"]
    tie = rows["pairs.jsonl:8"]
    assert tie["tie"] and tie["slot"] == 1 and tie["chosen"] == shown["pairs.jsonl:8"].response_1


def test_a_source_reads_the_rows_and_they_can_be_labelled_again(pairs, table, tmp_path):
    export(pairs, table)
    fill(table, {id: "rejected" for id in IDS if id != "same"})
    out = tmp_path / "out.jsonl"
    bring(pairs, table, out)
    records = load_records(SourceSpec("jsonl", path=str(out)), "preference", data_dir=tmp_path)
    assert [(record.chosen, record.unused) for record in records] == [
        (row["rejected"], ()) for row in PAIRS if row.get("id") != "same"
    ]
    again = tmp_path / "again.csv"
    lines = export(out, again)
    assert lines == [one for one in export(pairs, tmp_path / "fresh.csv") if one.id != "same"]
    write_labels(again, [Comparison(o.id, o.prompt, o.response_1, o.response_2, "tie") for o in lines])
    rows = bring(out, again, tmp_path / "second.jsonl")
    assert rows["tie"]["meta"]["before"]["before"] == {"comment": "old", "tie": True, "exchanged": True}


def test_a_spreadsheet_has_been_at_it(pairs, table, tmp_path):
    """Semicolons, CRLF in cells as well, no byte order mark, sorted, empty rows."""
    export(pairs, table)
    fill(table, {"plain": "chosen", "turns": "rejected", "pairs.jsonl:6": "tie"})
    before = bring(pairs, table, tmp_path / "before.jsonl")
    with open(table, encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    with open(table, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        cells = [[cell.replace("\r\n", "\n").replace("\n", "\r\n") for cell in row] for row in rows]
        writer.writerows([header, *reversed(cells), [""] * 6])
    assert bring(pairs, table, tmp_path / "after.jsonl") | {"": {}} == before | {"": {}}
    assert (tmp_path / "after.jsonl").read_bytes() == (tmp_path / "before.jsonl").read_bytes()


def test_an_export_keeps_what_is_filled_in_and_adds_the_rest(pairs, labels):
    first = export(pairs, labels, "--limit=4")
    fill(labels, {"plain": "chosen", "tie": "tie"}, votes="hm")
    filled = {one.id: one for one in read_labels(labels).lines.values() if one.filled}
    assert set(filled) == {"plain", "tie", "votes"}
    done = prl("pairs", "export", "--pairs", pairs, "--out", labels)
    assert says(done.out, "8 comparisons, 3 of them filled in before")
    lines = list(read_labels(labels).lines.values())
    assert [one.id for one in lines] == IDS
    assert {one.id: one for one in lines if one.filled} == filled and lines[1] == first[1]
    before = labels.read_bytes()
    assert export(pairs, labels) == lines and labels.read_bytes() == before
    assert [one.id for one in export(pairs, labels, "--limit=1")] == ["plain", "votes", "tie"]


def test_an_export_loses_no_label(pairs, table, tmp_path):
    argv = ("pairs", "export", "--pairs", pairs, "--out", table)
    export(pairs, table)
    fill(table, {"plain": "chosen", "turns": "tie"})
    for damage, words in (
        (lambda text: text.replace('"plain"', '"plane"'), [":2: ", 'id "plane" is unknown']),
        (lambda text: text.replace("user: =SUM?", "user: SUM?"), ["about other texts"]),
        (lambda text: text.replace('"tie",""', '"draw",""'), ["expected 1, 2 or tie"]),
        (lambda text: text.replace("comment", "remark", 1), ["unknown column"]),
        (lambda text: "precious\n", ["is no header of labels"]),
    ):
        text = table.read_bytes().decode("utf-8-sig")
        changed = damage(text)
        assert changed != text
        table.write_bytes(changed.encode())
        assert says(refused(*argv), "--out is there already and stays as it is", *words)
        assert table.read_bytes() == changed.encode()
        table.write_bytes(text.encode())
    assert says(refused(*argv[:-1], pairs), "is the file that is read")
    assert says(refused(*argv[:-1], tmp_path / "labels.xlsx"), "ends in .csv or .jsonl")
    assert says(refused(*argv[:-1], tmp_path / "no" / "labels.csv"), "there is no folder")
    assert says(refused(*argv[:-1], "s3://bucket/labels.csv"), "paths with a scheme")
    assert sorted(os.listdir(tmp_path)) == ["labels.csv", "pairs.jsonl"]


def test_labels_of_nobody_give_way(pairs, table):
    """No line is filled in: the pairs may be others now."""
    export(pairs, table, "--seed=3")
    assert len(export(write_rows(pairs, PAIRS[5:]), table)) == 3


def test_wrong_lines_are_refused_and_nothing_is_written(pairs, table, tmp_path):
    out = tmp_path / "out.jsonl"
    argv = ("pairs", "import", "--pairs", pairs, "--labels", table, "--out", out)
    export(pairs, table)
    assert says(refused(*argv), "labels.csv: nobody has decided yet", "expected 1, 2 or tie")
    fill(table, {"plain": "chosen"})
    good = table.read_bytes().decode("utf-8-sig")
    number = next(n for n, one in read_labels(table).lines.items() if one.id == "votes")
    for damage, words in (
        (lambda text: text.replace('"votes","q"', '"votes","Q"'), ["is about other texts", "expected the prompt"]),
        (lambda text: text.replace('"votes","q"', '"bytes","q"'), ['id "bytes" is unknown', "expected the id"]),
        (lambda text: text.replace('"votes","q"', '"votes","a","b","q"'), ["columns (expected 6, as the header)"]),
        (lambda text: text.replace('"votes"', '"turns"'), ['id "turns" stands in line', "expected once"]),
        (lambda text: text.replace('"votes","q"', '"votes","\udcff"'), ["no text in UTF-8"]),
    ):
        changed = damage(good).replace('"same","q"', '"sane","q"')
        table.write_bytes(changed.encode("utf-8", "surrogateescape"))
        line = refused(*argv)
        assert says(line, f"labels.csv:{number}: ", "(1 other line is wrong too)", *words), line
        assert not out.exists()
    table.write_text(
        good.replace('"votes","q","x","y",""', '"votes","q","x","y","3"').replace('"y","x",""', '"y","x","3"')
    )
    assert says(refused(*argv), f"labels.csv:{number}: ", 'field "preferred" is "3" (expected 1, 2 or tie')
    table.write_text(good)
    out.write_text("mine\n")
    assert says(refused(*argv), "is there already", "--overwrite") and out.read_text() == "mine\n"
    assert prl(*argv, "--overwrite").code == 0 and len(read_rows(out)) == 1
    assert says(refused(*argv[:-1], table, "--overwrite"), "is the file that is read")
    assert sorted(os.listdir(tmp_path)) == ["labels.csv", "out.jsonl", "pairs.jsonl"]


def test_pairs_that_cannot_be_read_are_refused(table, tmp_path):
    for row, words in (
        ({"prompt": "q", "chosen": "a"}, ["pairs.jsonl:1", '"rejected" is missing']),
        ({"id": "\ud800", "prompt": "q", "chosen": "a", "rejected": "b"}, ["pairs.jsonl:1", "half of a surrogate"]),
    ):
        path = write_rows(tmp_path / "pairs.jsonl", [row])
        assert says(refused("pairs", "export", "--pairs", path, "--out", table), *words)
    rows = [{"id": "pairs.jsonl:2", **PAIRS[5]}, PAIRS[5]]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    assert says(refused("pairs", "export", "--pairs", path, "--out", table), "pairs.jsonl:2", "of another pair too")
    assert not table.exists()


def test_mistakes_on_the_command_line(pairs, table):
    assert says(refused("pairs"), "expected export or import")
    assert says(refused("pairs", "exports"), "expected export or import", "'exports'")
    assert says(refused("pairs", "export", "--out", table), "prl pairs export: --pairs is missing")
    assert says(refused("pairs", "import", "--pairs", pairs, "--out", table), "--labels is missing")
    assert says(refused("pairs", "export", "--pairs", pairs, "--out", table, "--limit=-1"), "limit")
    assert says(refused("pairs", "import", "--seed=1"), "seed")
    done = prl("pairs", "--help")
    assert done.code == 0 and says(done.out, "prl pairs export", "prl pairs import", "--labels", "--seed")


def test_a_large_file_of_json_is_bounded(pairs, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({**PAIRS[5], "chosen": "x" * 2**20}) + "\n")
    argv = ("pairs", "export", "--pairs", path, "--out", tmp_path / "labels.csv")
    assert says(refused(*argv, "--max_line_mib=1"), "max_line_mib") and prl(*argv).code == 0
