"""The page of the methods is what its script makes of the table, and what it says of a config is true."""

import dataclasses

import pages
import pytest

from prl_jax.methods import METHODS, PIECES, SLOTS

PAGE = "docs/methods.md"


@pytest.fixture(scope="module")
def script():
    """`docs/methods.py` as a module."""
    return pages.script("methods")


def test_the_page_is_what_the_table_and_the_pieces_say(script):
    assert (pages.ROOT / PAGE).read_text() == script.page(), "run: python docs/methods.py"


def test_it_has_every_method_piece_and_key(script):
    text = (pages.ROOT / PAGE).read_text()
    for name, preset in METHODS.items():
        assert f"| `{name}` | {preset.title} | " in text and preset.remark in text
    for slot in SLOTS:
        below = text.split(f"### `{slot}`\n")[1].split("\n### ")[0]
        for kind, cls in PIECES[slot].items():
            keys = below.split(f"#### `{kind}`\n")[1].split("\n#### ")[0]
            assert len(keys.strip()) > 10
            for field in dataclasses.fields(cls):
                assert f"`{field.name}`" in keys and f"`{field.default!r}`" in keys


def test_docstrings_are_read_as_they_are_meant(script):
    class Piece:
        """The first sentence
        goes on.

        Attributes:
          low, high: two ends, of which the
            first is the lower one.
          other: something else: with a colon.

        Source: a paper.
        """

    text, sentences = script.parse(Piece)
    assert text == "The first sentence goes on.\n\nSource: a paper."
    ends = "two ends, of which the first is the lower one."
    assert sentences == {"low": ends, "high": ends, "other": "something else: with a colon."}


def test_what_it_says_of_a_config_runs():
    pages.run(pages.sections(PAGE)["Choosing a method"])
