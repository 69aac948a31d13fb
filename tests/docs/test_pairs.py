"""The page about learning from pairs is what its script makes of the tables, and its examples run."""

import pages
import pytest

from prl_jax.methods.direct import DIRECT_LOSSES
from prl_jax.methods.direct_table import DIRECT
from prl_jax.methods.selection import SELECTIONS
from prl_jax.recipes.rounds import ITERATIVE

PAGE = "docs/pairs.md"


@pytest.fixture(scope="module")
def script():
    """`docs/pairs.py` as a module."""
    return pages.script("pairs")


def test_the_page_is_what_the_tables_and_the_pieces_say(script):
    assert (pages.ROOT / PAGE).read_text() == script.page(), "run: python docs/pairs.py"


def test_it_has_every_method_and_piece():
    text = (pages.ROOT / PAGE).read_text()
    for name, preset in {**DIRECT, **ITERATIVE}.items():
        assert f"| `{name}` | {preset.title} | " in text and preset.remark in text
    assert all(f"### `{kind}`\n" in text for kind in (*DIRECT_LOSSES, *SELECTIONS))


def test_its_examples_run():
    """One after the other, as a reader meets them."""
    found = pages.sections(PAGE)
    pages.run("\n".join(found[name] for name in ("A direct loss", "Pairs of a policy's own samples", "Rounds")))
