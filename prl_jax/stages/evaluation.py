"""Evaluation: judges on labelled pairs, policies against an opponent and against anchors, and the final table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from prl_jax.config.conform import conform
from prl_jax.config.declare import filled, sampling, source
from prl_jax.config.rules import NONE, Rules
from prl_jax.data.gold import bayes_accuracy, make_arguments
from prl_jax.data.jsonl import write_jsonl
from prl_jax.data.records import PreferenceRecord
from prl_jax.errors import UserError
from prl_jax.evaluation import reliability_bins
from prl_jax.file_names import SAMPLES_FILE, SUMMARY_FILE, WINS_FILE
from prl_jax.files import write_json
from prl_jax.judges import Judged
from prl_jax.processes import is_leader
from prl_jax.runs.context import StageContext, gold_arguments
from prl_jax.runs.models import LoadedModels
from prl_jax.runs.pieces import Pieces, batches, pieces
from prl_jax.stages.arms import Table, arm_rows, arms_pieces, compare_arms
from prl_jax.stages.evaluation_costs import COSTS
from prl_jax.stages.judging import judge_counters, judge_records, record_metrics
from prl_jax.stages.kind import Checking, Kind, Reads, check_sampling
from prl_jax.stages.win_rate import finite
from prl_jax.text.chat import prompt_text

_SHOWN_PROMPTS = 40


def declare(**values: Any) -> dict[str, Any]:
    """The section of an evaluation: judges on labelled pairs, policies against an opponent and anchors, the table."""
    defaults = dict(
        kind="evaluation",
        judges=(),
        pairs=source(split="test"),
        opponent="sft",  # the policy that the arms are compared with; "" evaluates judges only
        # Stage of a policy -> dict(title=, judge=, best_of=1): its one name in every table, and whom it learned from;
        # or, with best_of above 1, who chooses the best of so many responses for each one that counts.
        arms={},
        prompts=source(split="test", limit=512),
        samples=4,  # a prompt
        judge="gold",  # tells the win rates
        anchors="reference",  # what prompts carry as their reference, where they do; "" for none
        temperature=1.0,
        sampling=sampling(),
        batch_size=512,
        bootstrap=2000,
    )
    return filled(defaults, values, "evaluation")


def unused(section: ConfigDict) -> tuple[str, ...]:
    """Keys that an evaluation does not look at, as its section stands."""
    policies, judges = () if section.opponent else ("prompts", "judge"), () if section.judges else ("pairs",)
    return (*policies, *judges)


def reads(name: str, section: ConfigDict, key: str) -> Iterator[Reads]:
    """Who reads a source: all judges the pairs, the policies and the judge of the win rates the prompts."""
    if key == "pairs":
        yield from map(Reads, section.judges)
    else:
        yield Reads(section.opponent)
        yield Reads(section.judge, section.opponent)


def check_arms(check: Checking, name: str) -> None:
    """Raises `UserError` for judges and arms that are none, and for a final table that cannot be made."""
    section = check.config[name]
    for judge in section.judges:
        check.reference(name, "judges", judge, ("judge",))
    for stage, arm in section.arms.items():
        check.reference(name, "arms", stage, ("policy",))
        conform(
            dict(arm.items()),
            {"title": "", "judge": "", **({"best_of": 1} if "best_of" in arm else {})},
            f"{name}.arms.{stage}.",
        )
        _check_best_of(check, name, stage)
        if arm.judge not in ("", *section.judges, *check.config.judges):
            raise UserError(f"{name}.arms.{stage}.judge={arm.judge!r}, expected one of {name}.judges, of judges, or ''")
    if section.arms and not section.opponent:
        raise UserError(f"{name}.opponent: empty, expected the policy that the arms are compared with")
    if section.opponent:
        check_sampling(check, name, section, section.opponent)
        rows = arm_rows(section)
        for i, (title, stage, *_) in enumerate(rows):
            if title in [row[0] for row in rows[:i]]:
                raise UserError(f"{name}.arms.{stage}.title: another row is called {title!r} too; choose another title")


def _check_best_of(check: Checking, name: str, stage: str) -> None:
    """Raises `UserError` for a choice of the best response that nobody can make."""
    section, arm = check.config[name], check.config[name].arms[stage]
    count = arm.get("best_of", 1)
    key = f"{name}.arms.{stage}.best_of={count}"
    if count < 1:
        raise UserError(f"{key}, expected at least 1")
    if count > 1 and not arm.judge:
        raise UserError(f"{key}: nobody chooses; name a judge in {name}.arms.{stage}.judge")
    if count > 1 and not section.temperature:
        raise UserError(f"{key}: greedy responses are all the same; set {name}.temperature above 0")


def run(context: StageContext) -> dict[str, float]:
    """Writes `summary.json` of the workdir, and `wins.jsonl` and `samples.jsonl` of the stage; returns the main
    figures."""
    section = context.section
    prompts = list(context.records(section.prompts, "prompt")) if section.opponent else []
    pairs = list(context.records(section.pairs, "preference")) if section.judges else []
    judged = len(section.judges) * batches(len(pairs), section.batch_size)
    table = Table({"arms": [], "notes": []}, [], [])
    with pieces(context, judged + arms_pieces(context, prompts)) as piece:
        judges = {name: evaluate_judge(context, name, pairs, piece) for name in section.judges}
        if section.opponent:
            table = compare_arms(context, prompts, judges, piece)
    summary = {"title": context.config.title, "seed": context.config.seed, "judges": judges, **table.summary}
    if is_leader():
        if section.opponent:
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
    judge = LoadedModels(context).judge(name, batch_size=size)

    def ask(_: int, part: Sequence[PreferenceRecord]) -> list[tuple[float | None, float | None, bool]]:
        found = judge_records(judge, part)
        cut = np.zeros(len(part), bool) if found.cut is None else found.cut
        return [(finite(a), finite(b), bool(c)) for a, b, c in zip(found.z_12, found.z_21, cut, strict=True)]

    z_12, z_21, cut = np.array(piece.each(f"judge_{number}", records, size, ask), np.float32).T
    judged = Judged(z_12, z_21, judge.merge, cut > 0)
    metrics = record_metrics(judged, records) | {"cut_judgements": judged.cuts} | judge_counters(judge)
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
        sharpness=arguments.scale,
    )


KIND = Kind(
    name="evaluation",
    family="evaluation",
    declare=declare,
    rules=Rules(
        stages={"opponent": ("policy", NONE), "judge": ("judge",)},
        sources={"pairs": "preference", "prompts": "prompt"},
        choices={"anchors": ("reference", "")},
        at_least={"samples": 1, "temperature": 0, "batch_size": 1, "bootstrap": 1},
        models=("opponent", "judge", "judges"),
        unused=unused,
    ),
    checks=(check_arms,),
    run=run,
    reads=reads,
    costs=COSTS,
)
