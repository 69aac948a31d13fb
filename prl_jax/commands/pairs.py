"""`prl pairs export` and `prl pairs import`: comparisons for a person to decide, and the decisions as preference pairs.

The person sees prompt and two responses, and nothing of what the pairs say so far: the order of the responses tells
nothing either (`labels.presented`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prl_jax.commands.outputs import check_file
from prl_jax.data.fields import read_text
from prl_jax.data.jsonl import write_jsonl
from prl_jax.data.labels import (
    DEFAULT_LIMITS,
    Comparison,
    Labels,
    is_csv,
    presented,
    read_labels,
    slot_of_chosen,
    write_labels,
)
from prl_jax.data.lines import Limits
from prl_jax.data.records import PreferenceRecord
from prl_jax.data.sources import SourceSpec, load_records
from prl_jax.errors import UserError, naming, quoted

# Keys of `meta` that say who is better: of a row with another label they would be read as if they were about that.
_OLD_LABEL = ("p_chosen", "votes", "pos", "comment", "before", "certainty", "policies", "z_12", "z_21")
_STAYS = "--out is there already and stays as it is (mend it, move it, or name another one)"


def export_pairs(
    pairs: Path, out: Path, *, seed: int = 0, limit: int = 0, limits: Limits = DEFAULT_LIMITS
) -> dict[str, int]:
    """Writes the pairs of a file as comparisons to be filled in.

    Where `out` is there already, the lines that somebody has filled in stay as they are; all other lines are made anew.

    Args:
      pairs: preference pairs.
      out: the file of labels, `.csv` or `.jsonl`.
      seed: draws which response stands first.
      limit: only that many pairs, the first ones; 0 means all.
      limits: bounds on the files.

    Returns:
      `lines` in the file, and how many of them were `kept`.

    Raises:
      UserError: a pair cannot be read; `out` cannot be written, or has lines that are wrong or about other pairs.
    """
    is_csv(out)
    check_file(out, inputs=[pairs], models=[], overwrite=True)
    with naming(_STAYS):
        labels = read_labels(out, limits) if out.exists() and out.stat().st_size else Labels(out)
    filled = {one.id: (number, one) for number, one in labels.lines.items() if one.filled}
    lines, kept = [], 0
    for n, record in enumerate(_records(pairs, limits)):
        number, one = filled.pop(record.id, (0, None))
        if one is not None:
            if slot_of_chosen(one, record) is None:
                labels.problems[number] = _other_texts(labels, number, one, pairs)
            lines.append(one)
            kept += 1
        elif not limit or n < limit:
            lines.append(presented(record, seed))
    for number, one in filled.values():
        labels.problems[number] = _unknown(labels, number, one, pairs)
    with naming(_STAYS):
        labels.refuse_problems()
    write_labels(out, lines)
    return {"lines": len(lines), "kept": kept}


def import_labels(
    pairs: Path, labels: Path, out: Path, *, overwrite: bool = False, limits: Limits = DEFAULT_LIMITS
) -> dict[str, int]:
    """Writes the pairs that a person has decided as preference rows, in the order of `pairs`.

    A row has `prompt`, `chosen`, `rejected`, `tie`, `slot` (where the person saw `chosen`), `id`, `source` and `meta`:
    that of the pair, the person's `comment`, and under `before` what the pair said of itself: `tie`, `p_chosen` and the
    like, and `exchanged`, whether its `chosen` is the row's `rejected`.

    Args:
      pairs: the pairs that were exported.
      labels: the file that was filled in.
      out: where the rows go.
      overwrite: whether an output that is there is replaced.
      limits: bounds on the files.

    Returns:
      How many lines prefer "1", "2" and "tie", and how many are "unlabelled"; for how many both they and the pair have
      a better response ("comparable"), and for how many it is the same one ("same").

    Raises:
      UserError: a pair or a line cannot be read, a line is about other pairs or texts, no line has a label; `out`
        cannot be written.
    """
    check_file(out, inputs=[pairs, labels], models=[], overwrite=overwrite)
    found = read_labels(labels, limits)
    open_lines = {one.id: number for number, one in found.lines.items()}
    rows, counts = [], Counter()
    for record in _records(pairs, limits):
        number = open_lines.pop(record.id, None)
        if number is None:
            continue
        one = found.lines[number]
        slot = slot_of_chosen(one, record)
        if slot is None:
            found.problems[number] = _other_texts(found, number, one, pairs)
            continue
        counts[one.preferred or "unlabelled"] += 1
        if one.preferred:
            rows.append(_row(one, record, slot))
            both = not (record.tie or rows[-1]["tie"])
            counts["comparable"] += both
            counts["same"] += both and one.preferred == str(slot)
    for number in open_lines.values():
        found.problems[number] = _unknown(found, number, found.lines[number], pairs)
    found.refuse_problems()
    if not rows:
        raise UserError(f'{labels}: nobody has decided yet (expected 1, 2 or tie in the column "preferred" of a line)')
    write_jsonl(out, rows)
    return {name: counts[name] for name in ("1", "2", "tie", "unlabelled", "comparable", "same")}


def _records(path: Path, limits: Limits) -> Iterator[PreferenceRecord]:
    """The pairs of a file by ids that tell them apart, and stay when the file is moved to another folder."""
    spec = SourceSpec("jsonl", path=str(path), limits=limits)
    records = load_records(spec, "preference", data_dir=path.parent).with_unique_ids()
    taken: set[str] = set()
    for i in range(len(records)):
        record, place = records[i], records.place(i)
        name = read_text(Path(place).name if record.id == place else record.id, "id", place)
        if name in taken:
            raise UserError(f"{place}: id {quoted(name)} is that of another pair too (expected another one)")
        taken.add(name)
        yield dataclasses.replace(record, id=name)


def _row(one: Comparison, record: PreferenceRecord, slot: int) -> dict[str, Any]:
    """The preference row of a decision; `slot` is where the person saw the pair's `chosen`. Texts are the pair's."""
    better = int(one.preferred) if one.preferred != "tie" else 1  # a tie's `chosen` is the response presented first
    identical = record.chosen == record.rejected
    chosen, rejected = (record.chosen, record.rejected) if better == slot else (record.rejected, record.chosen)
    meta = {key: value for key, value in record.meta.items() if key not in _OLD_LABEL}
    before = {key: record.meta[key] for key in _OLD_LABEL if key in record.meta}
    before |= {"tie": record.tie, "exchanged": better != slot and not identical}
    before |= {} if record.p_chosen is None else {"p_chosen": record.p_chosen}
    comment = one.comment.strip()
    return {
        "prompt": [turn._asdict() for turn in record.prompt],
        "chosen": chosen,
        "rejected": rejected,
        "tie": one.preferred == "tie" or identical,
        "slot": better,
        "id": record.id,
        "source": record.source,
        "meta": {**meta, "before": before, **({"comment": comment} if comment else {})},
    }


def _other_texts(labels: Labels, number: int, one: Comparison, pairs: Path) -> str:
    return (
        f"{labels.place(number)}: id {quoted(one.id)} is about other texts than in {pairs} (expected the prompt and "
        "responses of that pair: a spreadsheet may have changed or cut them)"
    )


def _unknown(labels: Labels, number: int, one: Comparison, pairs: Path) -> str:
    return f"{labels.place(number)}: id {quoted(one.id)} is unknown (expected the id of a pair in {pairs})"
