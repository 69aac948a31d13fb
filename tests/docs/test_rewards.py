"""The page of rewards is what its script makes of the table and the pieces, and so are its figures."""

import re

import numpy as np
import pages
import pytest

from prl_jax.methods import METHODS, PIECES

PAGE, FIGURES = "docs/rewards.md", pages.ROOT / "docs" / "rewards"
NUMBER = r"-?\d+(?:\.\d+)?"


def test_the_page_is_what_the_table_and_the_pieces_say():
    text = (pages.ROOT / PAGE).read_text()
    assert text == pages.script("rewards").page(), "run: python docs/rewards.py"
    sections = pages.sections(PAGE)
    for part in ("Which method is which row", "What each costs"):
        assert all(f"`{name}`" in sections[part] for name in METHODS)
    # By hand: one anchor in both orders; four who meet three each, where a comparison serves both; three judges; an
    # opponent more that is sampled. A critic is 3 copies more.
    for row in (
        "| `pairwise_rl` | 1 | `genrm` | 2 | 76 | 1 | 8 |",
        "| `pref_grpo` | 4 | `genrm` | 3 | 114 | 1 | 5 |",
        "| `uwo` | 1 | `ensemble` | 3 | 72 | 1 | 10 |",
        "| `gram` | 1 | `genrm` | 2 | 76 | 2 | 8 |",
    ):
        assert row in text


def test_every_piece_is_in_its_figure():
    slots = dict(opponents="opponents", shapes="reward", baselines="baseline", surrogates="surrogate")
    drawn = {figure: (FIGURES / f"{figure}.svg").read_text() for figure in slots}
    for figure, slot in slots.items():
        kinds = [kind for kind, cls in PIECES[slot].items() if slot != "reward" or cls.asks == "scores"]
        assert [kind for kind in kinds if f">{kind}" not in drawn[figure]] in ([], ["several"])
    text = (pages.ROOT / PAGE).read_text()
    assert set(re.findall(r"\(rewards/(\w+)\.svg\)", text)) == {path.stem for path in FIGURES.glob("*.svg")}


@pytest.mark.long
def test_the_figures_are_what_the_pieces_return():
    for figure, draw in pages.script("rewards_figures").FIGURES.items():
        old, new = (FIGURES / f"{figure}.svg").read_text(), draw()
        assert re.sub(NUMBER, "#", old) == re.sub(NUMBER, "#", new), f"{figure}: run python docs/rewards_figures.py"
        numbers = [np.array(re.findall(NUMBER, text), float) for text in (old, new)]
        np.testing.assert_allclose(*numbers, atol=0.11, err_msg=f"{figure}: run python docs/rewards_figures.py")
