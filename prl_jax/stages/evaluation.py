"""Evaluation: judges on labelled pairs, policies against SFT and against anchors, and the final table."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from prl_jax.data.gold import attributes, bayes_accuracy, make_arguments, utility
from prl_jax.data.jsonl import write_jsonl
from prl_jax.data.records import PreferenceRecord, PromptRecord
from prl_jax.evaluation import reliability_bins, win_rate_summary
from prl_jax.judges import Judge, judge_pairs
from prl_jax.models import Decoder
from prl_jax.processes import batch_rows, fetch, is_leader, put_batch
from prl_jax.sampling import SamplingConfig, respond
from prl_jax.stages.artifacts import SAMPLES_FILE, load_policy, model_tokenizer, read_card
from prl_jax.stages.context import StageContext, gold_arguments
from prl_jax.stages.judging import judge_records, record_metrics
from prl_jax.stages.win_rate import named_judge
from prl_jax.stages.workdir import write_json
from prl_jax.text.chat import prompt_text
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
    names = list(section.judges)
    with context.progress(len(names) + (len(section.arms) + 2 if section.baseline else 0)) as shown:
        judges = {}
        for i, name in enumerate(names):
            judges[name] = evaluate_judge(context, name)
            shown.update(i + 1, {"accuracy": judges[name]["accuracy"]})
        arms, samples = [], []
        if section.baseline:
            arms, samples = _arms(context, judges, lambda done, values: shown.update(len(names) + done, values))
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


def evaluate_judge(context: StageContext, name: str) -> dict[str, Any]:
    """A judge on the labelled pairs of the section; against the exact preference too where the pairs carry it."""
    records = context.records(context.section.pairs, "preference")
    judge = named_judge(context, name, batch_size=context.section.batch_size)
    judged = judge_records(judge, records)
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


def _arms(
    context: StageContext, judges: Mapping[str, Mapping[str, Any]], progress: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the final table, and all responses side by side."""
    section = context.section
    records = context.records(section.prompts, "prompt")
    judge = named_judge(context, section.judge, batch_size=section.batch_size)
    _, baseline, _ = load_policy(context.stage(section.baseline), context.mesh, defaults=context.defaults)
    draw = functools.partial(_sample, context, records, baseline)
    opponents = draw(baseline, stream=0).texts
    rows: list[tuple[str, str, str | None, Sampled]] = [
        ("SFT, sampled", section.baseline, None, draw(baseline, stream=1)),
        ("SFT, greedy", section.baseline, None, draw(baseline, stream=2, temperature=0.0)),
    ]
    progress(1, {})
    for i, (stage, arm) in enumerate(section.arms.items()):
        _, policy, _ = load_policy(context.stage(stage), context.mesh, defaults=context.defaults)
        rows.append((arm.title, stage, arm.judge, draw(policy, stream=3 + i)))
        progress(2 + i, {})
    anchors = [record.reference for record in records]
    has_anchors = section.anchors == "reference" and all(text is not None for text in anchors)
    prompts = [record.prompt for record in records]
    gold = section.judge == "gold"
    wins = functools.partial(_wins, judge, prompts)
    table = []
    for title, stage, judge_name, sampled in rows:
        against = win_rate_summary(wins(sampled.texts, opponents), samples=section.bootstrap)
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
                "win_rate_vs_anchor": float(wins(sampled.texts, [anchors] * len(sampled.texts)).mean())
                if has_anchors
                else None,
                "kl": sampled.kl,
                "response_length": sampled.length,
                **(_utilities(records, sampled.texts) if gold else {}),
            }
        )
    progress(2 + len(section.arms), {})
    return table, _side_by_side(records, rows, anchors, gold)


def _wins(judge: Judge, prompts: Sequence, texts: Sequence[Sequence[str]], others: Sequence[Sequence[str]]):
    """`[N, K]` win probabilities of sample k against the other's sample k."""
    columns = [judge_pairs(judge, prompts, a, b).p_first for a, b in zip(texts, others, strict=False)]
    return np.stack(columns, axis=1).astype(np.float64)


def _sample(
    context: StageContext,
    records: Sequence[PromptRecord],
    baseline: Decoder,
    policy: Decoder,
    *,
    stream: int,
    temperature: float | None = None,
) -> Sampled:
    section = context.section
    directory = context.stage(section.baseline)
    card, tokenizer = read_card(directory, context.defaults), model_tokenizer(directory)
    temperature = section.temperature if temperature is None else temperature
    sampling = SamplingConfig(card.max_response, (tokenizer.eos_id,), tokenizer.pad_id, temperature=temperature)
    key, texts, kl, length = jax.random.fold_in(context.key, stream), [], [], []
    # Greedy responses are all the same: one is enough, against each of the opponent's samples.
    for k in range(1 if temperature == 0 else section.samples):
        column, rollout = respond(
            policy,
            tokenizer,
            [record.prompt for record in records],
            config=sampling,
            key=jax.random.fold_in(key, k),
            max_prompt=card.max_prompt,
            batch_size=section.batch_size,
            mesh=context.mesh,
        )
        texts.append(column)
        kl.append(_mean_kl(context, policy, baseline, rollout, temperature or 1.0))
        length.append(rollout.mask.sum(1).mean())
    if temperature == 0:
        texts = texts * section.samples
    return Sampled(texts, float(np.mean(kl)), float(np.mean(length)))


def _mean_kl(context: StageContext, policy: Decoder, baseline: Decoder, rollout: Rollout, temperature: float) -> float:
    """Mean over responses of `log pi - log pi_SFT`, in nats."""
    count, totals = len(rollout.response), []
    for index in batch_rows(count, context.section.batch_size, context.mesh):
        part = Rollout(*put_batch(tuple(x[index] for x in rollout), context.mesh))
        totals.append(fetch(log_ratio(policy, baseline, part, temperature), context.mesh))
    return float(np.concatenate(totals)[:count].mean())


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
