"""The work that a finished stage has taken, counted from its config and its files: what budgets are compared by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

from prl_jax.config.durations import to_steps
from prl_jax.data.jsonl import JsonLines
from prl_jax.file_names import METRICS_FILE, PAIRS_FILE, RESULT_FILE
from prl_jax.metrics import read_metrics, read_result
from prl_jax.runs.context import StageContext


class Spent(NamedTuple):
    """The work of a stage. A response is as many tokens as it has bytes, and one that ends it.

    Attributes:
      sampled: tokens of responses that were sampled.
      trained: tokens of responses that were trained on, each as often as it was.
      judged: rows that judges have read.
    """

    sampled: int = 0
    trained: int = 0
    judged: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*map(sum, zip(self, other, strict=True)))


def by_rollouts(context: StageContext, responses: int, judged: int) -> Spent:
    """The work of a stage that has sampled so many responses, each of which trained it `epochs` times."""
    metrics = read_metrics(context.directory / METRICS_FILE)
    tokens = responses * fmean(row["response_length"] for row in metrics if row.get("response_length") is not None)
    return Spent(round(tokens), round(tokens * context.section.epochs), judged)


def by_candidates(context: StageContext, sampled: int, judged: int) -> Spent:
    """The work of a stage that has sampled so many responses to each prompt, of which judges have read so many rows;
    those that it has written stand for all."""
    prompts = int(read_result(context.directory / RESULT_FILE)["metrics"]["prompts"])
    rows = [row for _, row in JsonLines(context.directory / PAIRS_FILE)]
    return Spent(sampled=round(prompts * sampled * mean_tokens(rows)), judged=prompts * judged)


def by_records(context: StageContext, what: str, responses: int) -> Spent:
    """The work of a stage that was fitted to records of this kind, each with so many responses."""
    section, key = context.section, f"{context.name}.duration"
    rows = [vars(record) for record in context.records(section.data, what)]
    steps = to_steps(section.duration, key=key, batch_size=section.batch_size, examples=len(rows))
    return Spent(trained=round(steps * section.batch_size * responses * mean_tokens(rows)))


def mean_tokens(rows: Iterable[Mapping[str, Any]]) -> float:
    """The mean number of tokens of the responses in rows of preferences or demonstrations."""
    texts = [row[key] for row in rows for key in ("chosen", "rejected", "response") if key in row]
    return fmean(len(text.encode()) + 1 for text in texts)
