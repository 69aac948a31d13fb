"""Evaluation: judges on labelled pairs, policies against a baseline and against anchors, and the final table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prl_jax.artifacts.models import SAMPLES_FILE
from prl_jax.data.gold import bayes_accuracy, make_arguments
from prl_jax.data.jsonl import write_jsonl
from prl_jax.data.records import PreferenceRecord
from prl_jax.evaluation import reliability_bins
from prl_jax.files import write_json
from prl_jax.judges import Judged
from prl_jax.processes import is_leader
from prl_jax.runs.context import StageContext, gold_arguments
from prl_jax.runs.pieces import Pieces, batches, pieces
from prl_jax.stages.arms import Table, arms_pieces, compare_arms
from prl_jax.stages.judging import judge_records, record_metrics
from prl_jax.stages.win_rate import finite, named_judge
from prl_jax.text.chat import prompt_text

SUMMARY_FILE, WINS_FILE = "summary.json", "wins.jsonl"
_SHOWN_PROMPTS = 40


def run(context: StageContext) -> dict[str, float]:
    """Writes `summary.json` of the workdir, and `wins.jsonl` and `samples.jsonl` of the stage; returns the main
    figures."""
    section = context.section
    prompts = list(context.records(section.prompts, "prompt")) if section.baseline else []
    pairs = list(context.records(section.pairs, "preference")) if section.judges else []
    judged = len(section.judges) * batches(len(pairs), section.batch_size)
    table = Table({"arms": [], "notes": []}, [], [])
    with pieces(context, judged + arms_pieces(section, prompts)) as piece:
        judges = {name: evaluate_judge(context, name, pairs, piece) for name in section.judges}
        if section.baseline:
            table = compare_arms(context, prompts, judges, piece)
    summary = {"title": context.config.title, "seed": context.config.seed, "judges": judges, **table.summary}
    if is_leader():
        if section.baseline:
            write_jsonl(context.directory / WINS_FILE, table.wins)
            write_jsonl(context.directory / SAMPLES_FILE, table.samples[:_SHOWN_PROMPTS])
        write_json(context.workdir.path / SUMMARY_FILE, summary)
    figures = {f"accuracy/{name}": judge["accuracy"] for name, judge in judges.items()}
    figures |= {f"win_rate/{arm['name']}": arm["win_rate"] for arm in summary["arms"]}
    return {name: value for name, value in figures.items() if value is not None}


def evaluate_judge(
    context: StageContext, name: str, records: Sequence[PreferenceRecord], piece: Pieces
) -> dict[str, Any]:
    """A judge on labelled pairs; against the exact preference too where the pairs carry it."""
    size, number = context.section.batch_size, context.section.judges.index(name)
    judge = named_judge(context, name, batch_size=size)

    def ask(_: int, part: Sequence[PreferenceRecord]) -> list[tuple[float | None, float | None]]:
        found = judge_records(judge, part)
        return [(finite(a), finite(b)) for a, b in zip(found.z_12, found.z_21, strict=True)]

    judged = Judged(*np.array(piece.each(f"judge_{number}", records, size, ask), np.float32).T)
    metrics = record_metrics(judged, records)
    answered = np.isfinite(judged.p_first)
    soft = np.array([record.soft_label for record in records])
    metrics["reliability"] = reliability_bins(judged.p_first[answered].astype(np.float64), soft[answered])
    truth = [record.meta.get("p_star") for record in records]
    if all(p is not None for p in truth):
        sides = np.sign(np.array(truth, np.float64) - 0.5)
        agrees = 0.5 * (1.0 + np.sign(judged.p_first - 0.5) * sides)[answered & (sides != 0)]
        metrics["accuracy_vs_truth"] = float(agrees.mean()) if len(agrees) else None
        metrics["bayes_accuracy"] = _bayes(context, records)
    return metrics


def _bayes(context: StageContext, records: Sequence[PreferenceRecord]) -> float:
    """The accuracy that nobody exceeds on the sampled labels of built-in pairs."""
    arguments = make_arguments(gold_arguments(context.config))
    return bayes_accuracy(
        [(prompt_text(r.prompt), r.chosen, r.rejected) for r in records],
        noise=arguments.noise,
        ties=arguments.ties,
        intransitivity=arguments.intransitivity,
    )
