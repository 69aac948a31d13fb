"""Anchors belong to prompts, whatever the ids of their rows."""

from pathlib import Path

import pytest

from prl_jax.data.jsonl import write_jsonl
from prl_jax.data.records import PromptRecord
from prl_jax.errors import UserError
from prl_jax.file_names import ANCHORS_FILE
from prl_jax.stages.anchors import read_anchors
from prl_jax.text.chat import Turn


def record(text: str, name: str = "same") -> PromptRecord:
    return PromptRecord(name, (Turn("system", "s"), Turn("user", text)))


def write(directory: Path, *rows: tuple[str, list[str]]) -> None:
    prompts = [[turn._asdict() for turn in record(text).prompt] for text, _ in rows]
    write_jsonl(
        directory / ANCHORS_FILE,
        [{"id": "same", "prompt": prompt, "anchors": row[1]} for prompt, row in zip(prompts, rows, strict=True)],
    )


def test_repeated_ids_do_not_exchange_anchors(tmp_path: Path) -> None:
    write(tmp_path, ("q", ["to q"]), ("r", ["to r", "too"]))
    assert read_anchors(tmp_path, [record("q"), record("r")]) == [["to q"], ["to r", "too"]]
    assert read_anchors(tmp_path, [record("r", "other"), record("q", "another")]) == [["to r", "too"], ["to q"]]


def test_one_id_of_two_files_does_not_lend_anchors(tmp_path: Path) -> None:
    """Two prompt files may both count their ids from 1."""
    write(tmp_path, ("q", ["to q"]))
    with pytest.raises(UserError, match="no anchor for prompt 'same' and 1 more; the anchors stage and this one must"):
        read_anchors(tmp_path, [record("q"), record("z"), record("y")])


def test_rows_of_one_prompt_keep_their_order(tmp_path: Path) -> None:
    write(tmp_path, ("q", ["1"]), ("r", ["to r"]), ("q", ["2"]))
    assert read_anchors(tmp_path, [record("q")] * 3) == [["1"], ["2"], ["1"]]


@pytest.mark.parametrize("row", [{}, {"prompt": "q", "anchors": []}, {"prompt": [{"role": "user"}], "anchors": []}])
def test_rows_of_another_form(tmp_path: Path, row: dict) -> None:
    write_jsonl(tmp_path / ANCHORS_FILE, [row])
    with pytest.raises(UserError, match=r"anchors\.jsonl:1: expected a prompt of turns and anchors"):
        read_anchors(tmp_path, [record("q")])
