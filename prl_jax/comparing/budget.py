"""The budget that arms of a run have taken: tokens that were sampled and trained on, rows that judges read, seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ml_collections import ConfigDict

from prl_jax.file_names import CONFIG_FILE, METRICS_FILE, PAIRS_FILE, RESULT_FILE
from prl_jax.files import parse_json
from prl_jax.runs.context import StageContext
from prl_jax.runs.workdir import Workdir
from prl_jax.sharding import make_mesh
from prl_jax.stages import KINDS
from prl_jax.stages.kind import Checking
from prl_jax.stages.online_costs import judged_rows
from prl_jax.stages.online_section import judges_of, method_in, steps_of
from prl_jax.stages.pairs_section import judges_in, responses_of

COUNTS = ("sampled", "trained", "judged")
Row = dict[str, Any]


def taken(workdir: Path) -> dict[str, float]:
    """Means over the policies that a run has trained, by the names of `COUNTS` and "seconds"; 0 where it has trained
    none. Stages that arms have in common are not counted."""
    config = ConfigDict(parse_json((workdir / CONFIG_FILE).read_text())["config"])
    arms = [name for name in config.stages if config[name].kind in ("online", "direct")]
    counts, seconds = dict.fromkeys(COUNTS, 0), 0.0
    for name in arms:
        of_stage = taken_by(config, name, workdir) or {}
        counts = {key: counts[key] + of_stage.get(key, 0) for key in COUNTS}
        seconds += parse_json((workdir / name / RESULT_FILE).read_text())["seconds"]
    return {name: value / max(len(arms), 1) for name, value in {**counts, "seconds": seconds}.items()}


def taken_by(config: ConfigDict, name: str, workdir: Path) -> dict[str, int] | None:
    """Counts what a stage of a method has sampled, trained on and judged; None for a stage that methods share. A
    response is as many tokens as it has bytes, and one that ends it; of those that were sampled for pairs the ones that
    were taken stand for all."""
    section, folder = config[name], workdir / name
    if section.kind == "online":
        steps, method = steps_of(section, name, 0), method_in(section)
        rows = steps * section.prompts_per_step * section.group_size
        tokens = rows * fmean(row["response_length"] for row in read_rows(folder / METRICS_FILE, "response_length"))
        judged = steps * len(judges_of(section)) * judged_rows(config, section, method)
        return {"sampled": round(tokens), "trained": round(tokens * section.epochs), "judged": judged}
    if section.kind == "pairs":
        prompts = int(json.loads((folder / "result.json").read_text())["metrics"]["prompts"])
        number, scores = responses_of(section), Checking(config, KINDS).scores
        each = sum(number if scores(judge) else number * (number - 1) for judge in judges_in(section))
        tokens = mean_tokens(read_rows(folder / PAIRS_FILE))
        return {"sampled": round(prompts * (number - section.include_reference) * tokens), "judged": prompts * each}
    if section.kind == "direct" or (section.kind == "sft" and name.startswith("direct_")):
        context = StageContext(name, config, Workdir(workdir, config), make_mesh())
        rows = [vars(one) for one in context.records(section.data, KINDS[section.kind].rules.sources["data"])]
        responses = int(section.duration.split()[0]) * section.batch_size * (2 if section.kind == "direct" else 1)
        return {"trained": round(responses * mean_tokens(rows))}
    return None


def read_rows(path: Path, key: str = "") -> list[Row]:
    """The rows of a JSONL file; with a key, those that have it."""
    return [row for row in map(json.loads, path.read_text().splitlines()) if key in row or not key]


def mean_tokens(rows: Sequence[Row]) -> float:
    """The mean number of tokens of the responses in rows of preferences or demonstrations."""
    texts = [row[key] for row in rows for key in ("chosen", "rejected", "response") if key in row]
    return fmean(len(text.encode()) + 1 for text in texts)
