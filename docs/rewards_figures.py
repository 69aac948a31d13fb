"""Draws the figures of `docs/rewards.md` with the pieces themselves.

    python docs/rewards_figures.py

Every number in a figure is what a piece returns. Coordinates have one decimal, so that the files are the same wherever
they are drawn, but for a last digit.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from prl_jax.losses.pairwise_ppo import REWARD_MAPS  # noqa: E402
from prl_jax.methods import PIECES, Judgements, WinProbability, baselines, opponents, scores, surrogates  # noqa: E402
from prl_jax.methods.surrogates import Frozen  # noqa: E402

FOLDER = ROOT / "docs" / "rewards"
COLOURS = ("#1f5fa8", "#c2471d", "#2d8a57", "#8a4fa3", "#a77b00", "#3c8f96", "#777777", "#b0315f")
STYLE = "text{font:12px sans-serif;fill:#222}.title{font-size:13px;font-weight:bold}.small{font-size:10px;fill:#666}"
# In pixels: a panel of curves and its margins, and a cell of a table of opponents.
WIDTH, HEIGHT, LEFT, TOP, CELL = 300, 200, 44, 46, 30

GROUP = (0.9, 0.7, 0.4, 0.0)  # rewards of four responses to a prompt, as in the figure of the baselines
Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]


class Panel(NamedTuple):
    """A title, elements with their origin at 0, and their size in pixels."""

    title: str
    elements: str
    width: int
    height: int


def svg_of(name: str, panels: Sequence[Panel], columns: int) -> str:
    """The panels as one picture, so many side by side."""
    width = max(max(p.width, LEFT + 9 * len(p.title)) for p in panels)  # a letter of a title has 9 pixels, about
    height = max(p.height for p in panels)
    rows = -(-len(panels) // columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width * columns} {height * rows}" '
        f'width="{width * columns}" height="{height * rows}" role="img">',
        f"<title>{escape(name)}</title><style>{STYLE}</style>",
        f'<rect width="{width * columns}" height="{height * rows}" fill="#fff"/>',
    ]
    for i, panel in enumerate(panels):
        x, y = i % columns * width, i // columns * height
        parts.append(f'<g transform="translate({x} {y})"><text class="title" x="{LEFT}" y="16">{escape(panel.title)}')
        parts.append(f"</text>{panel.elements}</g>")
    return "\n".join([*parts, "</svg>\n"])


def chart(title: str, axes: tuple[str, str], curves: Curves, x: tuple[float, float], y: tuple[float, float]) -> Panel:
    """Curves over a frame; what leaves the frame is cut. The names stand on the right, in the order of the curves."""
    place = lambda a, ends, size: (a - ends[0]) / (ends[1] - ends[0]) * size  # noqa: E731
    at_x = lambda a: LEFT + place(a, x, WIDTH - LEFT - 10)  # noqa: E731
    at_y = lambda b: TOP + HEIGHT - place(b, y, HEIGHT)  # noqa: E731
    parts = [f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - 10}" height="{HEIGHT}" fill="none" stroke="#999"/>']
    for value, anchor in ((x[0], "start"), (x[1], "end")):
        parts.append(_text(at_x(value), TOP + HEIGHT + 14, f"{value:g}", anchor))
    for value in y:
        parts.append(_text(LEFT - 4, at_y(value) + 4, f"{value:g}", "end"))
    if y[0] < 0 < y[1]:
        parts.append(f'<path d="M{LEFT} {at_y(0):.0f}H{WIDTH - 10}" stroke="#ddd"/>')
    parts.append(_text(LEFT + (WIDTH - LEFT - 10) / 2, TOP + HEIGHT + 14, axes[0], "middle"))
    parts.append(_text(LEFT, TOP - 4, axes[1], "start"))
    for i, (name, (xs, ys)) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        inside = [(a, b) for a, b in zip(xs, ys, strict=True) if y[0] <= b <= y[1]]
        points = " ".join(f"{at_x(a):.1f},{at_y(b):.1f}" for a, b in inside)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{WIDTH}" y="{TOP + 12 + 16 * i}" style="fill:{colour}">{escape(name)}</text>')
    return Panel(title, "".join(parts), WIDTH + 160, TOP + HEIGHT + 26)


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text class="small" x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(words)}</text>'


def meetings(piece: opponents.Opponents, size: int = 4) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns the names of whom `size` responses may meet, and where a response stands in slot 1 and in slot 2."""
    names = [f"y{j + 1}" for j in range(size)]
    if piece.candidates == "none":
        names = []
    elif piece.candidates == "anchors":
        names = ["a1", "a2", "a3"]
    elif piece.candidates == "sampled":
        names = [piece.sampler]
    keys = jax.random.split(jax.random.key(1), 1)
    mask = piece.mask(jnp.ones((1, size, len(names)), bool), keys)
    slots = piece.slots(mask, keys)
    return names, np.asarray(slots.first[0]), np.asarray(slots.second[0])


def _table(title: str, piece: opponents.Opponents) -> Panel:
    """Rows are responses, columns whom they may meet; a cell has the slots in which the response stands."""
    names, first, second = meetings(piece)
    parts = []
    for j, name in enumerate(names):
        parts.append(_text(LEFT + CELL * j + CELL / 2, TOP + 8, name, "middle"))
    for i in range(4):
        y = TOP + 14 + CELL * i
        parts.append(_text(LEFT - 6, y + 19, f"y{i + 1}", "end"))
        for j in range(len(names)):
            words = " ".join(word for word, there in (("1", first[i, j]), ("2", second[i, j])) if there)
            fill = {"": "#f4f4f4", "1": "#cfe0f3", "2": "#fdeec4", "1 2": "#cdebe4"}[words]
            x = LEFT + CELL * j
            parts.append(f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="{fill}" stroke="#fff"/>')
            parts.append(f'<text x="{x + CELL // 2}" y="{y + 19}" text-anchor="middle">{words}</text>')
    return Panel(title, "".join(parts), LEFT + 4 * CELL + 40, TOP + 4 * CELL + 30)


def draw_opponents() -> str:
    """Who meets whom in a group of four."""
    pieces = {kind: cls() for kind, cls in PIECES["opponents"].items()}
    panels = [_table(kind, piece) for kind, piece in pieces.items()]
    for word in ("one", "random"):
        panels.append(_table(f"group, orders={word}", opponents.Group(orders=word)))
    return svg_of("Whom each of four responses meets", panels, 4)


def draw_maps() -> str:
    """The reward against the probability of a win, with one opponent and a judge without a preference for a slot."""
    xs = np.linspace(0.005, 0.995, 100)
    z = jnp.asarray(np.log(xs / (1 - xs)), jnp.float32)[:, None]
    judged = Judgements(jnp.ones(z.shape, bool), z, -z)
    curves = {word: (xs, np.asarray(WinProbability(map=word)(judged))) for word in REWARD_MAPS}
    panels = []
    for words in (REWARD_MAPS[:4], REWARD_MAPS[4:]):
        chosen = {word: curves[word] for word in words}
        panels.append(chart("map", ("probability of a win", "reward"), chosen, (0, 1), (-3, 3)))
    return svg_of("Reward against the probability of a win", panels, 2)


def draw_shapes() -> str:
    """The reward against the score, with one opponent of score 0."""
    xs = np.linspace(-4, 4, 81)
    gap = jnp.asarray(xs, jnp.float32)
    judged = Judgements(jnp.ones((len(xs), 1), bool), scores=gap, opponent_scores=jnp.zeros((len(xs), 1)))
    kinds = {kind: cls for kind, cls in PIECES["reward"].items() if cls.asks == "scores" and cls != scores.Several}
    pieces = {kind: cls() for kind, cls in kinds.items()} | {"clip": scores.Clip(limit=2.0)}
    names = {kind: f"{kind}, limit=2" if kind == "clip" else kind for kind in pieces}
    curves = {names[kind]: (xs, np.asarray(piece(judged))) for kind, piece in pieces.items()}
    return svg_of(
        "Reward against the score",
        [chart("kind of reward", ("score less that of the opponent", "reward"), curves, (-4, 4), (-4, 4))],
        1,
    )


def advantages() -> dict[str, list[float]]:
    """The advantages of the responses of `GROUP` by each baseline, which sees one token of each; the critic says 0.5,
    the greedy response earns 0.5, and each response is better than another by the difference of their rewards."""
    rewards = jnp.asarray(GROUP, jnp.float32)
    mask, met = jnp.ones((4, 1), bool), ~jnp.eye(4, dtype=bool)
    given = baselines.Rewards(
        rewards[:, None],
        mask,
        mask,
        jnp.zeros(4, bool),
        4,
        differences=(jnp.where(met, rewards[:, None] - rewards[None], 0.0), met),
        greedy=jnp.full(4, 0.5),
    )
    values = baselines.Values(jnp.full((4, 1), 0.5), jnp.zeros(4))
    made = {kind: cls() for kind, cls in PIECES["baseline"].items()}
    made |= {"critic, whiten=False": baselines.Critic(whiten=False), "constant, value=0.5": baselines.Constant(0.5)}
    made |= {"standardised, scale=batch": baselines.Standardised(scale="batch")}
    return {name: np.asarray(piece(given, values)[0][:, 0]).tolist() for name, piece in made.items()}


def draw_baselines() -> str:
    """The advantages of one group as bars."""
    panels = []
    for name, values in {"reward": list(GROUP), **advantages()}.items():
        parts = [f'<path d="M{LEFT} {TOP + 60}H{LEFT + 4 * CELL}" stroke="#999"/>']
        for i, value in enumerate(values):
            size, x = round(abs(value) * 34), LEFT + CELL * i + 5
            y = TOP + 60 - size * (value > 0)
            parts.append(f'<rect x="{x}" y="{y}" width="{CELL - 10}" height="{size}" fill="{COLOURS[i]}"/>')
            parts.append(_text(x + 10, y - 3 if value > 0 else y + size + 11, f"{value + 0.0:.2f}", "middle"))
        panels.append(Panel(name, "".join(parts), LEFT + 4 * CELL + 60, TOP + 126))
    return svg_of("Advantages of a group of four", panels, 4)


def pulls(piece: surrogates.Surrogate, ratios: np.ndarray, advantage: float) -> np.ndarray:
    """How hard a token is pulled up at each ratio: minus the derivative of the loss by its log-probability.

    For losses of pairs it is the first response of two, whose second one has the opposite advantage and moves the other
    way; the loss holds a divergence of coefficient 1, and the reference is the policy that sampled.
    """
    signs = jnp.asarray([[1.0], [-1.0]])[: piece.unit]
    old = jnp.full(signs.shape, -1.0)
    frozen = Frozen(old, old, advantage * signs, jnp.ones(signs.shape, bool))
    loss = lambda moved: piece(old + moved * signs, frozen, jnp.float32(1.0)).value / piece.unit  # noqa: E731
    return -np.asarray(jax.jit(jax.vmap(jax.grad(loss)))(jnp.log(jnp.asarray(ratios, jnp.float32))))


def draw_surrogates() -> str:
    """The pull on a token against its ratio to the policy that sampled, for either sign of the advantage."""
    xs = np.linspace(0.4, 2.0, 64)  # meets no bound of a clip exactly, where a derivative has two sides
    kinds = PIECES["surrogate"]
    tokens = {kind: cls() for kind, cls in kinds.items() if not cls.inside}
    tokens |= {"token_clip, dual=1.5": dataclasses.replace(tokens["token_clip"], dual=1.5)}
    whole = {kind: cls() for kind, cls in kinds.items() if cls.inside}
    whole |= {"pair_regression, squared": surrogates.PairRegression(link="squared")}
    panels = []
    for title, pieces, advantage in (
        ("tokens, advantage 1", tokens, 1.0),
        ("tokens, advantage -1", tokens, -1.0),
        ("whole responses, advantage 0.4", whole, 0.4),
        ("whole responses, advantage -0.4", whole, -0.4),
    ):
        curves = {name: (xs, pulls(piece, xs, advantage)) for name, piece in pieces.items()}
        ends = (-2.1, 2.1) if pieces is tokens else (-1.0, 1.0)
        panels.append(chart(title, ("ratio of probabilities", "pull"), curves, (0.4, 2.0), ends))
    return svg_of("How a surrogate pulls a response", panels, 2)


FIGURES: Mapping[str, Callable[[], str]] = {
    "opponents": draw_opponents,
    "maps": draw_maps,
    "shapes": draw_shapes,
    "baselines": draw_baselines,
    "surrogates": draw_surrogates,
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for figure, draw in FIGURES.items():
        (FOLDER / f"{figure}.svg").write_text(draw())
