"""Anchors: prompts -> one or more responses each that the policy is compared with."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import sampling_config
from prl_jax.artifacts.models import load_judge, load_policy
from prl_jax.config.declare import filled, source
from prl_jax.config.rules import Rules
from prl_jax.data.jsonl import JsonLines, write_jsonl
from prl_jax.data.records import PromptRecord
from prl_jax.errors import UserError
from prl_jax.judges import Judge, ScalarJudge, judge_pairs
from prl_jax.processes import is_leader
from prl_jax.runs.context import StageContext
from prl_jax.runs.pieces import Pieces, batches, pieces
from prl_jax.sampling import respond
from prl_jax.stages.judging import check_finite
from prl_jax.stages.kind import Checking, Kind, Reads, check_temperature
from prl_jax.text.chat import Prompt, Turn

ANCHORS_FILE = "anchors.jsonl"


def declare(**values: Any) -> dict[str, Any]:
    """The section of a stage that finds one or more anchors for each prompt."""
    defaults = dict(
        kind="anchors",
        prompts=source(),
        choice="best_of_n",  # or "reference": the gold or demonstration answer that the prompt's record carries
        policy="sft",
        judge="bt",  # ranks the samples: by score (scalar), or by pairwise wins (generative)
        samples=4,
        keep=1,
        temperature=1.0,
        batch_size=512,
    )
    return filled(defaults, values, "anchors")


def reads(name: str, section: ConfigDict, key: str) -> Iterator[Reads]:
    """Who reads the prompts: the policy that samples and the judge that ranks; references are only copied."""
    if section.choice == "reference":
        yield Reads("", answered=True)
    else:
        yield Reads(section.policy)
        yield Reads(section.judge, section.policy)


def check_keep(check: Checking, name: str) -> None:
    """Raises `UserError` where more is to be kept than is sampled."""
    section = check.config[name]
    if section.choice == "best_of_n" and section.keep > section.samples:
        raise UserError(f"{name}.keep={section.keep}, expected at most samples={section.samples}")


def run(context: StageContext) -> dict[str, float]:
    """Writes `anchors.jsonl`, rows of `id, prompt, anchors`, and returns a few numbers about them."""
    section = context.section
    records = list(context.records(section.prompts, "prompt").with_unique_ids())
    if section.choice == "reference":
        chosen = [[_reference(record)] for record in records]
    else:
        chosen = _best_of_n(context, records)
    rows = [
        {"id": record.id, "prompt": [turn._asdict() for turn in record.prompt], "anchors": texts}
        for record, texts in zip(records, chosen, strict=True)
    ]
    if is_leader():
        write_jsonl(context.directory / ANCHORS_FILE, rows)
    lengths = [len(text) for texts in chosen for text in texts]
    return {"prompts": float(len(rows)), "anchors": float(len(lengths)), "characters": float(np.mean(lengths))}


def read_anchors(directory: Path, records: Sequence[PromptRecord]) -> list[list[str]]:
    """The anchors of each record, which answer its very prompt; a record without any is a `UserError`.

    Ids play no part: a file may have the same one for several prompts. Of rows with the same prompt, the first record
    with it gets the first, and so on, over again where there are more records.
    """
    path = directory / ANCHORS_FILE
    known: dict[Prompt, list[list[str]]] = {}
    for where, row in JsonLines(path):
        try:
            prompt = tuple(Turn(turn["role"], turn["content"]) for turn in row["prompt"])
            known.setdefault(prompt, []).append(row["anchors"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{where}: expected a prompt of turns and anchors; run the anchors stage again") from error
    missing = [record.id for record in records if record.prompt not in known]
    if missing:
        raise UserError(
            f"{path}: no anchor for prompt {missing[0]!r} and {len(missing) - 1} more; "
            "the anchors stage and this one must read the same prompts"
        )
    seen: Counter[Prompt] = Counter()
    anchors = []
    for record in records:
        rows = known[record.prompt]
        anchors.append(rows[seen[record.prompt] % len(rows)])
        seen[record.prompt] += 1
    return anchors


def _reference(record: PromptRecord) -> str:
    if record.reference is None:
        raise UserError(f"prompt {record.id!r} has no reference answer; use choice='best_of_n' or another source")
    return record.reference


def _best_of_n(context: StageContext, records: Sequence[PromptRecord]) -> list[list[str]]:
    """The `keep` best of `samples` responses of a policy to every prompt, as a judge ranks them."""
    section = context.section
    count, size = section.samples, section.batch_size
    card, policy, tokenizer = load_policy(context.stage(section.policy), context.mesh, defaults=context.defaults)
    judge = load_judge(context.stage(section.judge), context.mesh, batch_size=size, defaults=context.defaults)
    sampling = sampling_config(card, tokenizer, temperature=section.temperature)
    prompts = [record.prompt for record in records]

    def sample(i: int, first: int, part: Sequence[Prompt]) -> list[str]:
        texts, rollout = respond(
            policy,
            tokenizer,
            part,
            config=sampling,
            key=jax.random.fold_in(context.key, i),
            max_prompt=card.max_prompt,
            batch_size=size,
            mesh=context.mesh,
            first_row=first,
        )
        check_finite(np.sum(rollout.logp, axis=1), f"{context.name}: log-probabilities of responses")
        return texts

    with pieces(context, (count + rankings(judge, count)) * batches(len(prompts), size)) as piece:
        columns = [piece.each(f"sample_{i}", prompts, size, functools.partial(sample, i)) for i in range(count)]
        scores = rank_scores(judge, prompts, columns, size, piece)
    # A stable order, so that equal scores keep the order of sampling.
    order = np.argsort(-scores, axis=0, kind="stable")[: section.keep]
    return [[columns[k][i] for k in order[:, i]] for i in range(len(records))]


def rankings(judge: Judge, count: int) -> int:
    """How often `rank_scores` asks for all prompts."""
    return count if isinstance(judge, ScalarJudge) else count * (count - 1) // 2


def rank_scores(
    judge: Judge, prompts: Sequence[Prompt], columns: Sequence[Sequence[str]], size: int, piece: Pieces
) -> np.ndarray:
    """`[K, N]` scores of the K-th response to each of N prompts: a scalar judge's, or the mean win probability against
    the prompt's other responses (round robin, both orders). The judge is asked of `size` prompts at a time."""
    rows = list(zip(prompts, *columns, strict=True))
    if isinstance(judge, ScalarJudge):

        def score(i: int, _: int, part: Sequence[tuple]) -> list[float]:
            scores = judge.scores([row[0] for row in part], [row[1 + i] for row in part])
            check_finite(scores, "anchors: the judge's scores")
            return scores.tolist()

        return np.array(
            [piece.each(f"score_{i}", rows, size, functools.partial(score, i)) for i in range(len(columns))]
        )

    def compare(i: int, j: int, _: int, part: Sequence[tuple]) -> list[float]:
        p_first = judge_pairs(judge, *([row[k] for row in part] for k in (0, 1 + i, 1 + j))).p_first
        check_finite(p_first, "anchors: the judge's probabilities")
        return p_first.tolist()

    wins = np.zeros((len(columns), len(prompts)))
    for i in range(len(columns)):
        for j in range(i):
            p = np.array(piece.each(f"wins_{i}_{j}", rows, size, functools.partial(compare, i, j)))
            wins[i] += p
            wins[j] += 1.0 - p
    return wins / max(len(columns) - 1, 1)


KIND = Kind(
    name="anchors",
    family="anchors",
    declare=declare,
    rules=Rules(
        stages={"policy": ("policy",), "judge": ("judge",)},
        sources={"prompts": "prompt"},
        choices={"choice": ("best_of_n", "reference")},
        at_least={"samples": 1, "keep": 1, "temperature": 0, "batch_size": 1},
        models=("policy", "judge"),
        unused=lambda section: ("policy", "judge") if section.choice == "reference" else (),
    ),
    checks=(check_temperature, check_keep),
    run=run,
    reads=reads,
)
