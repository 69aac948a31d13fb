"""Writes `docs/methods.md`: the methods of `prl_jax.methods.METHODS`, and every piece with its fields.

python docs/methods.py
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from prl_jax.methods import METHODS, PIECES, SLOTS, Preset, baselines, opponents, regularisers, rewards, surrogates  # noqa: E402, I001
from prl_jax.methods.direct_table import DIRECT  # noqa: E402
from prl_jax.recipes.rounds import ITERATIVE  # noqa: E402

FILE = ROOT / "docs" / "methods.md"
RESULTS = ROOT / "benchmarks" / "results"
MODULES = dict(zip(SLOTS, (opponents, rewards, baselines, surrogates, regularisers), strict=True))
PROTOCOLS = dict(
    zip(
        SLOTS,
        (opponents.Opponents, rewards.Reward, baselines.Baseline, surrogates.Surrogate, regularisers.Regulariser),
        strict=True,
    )
)

HEAD = """# Methods

<!-- Written by docs/methods.py from the table of methods and the docstrings of the pieces; don't edit it. -->

A method is six pieces: a preference model, which is any judge of the run, and the five below. `METHODS` in
`prl_jax/methods/table.py` has one row for each published method. "Confirmed" says that the paper or its code was read;
"reconstructed", that a piece had to be inferred. [rewards.md](rewards.md) shows what the pieces do, in figures, and
what each method costs.

## Choosing a method

A stage that trains a policy names a row; its pieces and its number of responses to a prompt become the defaults of the
section:

```python
from prl_jax.stages import config as c

grpo = c.online("grpo", judge="bt", prompts_per_step=64)
assert grpo["baseline"]["kind"] == "standardised" and grpo["group_size"] == 4
```

A piece that is given without a `kind` changes the fields that it names; with another `kind` it takes the place of the
method's piece, and what it leaves out has its default:

```python
wider = c.online("grpo", judge="bt", surrogate=dict(high=0.28), regulariser=dict(coefficient=0.0))
mixed = c.online("grpo", judge="bt", baseline=dict(kind="leave_one_out"), group_size=8)
assert wider["surrogate"]["reduce"] == "seq_mean_token_mean" and mixed["baseline"] == {"kind": "leave_one_out"}
```

The quickstart runs each of them by name beside PPO; `experiments/online.py:NAME[,JUDGE]` runs it alone, with the judges
that it needs or another one; `experiments/own_model.py:MODEL,PAIRS,NAME` runs it on your own model and pairs. A flag
changes a field:

```sh
prl run --config experiments/quickstart.py:grpo --workdir runs/grpo
prl run --config experiments/quickstart.py:grpo --workdir runs/grpo-high --config.grpo.surrogate.high=0.28
```

Pieces that cannot work together are refused before the first stage, with the key and the reason: a reward that compares
without opponents, a surrogate of pairs with a critic, an odd number of responses where they meet in pairs, a divergence
inside a surrogate that has none. A key that the chosen pieces do not have does not exist: without a critic there is no
`critic` section, and with one it has `optimizer` and `warmup`.

## The methods
"""
GALLERY = """## What each wins on the built-in tasks

Every method of this page and of [pairs.md](pairs.md) at one budget: 40 steps of 256 responses with the passes that the
method takes over them, 300 batches of 64 built-in pairs, or rounds of 60 such batches of pairs of its own samples.
Judges are trained on the built-in pairs; the final win rate, utility and correctness are exact. Tokens are those of
responses: `sampled`, and `trained` on with all passes; `judged` are rows that judges read. Intervals are Student's over
seeds, so that a single one has none, and neighbours in the table are seldom told apart. The seconds of a method leave
out SFT and judges, which all share.

{below}

Where little holds a policy back, forty steps are enough to overoptimise a judge of this size: every method that went
about three nats or further from SFT lost to it. A stage with `result="best"` would keep the best evaluation; the
table has the last step of all.

{table}
![Win rate, correctness, divergence, tokens and seconds of every method](../benchmarks/results/gallery.svg)

`python benchmarks/gallery.py --workdir runs/gallery --out benchmarks/results` goes on with what is missing.
"""
QUESTIONS = dict(
    opponents="Whom each response is compared with.",
    reward="What judgements earn.",
    baseline="What is subtracted from the reward before it moves the policy.",
    surrogate="The loss that moves the policy.",
    regulariser="What holds the policy near its reference, and its entropy up.",
)


def page() -> str:
    """The whole page."""
    parts = [HEAD, table_of(_METHOD_HEAD, [_method(name, preset) for name, preset in METHODS.items()])]
    parts.append("Their pieces, with the fields that differ from the defaults:\n")
    rows = [[f"`{name}`", *(_piece(getattr(p.method, slot)) for slot in SLOTS)] for name, p in METHODS.items()]
    parts.append(table_of(["method", *SLOTS], rows))
    parts.append(measured())
    parts.append("## The pieces\n\nEach is a section of the stage, with its `kind` and the keys below.\n")
    for slot in SLOTS:
        parts.append(
            f"### `{slot}`\n\n{QUESTIONS[slot]} (`prl_jax/methods/{MODULES[slot].__name__.split('.')[-1]}.py`)\n"
        )
        parts += [_kind(slot, cls) for cls in PIECES[slot].values()]
    return "\n".join(parts)


def measured() -> str:
    """The section about what each method wins, made of the result of `benchmarks/gallery.py`."""
    rows = json.loads((RESULTS / "gallery.json").read_text())["rows"]
    seeds = Counter((row["family"], row["method"]) for row in rows)
    dates, counts = sorted({row["date"] for row in rows}), sorted(set(seeds.values()))
    number = " or ".join(map(str, counts)) + (" seed" if counts == [1] else " seeds")
    made = f"made on {dates[0]}" if len(dates) == 1 else f"made from {dates[0]} to {dates[-1]}"
    runs = sum(not getattr(one, "misses", "") for table in (METHODS, DIRECT, ITERATIVE) for one in table.values())
    methods = f"all {runs} methods" if len(seeds) == runs else f"{len(seeds)} of {runs} methods so far"
    below = f"{len(rows)} runs of {methods}, {number} each, {made} on two CPU "
    below += "cores that had other work too, which came first for some hours: seconds are good for orders of magnitude "
    below += "at best, and less where a method has ten times as many as its neighbours."
    return GALLERY.format(below="\n".join(textwrap.wrap(below, 120)), table=(RESULTS / "gallery.md").read_text())


_METHOD_HEAD = ["method", "title", "source", "responses to a prompt", "evidence", "remark"]


def _method(name: str, preset: Preset) -> list[str]:
    number = preset.source.removeprefix("arXiv ")
    source = preset.source if number == preset.source else f"[{preset.source}](https://arxiv.org/abs/{number})"
    return [f"`{name}`", preset.title, source, str(preset.group_size), preset.evidence, preset.remark]


def _piece(piece: Any) -> str:
    """`Critic(whiten=False) -> "`critic` (`whiten=False`)"`."""
    values = [(field, getattr(piece, field.name)) for field in dataclasses.fields(piece)]
    changed = ", ".join(f"`{field.name}={value!r}`" for field, value in values if value != field.default)
    return f"`{piece.kind}`" + (f" ({changed})" if changed else "")


def _kind(slot: str, cls: type) -> str:
    """Returns the paragraph of a kind of piece, with its keys."""
    text, sentences = parse(cls)
    shared = parse(PROTOCOLS[slot])[1]
    keys: dict[str, list[dataclasses.Field[Any]]] = {}  # those that one sentence is about
    for field in dataclasses.fields(cls):
        keys.setdefault(sentences.get(field.name) or shared[field.name], []).append(field)
    rows = []
    for meaning, fields in keys.items():
        names, defaults = [f.name for f in fields], [repr(f.default) for f in fields]
        rows.append([_coded(names), _coded(defaults), meaning[0].upper() + meaning[1:]])
    return f"#### `{cls.kind}`\n\n{text}\n" + ("\n" + table_of(["key", "default", "meaning"], rows) if rows else "")


def parse(cls: type) -> tuple[str, dict[str, str]]:
    """The text of a docstring without its attributes, and the sentence of each attribute, by its name."""
    paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    text = [" ".join(p.split()) for p in paragraphs if not p.startswith("Attributes:")]
    sentences = {}
    for paragraph in paragraphs:
        if not paragraph.startswith("Attributes:"):
            continue
        lines = paragraph.removeprefix("Attributes:").strip("\n")
        for names, sentence in re.findall(r"^  (\w[\w, ]*): (.*(?:\n    .*)*)", lines, re.MULTILINE):
            sentences |= dict.fromkeys(names.split(", "), " ".join(sentence.split()))
    return "\n\n".join(text), sentences


def _coded(words: list[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def table_of(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    FILE.write_text(page())
