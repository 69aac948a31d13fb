"""Evaluation: judges on labelled pairs, policies against SFT and against anchors, and the final table."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from prl_jax.data.gold import attributes, bayes_accuracy, make_arguments, utility
from prl_jax.data.jsonl import write_jsonl
from prl_jax.data.records import PreferenceRecord, PromptRecord
from prl_jax.evaluation import reliability_bins, win_rate_summary
from prl_jax.files import write_json
from prl_jax.judges import Judge, Judged, judge_pairs
from prl_jax.models import Decoder
from prl_jax.processes import batch_rows, fetch, is_leader, put_batch
from prl_jax.sampling import respond
from prl_jax.stages.artifacts import SAMPLES_FILE, load_policy, model_tokenizer
from prl_jax.stages.cards import read_card, sampling_config
from prl_jax.stages.context import StageContext, gold_arguments
from prl_jax.stages.judging import judge_records, record_metrics
from prl_jax.stages.pieces import Pieces, batches, pieces
from prl_jax.stages.win_rate import named_judge
from prl_jax.text.chat import Prompt, prompt_text
from prl_jax.training.rollout import join_rows, response_logprobs
from prl_jax.types import Rollout

SUMMARY_FILE = "summary.json"
_SHOWN_PROMPTS = 40


class Sampled(NamedTuple):
    """`K` responses to each of `N` prompts: `texts[k][n]`, mean KL to the baseline in nats, mean tokens."""

    texts: list[list[str]]
    kl: float
    length: float


def run(context: StageContext) -> dict[str, float]:
    """Writes `summary.json` of the workdir and `samples.jsonl` of the stage; returns the main figures."""
    section = context.section
    prompts = list(context.records(section.prompts, "prompt")) if section.baseline else []
    pairs = list(context.records(section.pairs, "preference")) if section.judges else []
    arms, samples = [], []
    judged = len(section.judges) * batches(len(pairs), section.batch_size)
    with pieces(context, judged + _arms_pieces(section, prompts)) as piece:
        judges = {name: evaluate_judge(context, name, pairs, piece) for name in section.judges}
        if section.baseline:
            arms, samples = _arms(context, prompts, judges, piece)
    summary = {
        "title": context.config.title,
        "seed": context.config.seed,
        "judges": judges,
        "arms": arms,
        "win_rate_judge": section.judge,
        "prompts": len(samples),
        "samples_per_prompt": section.samples,
        "notes": _notes(section),
    }
    if is_leader():
        write_jsonl(context.directory / SAMPLES_FILE, samples[:_SHOWN_PROMPTS])
        write_json(context.workdir.path / SUMMARY_FILE, summary)
    return {f"win_rate_vs_sft/{arm['stage']}": arm["win_rate_vs_sft"] for arm in arms if arm["stage"]}


def _notes(section: Any) -> list[str]:
    """What a reader of the table should know of how it was measured."""
    if not section.baseline:
        return []
    return [
        f"Win rates are those of judge '{section.judge}', {section.samples} samples a prompt at temperature "
        f"{section.temperature:g}, each against an independent sample of the {section.baseline} policy.",
    ]


def evaluate_judge(
    context: StageContext, name: str, records: Sequence[PreferenceRecord], piece: Pieces
) -> dict[str, Any]:
    """A judge on labelled pairs; against the exact preference too where the pairs carry it."""
    size, number = context.section.batch_size, context.section.judges.index(name)
    judge = named_judge(context, name, batch_size=size)

    def ask(_: int, part: Sequence[PreferenceRecord]) -> list[tuple[float, float]]:
        found = judge_records(judge, part)
        return list(zip(found.z_12.tolist(), found.z_21.tolist(), strict=True))

    judged = Judged(*np.array(piece.each(f"judge_{number}", records, size, ask), np.float32).T)
    metrics = record_metrics(judged, records)
    soft = np.array([record.soft_label for record in records])
    metrics["reliability"] = reliability_bins(judged.p_first.astype(np.float64), soft)
    truth = [record.meta.get("p_star") for record in records]
    if all(p is not None for p in truth):
        sides = np.sign(np.array(truth, np.float64) - 0.5)
        agrees = 0.5 * (1.0 + np.sign(judged.p_first - 0.5) * sides)
        metrics["accuracy_vs_truth"] = float(agrees[sides != 0].mean())
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


def _has_anchors(section: Any, records: Sequence[PromptRecord]) -> bool:
    return section.anchors == "reference" and all(record.reference is not None for record in records)


def _arms_pieces(section: Any, records: Sequence[PromptRecord]) -> int:
    """In how many pieces `_arms` comes."""
    if not section.baseline:
        return 0
    rows, columns = 2 + len(section.arms), section.samples if section.temperature else 1
    # Of the opponents, the baseline, the arms; and greedy ones of the baseline.
    sampled = rows * columns + 1
    judged = rows * section.samples * (1 + _has_anchors(section, records))
    return (sampled + judged) * batches(len(records), section.batch_size)


def _arms(
    context: StageContext,
    records: Sequence[PromptRecord],
    judges: Mapping[str, Mapping[str, Any]],
    piece: Pieces,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the final table, and all responses side by side."""
    section = context.section
    judge = named_judge(context, section.judge, batch_size=section.batch_size)
    _, baseline, _ = load_policy(context.stage(section.baseline), context.mesh, defaults=context.defaults)
    draw = functools.partial(_sample, context, records, piece, baseline)
    opponents = draw(baseline, stream=0).texts
    rows: list[tuple[str, str, str | None, Sampled]] = [
        ("SFT, sampled", section.baseline, None, draw(baseline, stream=1)),
        ("SFT, greedy", section.baseline, None, draw(baseline, stream=2, temperature=0.0)),
    ]
    for i, (stage, arm) in enumerate(section.arms.items()):
        _, policy, _ = load_policy(context.stage(stage), context.mesh, defaults=context.defaults)
        rows.append((arm.title, stage, arm.judge, draw(policy, stream=3 + i)))
    anchors, has_anchors = [record.reference for record in records], _has_anchors(section, records)
    gold = section.judge == "gold"
    wins = functools.partial(_wins, piece, judge, [record.prompt for record in records], section.batch_size)
    table = []
    for i, (title, stage, judge_name, sampled) in enumerate(rows):
        against = win_rate_summary(wins(f"wins_{i}", sampled.texts, opponents), samples=section.bootstrap)
        of_judge = judges.get(judge_name or "", {})
        table.append(
            {
                "name": title,
                "stage": stage,
                "judge": judge_name,
                "judge_accuracy": of_judge.get("accuracy"),
                "judge_ece": of_judge.get("ece"),
                "judge_order_consistency": of_judge.get("order_consistency"),
                "win_rate_vs_sft": against["win_rate"],
                "win_rate_vs_sft_low": against["win_rate_low"],
                "win_rate_vs_sft_high": against["win_rate_high"],
                "win_rate_vs_anchor": float(
                    wins(f"anchor_wins_{i}", sampled.texts, [anchors] * len(sampled.texts)).mean()
                )
                if has_anchors
                else None,
                "kl": sampled.kl,
                "response_length": sampled.length,
                **(_utilities(records, sampled.texts) if gold else {}),
            }
        )
    return table, _side_by_side(records, rows, anchors, gold)


def _wins(
    piece: Pieces,
    judge: Judge,
    prompts: Sequence[Prompt],
    size: int,
    name: str,
    texts: Sequence[Sequence[str]],
    others: Sequence[Sequence[str]],
) -> Float[np.ndarray, "N K"]:
    """Win probabilities of sample k against the other's sample k."""

    def compare(_: int, part: Sequence[tuple[Prompt, str, str]]) -> list[float]:
        return judge_pairs(judge, *map(list, zip(*part, strict=True))).p_first.tolist()

    columns = [list(zip(prompts, a, b, strict=True)) for a, b in zip(texts, others, strict=False)]
    return np.array([piece.each(f"{name}_{k}", column, size, compare) for k, column in enumerate(columns)]).T


def _sample(
    context: StageContext,
    records: Sequence[PromptRecord],
    piece: Pieces,
    baseline: Decoder,
    policy: Decoder,
    *,
    stream: int,
    temperature: float | None = None,
) -> Sampled:
    section = context.section
    directory = context.stage(section.baseline)
    card, tokenizer = read_card(directory, context.defaults), model_tokenizer(directory, context.defaults)
    temperature = section.temperature if temperature is None else temperature
    sampling = sampling_config(card, tokenizer, temperature=temperature)
    prompts, size = [record.prompt for record in records], section.batch_size

    def sample(k: int, first: int, part: Sequence[Prompt]) -> list[tuple[str, float, int]]:
        texts, rollout = respond(
            policy,
            tokenizer,
            part,
            config=sampling,
            key=jax.random.fold_in(jax.random.fold_in(context.key, stream), k),
            max_prompt=card.max_prompt,
            batch_size=size,
            mesh=context.mesh,
            first_row=first,
        )
        kl = _kl(context, policy, baseline, rollout, temperature or 1.0)
        return list(zip(texts, kl.tolist(), rollout.mask.sum(1).tolist(), strict=True))

    columns = []
    # Greedy responses are all the same: one is enough, against each of the opponent's samples.
    for k in range(1 if temperature == 0 else section.samples):
        columns.append(piece.each(f"sample_{stream}_{k}", prompts, size, functools.partial(sample, k)))
    texts = [[text for text, _, _ in column] for column in columns]
    numbers = np.array([[row[1:] for row in column] for column in columns])
    kl, length = numbers.mean((0, 1)).tolist()
    return Sampled(texts * section.samples if temperature == 0 else texts, kl, length)


def _kl(
    context: StageContext, policy: Decoder, baseline: Decoder, rollout: Rollout, temperature: float
) -> Float[np.ndarray, "N"]:
    """Of each response, `log pi - log pi_SFT`, in nats."""
    count, totals = len(rollout.response), []
    for index in batch_rows(count, context.section.batch_size, context.mesh):
        part = Rollout(*put_batch(tuple(x[index] for x in rollout), context.mesh))
        totals.append(fetch(log_ratio(policy, baseline, part, temperature), context.mesh))
    return np.concatenate(totals)[:count]


@functools.partial(jax.jit, static_argnums=3)
def log_ratio(policy: Decoder, baseline: Decoder, rollout: Rollout, temperature: float):
    rows = join_rows(rollout.prompt, rollout.prompt_mask, rollout.response, rollout.mask)
    logp, _ = response_logprobs(policy, rows, rollout.response, rollout.mask, temperature)
    base, _ = response_logprobs(baseline, rows, rollout.response, rollout.mask, temperature)
    return (logp - base).sum(1)


def _utilities(records: Sequence[PromptRecord], texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Mean exact utility and attributes over all samples."""
    pairs = [(prompt_text(r.prompt), text) for column in texts for r, text in zip(records, column, strict=True)]
    parts = [attributes(prompt, text) for prompt, text in pairs]
    means = {name: float(np.mean([getattr(part, name) for part in parts])) for name in parts[0]._fields}
    return {"utility": float(np.mean([utility(prompt, text) for prompt, text in pairs])), "attributes": means}


def _side_by_side(
    records: Sequence[PromptRecord], rows: Sequence, anchors: Sequence, gold: bool
) -> list[dict[str, Any]]:
    out = []
    for i, record in enumerate(records):
        prompt = prompt_text(record.prompt)
        responses = {title: sampled.texts[0][i] for title, _, _, sampled in rows}
        row = {"prompt": prompt, "anchor": anchors[i], "responses": responses}
        if gold:
            row["utilities"] = {title: utility(prompt, text) for title, text in responses.items()}
        out.append(row)
    return out
