"""Draws `docs/architecture.svg` from the imports of the package, and prints the share of the lines that each room has.

    python docs/architecture.py

A room is a module or a folder right under `prl_jax`; `tests/test_layering.py` has their layers. Boxes are as wide as
the room has lines. An arrow says "imports". It is left out where a path of other arrows says it already, and where it
ends at layer 0, which everybody may use.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]

from test_layering import LAYERS, PACKAGE, imports_of, package_sources, room_of  # noqa: E402

FILE = ROOT / "docs" / "architecture.svg"
# In pixels: the picture, the column of labels, a row, and in it a box, the least space between two of them, and a line.
WIDTH, LEFT, ROW, BOX, GAP, THIN = 1560, 84, 72, 34, 14, 8
COLOURS = ("#e4e4e4", "#cfe0f3", "#cdebe4", "#dcedc8", "#fdeec4", "#fbdcc0")  # of layers 0 to 4, and of those above
STYLE = "text{font:15px sans-serif;fill:#222}.layer{font-size:13px;fill:#666}path{fill:none;stroke:#5d6b7a}"

Arrow = tuple[str, str]  # a room, and one that it imports
Node = str | tuple[Arrow, int]  # what stands in a row: a room, or an arrow that passes, with the row's number


class Picture(NamedTuple):
    """What is drawn: rooms with their layers, and arrows. A test compares it with the package."""

    layers: Mapping[str, int]
    arrows: frozenset[Arrow]


def lines_of(sources: Mapping[str, str]) -> dict[str, int]:
    """Lines of each room of `module name -> source`."""
    found: dict[str, int] = {}
    for module, source in sources.items():
        if room_of(module):
            found[room_of(module)] = found.get(room_of(module), 0) + source.count("\n")
    return found


def imports_between(sources: Mapping[str, str]) -> set[Arrow]:
    """Every pair of a room and another one that it imports."""
    found = set()
    for module, source in sources.items():
        own = [name for name in imports_of(module, source, sources) if name.split(".")[0] == PACKAGE]
        found |= {(room_of(module), room_of(name)) for name in own}
    return {(room, target) for room, target in found if room and target and room != target}


def reachable(room: str, arrows: Iterable[Arrow]) -> set[str]:
    """Rooms that one arrow or more lead to; the room itself where it is part of a circle."""
    found: set[str] = set()
    todo = {room}
    while todo:
        todo = {target for source, target in arrows if source in todo} - found
        found |= todo
    return found


def picture(sources: Mapping[str, str]) -> Picture:
    """Returns the picture of a package without circles."""
    rooms = lines_of(sources)
    arrows = {arrow for arrow in imports_between(sources) if LAYERS[arrow[1]] > 0}
    beyond = {room: reachable(room, arrows) for room in rooms}
    said = {(room, further) for room, target in arrows for further in beyond[target]}
    return Picture({room: LAYERS[room] for room in rooms}, frozenset(arrows - said))


def drawn(svg: str) -> Picture:
    """Reads a picture back from the data attributes of its SVG."""
    layers, arrows = {}, set()
    for element in ElementTree.fromstring(svg).iter():
        if "data-room" in element.attrib:
            layers[element.attrib["data-room"]] = int(element.attrib["data-layer"])
        if "data-from" in element.attrib:
            arrows.add((element.attrib["data-from"], element.attrib["data-to"]))
    return Picture(layers, frozenset(arrows))


def levels_of(shown: Picture) -> dict[str, tuple[int, int]]:
    """The layer of each room, and less than 0 where others of the same layer import it: the smaller, the lower."""

    def height(room: str) -> int:
        inside = [a for a, b in shown.arrows if b == room and shown.layers[a] == shown.layers[room]]
        return min(map(height, inside)) - 1 if inside else 0

    return {room: (layer, height(room)) for room, layer in sorted(shown.layers.items())}


def chains_of(shown: Picture) -> tuple[list[list[Node]], list[list[Node]]]:
    """Rows of nodes from top to bottom, and each arrow as the nodes that it leads through, one in each row."""
    levels = levels_of(shown)
    order = sorted(set(levels.values()), reverse=True)
    rows: list[list[Node]] = [[room for room in levels if levels[room] == level] for level in order]
    chains = []
    for arrow in sorted(shown.arrows):
        between = range(order.index(levels[arrow[0]]) + 1, order.index(levels[arrow[1]]))
        for k in between:
            rows[k].append((arrow, k))
        chains.append([arrow[0], *[(arrow, k) for k in between], arrow[1]])
    return rows, chains


class Links:
    """The pieces of all arrows, each from a row to the next one."""

    def __init__(self, rows: Sequence[Sequence[Node]], chains: Sequence[Sequence[Node]]):
        row_of = {node: k for k, row in enumerate(rows) for node in row}
        self.below: list[list[tuple[Node, Node]]] = [[] for _ in rows]  # row -> pieces that begin there
        for chain in chains:
            for a, b in zip(chain, chain[1:], strict=False):
                self.below[row_of[a]].append((a, b))

    def neighbours(self, k: int, node: Node, step: int) -> list[Node]:
        """Nodes of the row above (step 1) or below (step -1) row `k` that are linked with one of its nodes."""
        if step == 1:
            return [a for a, b in self.below[k - 1] if b == node] if k else []
        return [b for a, b in self.below[k] if a == node]

    def crossings(self, rows: Sequence[Sequence[Node]]) -> int:
        """How often two pieces cross."""
        total = 0
        for k, pieces in enumerate(self.below[:-1]):
            ends = [(rows[k].index(a), rows[k + 1].index(b)) for a, b in pieces]
            total += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(ends) for c, d in ends[:i])
        return total


def untangle(rows: list[list[Node]], links: Links) -> list[list[Node]]:
    """The rows in an order with few crossings: in sweeps down and up, each node goes where its neighbours are."""
    rows = [list(row) for row in rows]
    best, fewest = [list(row) for row in rows], links.crossings(rows)
    for sweep in range(60):
        step = 1 if sweep % 2 == 0 else -1
        for k in range(len(rows))[::step]:
            place = {node: i / len(row) for row in rows for i, node in enumerate(row)}
            wish = {}
            for node in rows[k]:
                near = [place[other] for other in links.neighbours(k, node, step)]
                wish[node] = sum(near) / len(near) if near else place[node]
            rows[k].sort(key=wish.__getitem__)
        crossings = links.crossings(rows)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    return best


def spread(rows: Sequence[Sequence[Node]], links: Links, widths: Mapping[Node, float]) -> dict[Node, float]:
    """The middle of each node, near those of its neighbours, without one covering another."""
    middle = {}
    for row in rows:
        free = (WIDTH - LEFT - sum(widths[node] for node in row)) / (len(row) + 1)
        x = LEFT
        for node in row:
            middle[node] = x + free + widths[node] / 2
            x += free + widths[node]
    for sweep in range(30):
        step = 1 if sweep % 2 == 0 else -1
        for k in range(len(rows))[::step]:
            near = [[middle[n] for n in links.neighbours(k, node, step)] for node in rows[k]]
            wishes = [sum(x) / len(x) if x else middle[node] for node, x in zip(rows[k], near, strict=True)]
            middle |= zip(rows[k], _apart(wishes, [widths[node] for node in rows[k]]), strict=True)
    return middle


def _apart(wishes: Sequence[float], widths: Sequence[float]) -> list[float]:
    """The places nearest to the wishes, in squares, that keep the order, the distances and the picture's edges."""
    offsets, total = [], 0.0
    for before, width in zip([0.0, *widths], widths, strict=False):
        total += (before + width) / 2 + (GAP if offsets else 0)
        offsets.append(total)
    blocks: list[list[float]] = []  # [sum of wishes less offsets, how many nodes], which share one shift
    for wish, offset in zip(wishes, offsets, strict=True):
        blocks.append([wish - offset, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [blocks[-1][0] + last[0], blocks[-1][1] + last[1]]
    shifts = [value / n for value, n in blocks for _ in range(int(n))]
    most = WIDTH - GAP - offsets[-1] - widths[-1] / 2
    return [offset + min(max(shift, LEFT), most) for offset, shift in zip(offsets, shifts, strict=True)]


def svg_of(shown: Picture, lines: Mapping[str, int]) -> str:
    """The picture as a file."""
    rows, chains = chains_of(shown)
    links = Links(rows, chains)
    rows = untangle(rows, links)
    widths: dict[Node, float] = {
        node: max(lines[node] * 0.095, 9.2 * len(node) + 14) if isinstance(node, str) else THIN
        for row in rows
        for node in row
    }
    middle, top = spread(rows, links, widths), {node: k * ROW + GAP for k, row in enumerate(rows) for node in row}
    parts = []
    for arrow, chain in zip(sorted(shown.arrows), chains, strict=True):
        parts.append(_arrow(arrow, chain, middle, top, _port(chain, chains, middle, widths)))
    for room, layer in sorted(shown.layers.items()):
        x, y, colour = middle[room] - widths[room] / 2, top[room], COLOURS[min(layer, len(COLOURS) - 1)]
        parts.append(
            f'<g data-room="{escape(room)}" data-layer="{layer}"><rect x="{x:.0f}" y="{y}" width="{widths[room]:.0f}" '
            f'height="{BOX}" rx="5" fill="{colour}" stroke="#8a8a8a"/><text x="{middle[room]:.0f}" y="{y + 22}" '
            f'text-anchor="middle">{escape(room)}</text></g>'
        )
    for layer in sorted(set(shown.layers.values())):
        y = min(top[room] for room in shown.layers if shown.layers[room] == layer)
        parts.append(f'<text class="layer" x="8" y="{y + 22}">layer {layer}</text>')
    height = len(rows) * ROW - ROW + BOX + 2 * GAP
    marker = '<marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"',
            ' role="img">',
            f"<title>Rooms of {PACKAGE} and their imports</title><style>{STYLE}</style>",
            f'<defs>{marker}<path d="M0 0 8 4 0 8z" style="fill:#5d6b7a;stroke:none"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _port(chain: Sequence[Node], chains: Sequence[Sequence[Node]], middle: Mapping[Node, float], widths) -> Arrow:
    """Where an arrow leaves its room and where it meets the other one: ends at one box stand side by side."""
    places = []
    for end, toward in ((0, 1), (-1, -2)):
        same = sorted((c for c in chains if c[end] == chain[end]), key=lambda c, toward=toward: middle[c[toward]])
        share = (same.index(chain) + 1) / (len(same) + 1) - 0.5
        places.append(middle[chain[end]] + share * min(widths[chain[end]], 22 * (len(same) + 1)))
    return tuple(places)


def _arrow(arrow: Arrow, chain: Sequence[Node], middle: Mapping[Node, float], top: Mapping[Node, int], ports) -> str:
    x, y = ports[0], top[chain[0]] + BOX
    path = f"M{x:.0f} {y}"
    for node in chain[1:]:
        last = node is chain[-1]
        to, below = (ports[1] if last else middle[node]), top[node]
        half = (y + below) / 2
        path += f"C{x:.0f} {half:.0f} {to:.0f} {half:.0f} {to:.0f} {below - last}"
        x, y = to, below + BOX
        path += "" if last else f"V{y}"
    return f'<path data-from="{arrow[0]}" data-to="{arrow[1]}" d="{path}" marker-end="url(#end)"/>'


def main() -> None:
    sources = package_sources()
    lines = lines_of(sources)
    FILE.write_text(svg_of(picture(sources), lines))
    for room in sorted(lines, key=lines.get, reverse=True):
        print(f"{lines[room] / sum(lines.values()):6.1%}  {room}")


if __name__ == "__main__":
    main()
