"""Configs as they are named on the command line."""

from pathlib import Path

import pytest
from running import refused


@pytest.mark.parametrize(
    ("declared", "given", "words"),
    [
        ("", ":ARGS", "this file takes no arguments: give its name alone, without a colon and what follows"),
        ("variant", "", "this file needs an argument: give it behind a colon, --config FILE.py:ARGUMENT"),
    ],
)
def test_arguments_of_a_config_are_told_in_a_sentence(tmp_path: Path, declared: str, given: str, words: str) -> None:
    (tmp_path / "config.py").write_text(f"def get_config({declared}):\n    raise ZeroDivisionError\n")
    line = refused("run", "--config", f"{tmp_path / 'config.py'}{given}", "--workdir", tmp_path / "run")
    assert line == f"prl: --config: {words}"
