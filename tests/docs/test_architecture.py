"""The picture and the page of the architecture say what the package is."""

import re

import pages
import pytest
from test_layering import LAYERS, SIDEWAYS, package_sources

ROOT = pages.ROOT
LARGEST = 0.13  # of the lines of the package in one room


@pytest.fixture(scope="module")
def script():
    """`docs/architecture.py` as a module."""
    return pages.script("architecture")


@pytest.fixture(scope="module")
def sources():
    return package_sources()


def test_the_picture_shows_the_rooms_and_imports_of_the_package(script, sources):
    shown = script.drawn((ROOT / "docs" / "architecture.svg").read_text())
    assert shown == script.picture(sources), "it is older than the package; run: python docs/architecture.py"


def test_what_is_drawn_is_what_is_read_back(script, sources):
    shown = script.picture(sources)
    svg = script.svg_of(shown, script.lines_of(sources))
    assert script.drawn(svg) == shown and shown.layers.keys() == LAYERS.keys()
    for room in shown.layers:
        assert f">{room}</text>" in svg
    boxes = [tuple(map(int, box)) for box in re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)"', svg)]
    assert len(boxes) == len(LAYERS)
    for x, y, width in boxes:
        assert x >= script.LEFT and x + width <= script.WIDTH
        assert not any(y == other_y and x < other_x <= x + width for other_x, other_y, _ in boxes)


def test_an_arrow_that_a_path_says_is_left_out(script):
    sources = {
        "prl_jax.training": "from prl_jax import judges, losses, errors",
        "prl_jax.judges.base": "from prl_jax.losses import x",
        "prl_jax.losses": "from prl_jax.errors import y",
        "prl_jax.errors": "",
    }
    assert script.imports_between(sources) > {("training", "losses"), ("training", "errors"), ("losses", "errors")}
    assert script.picture(sources).arrows == {("training", "judges"), ("judges", "losses")}


def test_no_room_has_more_than_its_share(script, sources):
    lines = script.lines_of(sources)
    largest = max(lines, key=lines.get)
    assert lines[largest] <= LARGEST * sum(lines.values()), f"{largest} has grown too large; divide it"


def test_rooms_import_in_no_circle_and_never_upward(script, sources):
    arrows = script.imports_between(sources)
    assert {room for room in LAYERS if room in script.reachable(room, arrows)} == set()
    assert {(a, b) for a, b in arrows if LAYERS[a] < LAYERS[b]} == set()
    assert script.reachable("a", {("a", "b"), ("b", "a"), ("c", "a")}) == {"a", "b"}


def test_every_exception_to_the_layers_is_used(script, sources):
    assert SIDEWAYS - script.imports_between(sources) == set()


def test_the_table_of_the_page_has_every_room_in_its_layer():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", pages.sections("docs/architecture.md")["Rooms"], re.MULTILINE)
    found = {room: int(layer) for layer, rooms in rows for room in re.findall(r"`(\w+)`", rooms)}
    assert found == LAYERS


@pytest.mark.parametrize("heading", ["A judge is a function", "A method is six pieces"])
def test_the_examples_of_the_page_run(heading):
    pages.run(pages.sections("docs/architecture.md")[heading])


def test_the_paths_that_the_page_names_exist():
    text = pages.sections("docs/architecture.md")["What happens in a run"]
    paths = re.findall(r"`([a-z_]+/[\w/]*(?:\.py)?|[a-z_]+\.py)`", text)
    assert len(paths) > 12
    for path in paths:
        assert (ROOT / "prl_jax" / path).exists(), path
