"""Writes `docs/pairs.md`: learning from pairs, the tables of direct losses and of rounds, and the ways to select pairs.

python docs/pairs.py
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from prl_jax.methods.direct import DIRECT_LOSSES, DirectLoss, Sigmoid  # noqa: E402
from prl_jax.methods.direct_table import DIRECT, DirectPreset  # noqa: E402
from prl_jax.methods.selection import SELECTIONS  # noqa: E402
from prl_jax.recipes.rounds import ITERATIVE  # noqa: E402

FILE = ROOT / "docs" / "pairs.md"
_SPEC = importlib.util.spec_from_file_location("methods_page", ROOT / "docs" / "methods.py")
assert _SPEC is not None and _SPEC.loader is not None
_METHODS = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_METHODS)
parse, table_of = _METHODS.parse, _METHODS.table_of

HEAD = """# Learning from pairs

<!-- Written by docs/pairs.py from the tables of methods and the docstrings of their pieces; don't edit it. -->

A policy can learn from pairs of responses directly, without a reward model and without sampling: DPO, and the losses
of its family. The stage `direct` has them all. The stage `pairs` makes pairs out of a policy's own samples, which any
judge ranks, and both together make the methods that work in rounds. [methods.md](methods.md) has the methods that
learn from each sample at once.

## A direct loss

A stage names a row of `prl_jax.methods.DIRECT`; its loss, and the keys that belong to it, become the defaults:

```python
from prl_jax.stages import config as c

dpo = c.direct("dpo", init_from="sft", data=c.source())
assert dpo["loss"] == {"kind": "sigmoid", "beta": 0.1, "margin": 0.0, "label_smoothing": 0.0}
assert dpo["references"] == ("sft",)
```

A `loss` that is given without a `kind` changes the fields that it names; with another `kind` it takes the place of the
method's loss. A flag changes a field, `--config.dpo.loss.beta=0.3`; another kind needs a config file.

```python
steep = c.direct("dpo", loss=dict(beta=0.5))
fitted = c.direct("dpo", loss=dict(kind="squared"), label="soft")
assert steep["loss"]["beta"] == 0.5 and fitted["loss"]["kind"] == "squared"
```

**References** are policies whose log-probabilities the policy's are compared with: by default the one that it starts
from, `()` for none, or several with weights (`references=("sft", "direct_1")`, `reference_weights=(0.3, 0.7)`). They
are asked once, before the first step, one after the other; their numbers are kept in `references.npz` of the stage,
with a checksum, and a stage that is stopped goes on behind the last batch. While the policy trains it is alone in
memory, whatever the number of references. `precomputed=DIR` takes the file of another run on the same rows.

**Labels** say what a loss sees of a record: `"hard"`, that `chosen` is better; `"soft"`, `p_chosen`; `"win_rate"` and
`"win_gap"`, the keys `win_chosen` and `win_rejected` of the record, win rates in [0, 1]; `"score"`, its keys
`score_chosen` and `score_rejected`. A loss that needs what a record lacks is refused with file and line. `certainty`
names a key of `meta` with the probability that the label is right.

**Terms** are added with `sft_weight` (the negative log-likelihood of the better response: RPO, CPO, ORPO) and
`value_weight` (the mean implicit reward of the better response: VPO). `length="mean"` takes means over tokens where
`"sum"` takes sums; `beta_scale` lets beta grow with the gap of scores.

## Pairs of a policy's own samples

```python
pairs = c.pairs(policy="sft", judge="bt", samples=4, select=dict(kind="best_worst", min_gap=0.1))
dpo = c.direct("dpo", data=c.source(kind="stage", path="pairs"))
assert pairs["select"]["kind"] == "best_worst" and dpo["data"]["path"] == "pairs"
```

The stage samples `samples` responses of `policy` (and of `others`, and takes the prompt's reference answer with
`include_reference`), asks the judge about every two of them in both orders, or about each where it scores, and writes
`pairs.jsonl`: preference records with the probability that the chosen response beats the other (`p_chosen`), the win
rates of both in their group, their scores where there are scores, and in `meta` the logits of both orders. Empty,
truncated and repeated responses are passed over, and identical ones never make a pair. A source of kind `stage` reads
the file: a policy learns from it, and so does a judge, on pairs of the policy's own samples that another judge, the
noisy annotator of the built-in tasks (`annotator`) or people ([README](../README.md)) have labelled. `replay` writes a
share of earlier stages' pairs again; `agrees_with` has a second judge rank the same samples and writes how far both
agree as `meta.certainty`.

Several sources are **mixed** with weights, here a quarter of the records from the user's file. An epoch has every
record at least once; those of the source that is scarcest for its weight come more often.

```python
parts = dict(made=c.part(3.0, kind="stage", path="pairs"), own=c.part(1.0, kind="jsonl", path="pairs.jsonl"))
dpo = c.direct("dpo", data=c.source(kind="mix", mix=parts))
assert dpo["data"]["mix"]["own"]["weight"] == 1.0
```

## Rounds

```python
from prl_jax.recipes.rounds import rounds

stages = dict(sft=c.sft(), genrm=c.generative(init_from="sft")) | rounds(
    2,
    lambda here: c.pairs(policy=here.policy, judge="genrm"),
    lambda here: c.direct("dpo", init_from=here.policy, data=here.made),
)
assert list(stages)[2:] == ["pairs_1", "direct_1", "pairs_2", "direct_2"]
assert stages["pairs_2"]["policy"] == "direct_1"
```

Rounds are stages that repeat, so that a run of them is stopped and continued like any other. The table below is what
`experiments/iterative.py:NAME[,JUDGE]` runs, and `experiments/direct.py:NAME[,JUDGE]` runs a direct loss.

"""


def page() -> str:
    """The whole page."""
    parts = [HEAD + "## The direct methods\n"]
    rows = [[f"`{name}`", *_direct(preset)] for name, preset in DIRECT.items()]
    parts.append(table_of(["method", "title", "source", "loss", "keys of the stage", "evidence", "remark"], rows))
    parts.append("## The methods that work in rounds\n")
    rows = []
    for name, one in ITERATIVE.items():
        runs = f"needs {one.misses}" if one.misses else str(one.rounds)
        rows.append([f"`{name}`", one.title, _link(one.source), f"`{one.judge}`", runs, one.evidence, one.remark])
    parts.append(table_of(["method", "title", "source", "judge", "rounds", "evidence", "remark"], rows))
    parts.append(
        "A judge `own` is the log-ratio of the method's own policy to SFT (`density_ratio`); other methods may be "
        "given another judge.\n"
    )
    parts.append("## The losses\n\nEach is the section `loss` of a stage, with its `kind` and the keys below.\n")
    parts += [_kind(cls, parse(Sigmoid)[1] | parse(DirectLoss)[1]) for cls in DIRECT_LOSSES.values()]
    parts.append("## The selections\n\nEach is the section `select` of a stage of pairs.\n")
    parts += [_kind(cls, {}) for cls in SELECTIONS.values()]
    return "\n".join(parts)


def _direct(preset: DirectPreset) -> list[str]:
    values = ", ".join(f"`{key}={v!r}`" for key, v in preset.values.items())
    fields = [(f, getattr(preset.loss, f.name)) for f in dataclasses.fields(preset.loss)]  # type: ignore[arg-type]
    changed = ", ".join(f"`{field.name}={value!r}`" for field, value in fields if value != field.default)
    loss = f"`{preset.loss.kind}`" + (f" ({changed})" if changed else "")
    return [preset.title, _link(preset.source), loss, values, preset.evidence, preset.remark]


def _link(source: str) -> str:
    number = source.removeprefix("arXiv ")
    return source if number == source else f"[{source}](https://arxiv.org/abs/{number})"


def _kind(cls: Any, shared: dict[str, str]) -> str:
    """Returns the paragraph of a loss or a selection, with its keys."""
    text, sentences = parse(cls)
    rows = []
    for field in dataclasses.fields(cls):
        meaning = sentences.get(field.name) or next(
            (value for names, value in sentences.items() if field.name in names.split(", ")), shared.get(field.name, "")
        )
        rows.append([f"`{field.name}`", f"`{field.default!r}`", meaning[:1].upper() + meaning[1:]])
    return f"### `{cls.kind}`\n\n{text}\n" + ("\n" + table_of(["key", "default", "meaning"], rows) if rows else "")


if __name__ == "__main__":
    FILE.write_text(page())
