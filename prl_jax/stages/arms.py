"""Policies side by side: the same prompts, opponents and random numbers for all, every win kept."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import read_card
from prl_jax.config.declare import sampling
from prl_jax.data.gold import attributes, utility
from prl_jax.data.records import PromptRecord
from prl_jax.evaluation import (
    holm,
    order_consistency,
    paired_interval,
    paired_test,
    position_bias,
    win_rate_summary,
)
from prl_jax.judges import Judge, judge_pairs
from prl_jax.runs.context import StageContext, sampling_of
from prl_jax.runs.judges import JUDGES, scores
from prl_jax.runs.models import LoadedModels
from prl_jax.runs.pieces import Pieces, batches
from prl_jax.stages.anchors import rank_scores
from prl_jax.stages.candidates import Candidates, rankings
from prl_jax.stages.judging import judge_counters
from prl_jax.stages.win_rate import Sampled, finite, sample_policy
from prl_jax.text.chat import Prompt, prompt_text


class Arm(NamedTuple):
    """A row of the final table: a policy, or the opponent itself; `judge` is the one that a policy learned from."""

    name: str
    stage: str
    is_opponent: bool
    judge: str | None
    sampled: Sampled


class Table(NamedTuple):
    """The results of the arms: parts of `summary.json`, and the rows of `wins.jsonl` and `samples.jsonl`."""

    summary: dict[str, Any]
    wins: list[dict[str, Any]]
    samples: list[dict[str, Any]]


def called(name: str) -> str:
    """Returns the name of a stage or model directory for readers."""
    return PurePath(name).name or name


class ArmRow(NamedTuple):
    """A row of the final table before anything is sampled: `judge` is the one that it learned from, or "", or that
    chooses the best of `best_of` responses."""

    name: str
    stage: str
    judge: str
    temperature: float
    best_of: int = 1


def arm_rows(section: ConfigDict) -> list[ArmRow]:
    """The rows of the final table. The first ones are the opponent's own, sampled and greedy."""
    opponent = called(section.opponent)
    rows = [ArmRow(f"{opponent}, sampled", section.opponent, "", section.temperature)] if section.temperature else []
    rows += [ArmRow(f"{opponent}, greedy", section.opponent, "", 0.0)]
    for stage, arm in section.arms.items():
        rows.append(ArmRow(arm.title or called(stage), stage, arm.judge, section.temperature, arm.get("best_of", 1)))
    return rows


def arms_pieces(context: StageContext, records: Sequence[PromptRecord]) -> int:
    """In how many pieces `compare_arms` comes."""
    section = context.section
    if not section.opponent:
        return 0
    rows = arm_rows(section)
    columns = [section.samples * row.best_of if row.temperature else 1 for row in rows]
    chosen = [
        section.samples * rankings(row.best_of, scores=_scores(context, row.judge)) for row in rows if row.best_of > 1
    ]
    opponents = section.samples if section.temperature else 1
    judged = len(columns) * section.samples * (1 + has_anchors(section, records))
    return (opponents + sum(columns) + sum(chosen) + judged) * batches(len(records), section.batch_size)


def _scores(context: StageContext, judge: str) -> bool:
    """Whether a judge scores single responses, told by the cards of its models."""
    is_scalar = lambda one: read_card(context.stage(one), context.defaults).kind == "scalar_judge"  # noqa: E731
    return scores(context.config.judges, judge, is_scalar)


def has_anchors(section: ConfigDict, records: Sequence[PromptRecord]) -> bool:
    return section.anchors == "reference" and all(record.reference is not None for record in records)


def compare_arms(
    context: StageContext,
    records: Sequence[PromptRecord],
    judges: Mapping[str, Mapping[str, Any]],
    piece: Pieces,
) -> Table:
    """Samples, judges and compares all arms; `judges` holds what is known of judges that arms learned from."""
    section = context.section
    models = LoadedModels(context)
    judge = models.judge(section.judge, batch_size=section.batch_size)
    opponent = models.policy(section.opponent).model
    draw = functools.partial(sample_policy, context, records, piece, opponent)
    opponents = draw(opponent, "opponents", temperature=section.temperature, as_opponent=True).texts
    arms = []
    rows = arm_rows(section)
    for i, row in enumerate(rows):
        policy = opponent if row.stage == section.opponent else models.policy(row.stage).model
        sampled = draw(policy, f"arm_{i}", temperature=row.temperature, times=row.best_of)
        if row.best_of > 1:
            chooser = models.judge(row.judge, batch_size=section.batch_size)
            sampled = _best_of(sampled, row.best_of, chooser, records, piece, f"arm_{i}", section.batch_size)
        arms.append(Arm(row.name, row.stage, i < len(rows) - len(section.arms), row.judge or None, sampled))
    ask = functools.partial(_judged, piece, judge, [record.prompt for record in records], section.batch_size)
    both = [ask(f"orders_{i}", arm.sampled.texts, opponents) for i, arm in enumerate(arms)]
    wins = [_wins(orders) for orders in both]
    anchor_orders = []
    if has_anchors(section, records):
        anchors = [[record.reference for record in records]] * section.samples
        anchor_orders = [ask(f"anchor_orders_{i}", arm.sampled.texts, anchors) for i, arm in enumerate(arms)]
    anchored = [_wins(orders) for orders in anchor_orders] or [None] * len(arms)
    teller = context.config.judges.get(section.judge, None)
    gold = teller is not None and JUDGES[teller.kind].built_in_tasks
    table = [_row(*row, records, judges, section.bootstrap, gold) for row in zip(arms, wins, anchored, strict=True)]
    summary = {
        "opponent": called(section.opponent),
        "arms": table,
        "paired": _differences(arms, wins, section.bootstrap),
        "win_rate_judge": section.judge,
        "win_rate_judge_orders": _orders(both, anchor_orders, arms, opponents) | judge_counters(judge),
        "prompts": len(records),
        "samples_per_prompt": section.samples,
        "notes": [
            f"Win rates are those of judge '{section.judge}', {section.samples} samples a prompt at temperature "
            f"{section.temperature:g}{switches(section)}, each against an independent sample of "
            f"{called(section.opponent)}: the same prompts, the same samples of the opponent and the same random "
            "numbers for every arm."
        ],
    }
    first = section.prompts.skip
    return Table(summary, _win_rows(records, arms, wins, first), _side_by_side(records, arms, gold))


def _best_of(
    sampled: Sampled, count: int, judge: Judge, records: Sequence[PromptRecord], piece: Pieces, name: str, size: int
) -> Sampled:
    """The best of each `count` responses to a prompt, as the judge ranks them: by score, or by wins over each other.

    The divergence from the policy that sampled is that of best-of-n without ties, `log n - (n - 1) / n` (arXiv
    2112.09332, appendix), an upper bound where responses are the same.
    """
    prompts, texts, tokens = [record.prompt for record in records], [], []
    for k in range(0, len(sampled.texts), count):
        part = sampled.texts[k : k + count]
        candidates = Candidates(part, np.zeros((count, len(prompts)), bool))
        scores, _ = rank_scores(judge, prompts, candidates, size, piece, f"{name}_{k}_")
        best = scores.argmax(0)
        texts.append([part[b][n] for n, b in enumerate(best.tolist())])
        tokens.append(sampled.tokens[np.arange(len(prompts)), k + best])
    divergence = np.full((len(prompts), len(texts)), math.log(count) - (count - 1) / count)
    return Sampled(texts, divergence, np.array(tokens).T)


def switches(section: ConfigDict) -> str:
    """The switches of sampling that are not at their defaults, for a note."""
    neutral, said = sampling(), sampling_of(section)
    changed = [f"{key}={said[key]!r}" for key in neutral if said[key] != neutral[key]]
    return f" ({', '.join(changed)})" if changed else ""


def _row(
    arm: Arm,
    wins: Float[np.ndarray, "N K"],
    anchored: Float[np.ndarray, "N K"] | None,
    records: Sequence[PromptRecord],
    judges: Mapping[str, Mapping[str, Any]],
    resamples: int,
    gold: bool,
) -> dict[str, Any]:
    """A row of the final table."""
    of_judge = judges.get(arm.judge or "", {})
    return {
        "name": arm.name,
        "stage": arm.stage,
        "is_opponent": arm.is_opponent,
        "judge": arm.judge,
        **{f"judge_{key}": of_judge.get(key) for key in _OF_JUDGE},
        **win_rate_summary(wins, samples=resamples),
        "win_rate_vs_anchor": None if anchored is None else win_rate_summary(anchored, samples=1)["win_rate"],
        "kl": finite(arm.sampled.kl.mean()),
        "response_length": float(arm.sampled.tokens.mean()),
        **(_utilities(records, arm.sampled.texts) if gold else {}),
    }


def _differences(arms: Sequence[Arm], wins: Sequence[Float[np.ndarray, "N K"]], resamples: int) -> list[dict[str, Any]]:
    """All pairs of arms on the same prompts: intervals, and tests that are corrected for how many pairs there are."""
    pairs = [(i, j) for j, i in itertools.combinations(range(len(arms)), 2)]
    intervals = [paired_interval(wins[i], wins[j], samples=resamples) for i, j in pairs]
    p_values = [paired_test(wins[i], wins[j]) for i, j in pairs]
    return [
        {"arm": arms[i].name, "other": arms[j].name, **interval, "p_value": p_value, "p_corrected": corrected}
        for (i, j), interval, p_value, corrected in zip(pairs, intervals, p_values, holm(p_values), strict=True)
    ]


_OF_JUDGE = ("accuracy", "accuracy_low", "accuracy_high", "ece", "order_consistency")


def _win_rows(
    records: Sequence[PromptRecord], arms: Sequence[Arm], wins: Sequence[Float[np.ndarray, "N K"]], first: int
) -> list[dict[str, Any]]:
    """For each prompt, how often each arm's samples win, and how long they are."""
    return [
        {
            "prompt": first + n,
            "id": record.id,
            "wins": {arm.name: [finite(x) for x in won[n]] for arm, won in zip(arms, wins, strict=True)},
            "tokens": {arm.name: arm.sampled.tokens[n].astype(int).tolist() for arm in arms},
        }
        for n, record in enumerate(records)
    ]


def _judged(
    piece: Pieces,
    judge: Judge,
    prompts: Sequence[Prompt],
    size: int,
    name: str,
    texts: Sequence[Sequence[str]],
    others: Sequence[Sequence[str]],
) -> Float[np.ndarray, "N K 4"]:
    """`p_12`, `p_21` and the judge's answer from both, of sample k against the other's sample k, NaN where they are not
    finite; and whether the judge saw only a part of the pair."""

    def compare(_: int, part: Sequence[tuple[Prompt, str, str]]) -> list[list[float | None]]:
        judged = judge_pairs(judge, *map(list, zip(*part, strict=True)))
        cut = np.zeros(len(part)) if judged.cut is None else judged.cut
        columns = (judged.p_12, judged.p_21, judged.p_first, cut.astype(float))
        return [list(map(finite, row)) for row in zip(*columns, strict=True)]

    columns = [list(zip(prompts, a, b, strict=True)) for a, b in zip(texts, others, strict=False)]
    found = [piece.each(f"{name}_{k}", column, size, compare) for k, column in enumerate(columns)]
    return np.array(found, np.float64).swapaxes(0, 1)


def _wins(orders: Float[np.ndarray, "N K 4"]) -> Float[np.ndarray, "N K"]:
    """The judge's answers."""
    return orders[..., 2]


def _orders(
    both: Sequence[Float[np.ndarray, "N K 4"]],
    anchor_orders: Sequence[Float[np.ndarray, "N K 4"]],
    arms: Sequence[Arm],
    opponents: Sequence[Sequence[str]],
) -> dict[str, float | int | None]:
    """How the judge dealt with the two orders of the very comparisons that gave the win rates; identical responses,
    which it is not asked about, left out. Cut judgements are those against anchors too."""
    asked = [
        orders[n, k, :2]
        for orders, arm in zip(both, arms, strict=True)
        for k, (texts, others) in enumerate(zip(arm.sampled.texts, opponents, strict=False))
        for n, (text, other) in enumerate(zip(texts, others, strict=True))
        if text != other and np.isfinite(orders[n, k]).all()
    ]
    p_12, p_21 = np.array(asked, np.float64).reshape(-1, 2).T
    cut = int(sum(orders[..., 3].sum() for orders in (*both, *anchor_orders)))
    if not asked:
        return {"n": 0, "order_consistency": None, "position_bias": None, "cut_judgements": cut}
    consistency, bias = order_consistency(p_12, p_21), position_bias(p_12, p_21)
    return {"n": len(asked), "order_consistency": consistency, "position_bias": bias, "cut_judgements": cut}


def _utilities(records: Sequence[PromptRecord], texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Mean exact utility and attributes over all samples."""
    pairs = [(prompt_text(r.prompt), text) for column in texts for r, text in zip(records, column, strict=True)]
    parts = [attributes(prompt, text) for prompt, text in pairs]
    means = {name: float(np.mean([getattr(part, name) for part in parts])) for name in parts[0]._fields}
    return {"utility": float(np.mean([utility(prompt, text) for prompt, text in pairs])), "attributes": means}


def _side_by_side(records: Sequence[PromptRecord], arms: Sequence[Arm], gold: bool) -> list[dict[str, Any]]:
    """For each prompt, the first sample of every arm."""
    out = []
    for i, record in enumerate(records):
        prompt = prompt_text(record.prompt)
        responses = {arm.name: arm.sampled.texts[0][i] for arm in arms}
        row = {"prompt": prompt, "anchor": record.reference, "responses": responses}
        if gold:
            row["utilities"] = {name: utility(prompt, text) for name, text in responses.items()}
        out.append(row)
    return out
