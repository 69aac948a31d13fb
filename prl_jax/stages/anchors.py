"""Anchors: prompts -> one or more responses each that the policy is compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from prl_jax.config.declare import filled, sampling, source
from prl_jax.config.rules import Rules
from prl_jax.data.jsonl import JsonLines, write_jsonl
from prl_jax.data.records import PromptRecord
from prl_jax.errors import UserError
from prl_jax.file_names import ANCHORS_FILE
from prl_jax.judges import Judge, ScoringJudge
from prl_jax.processes import is_leader
from prl_jax.runs.context import StageContext
from prl_jax.runs.models import LoadedModels
from prl_jax.runs.pieces import Pieces, batches, pieces
from prl_jax.stages.anchors_costs import COSTS, construct
from prl_jax.stages.candidates import Candidates, compared, rankings, sampled, scored
from prl_jax.stages.judging import judge_counters
from prl_jax.stages.kind import Checking, Kind, Reads, check_sampling
from prl_jax.text.chat import Prompt, Turn


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
        sampling=sampling(),
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


def check_sampled(check: Checking, name: str) -> None:
    """Raises `UserError` for ways to sample that cannot be, or that nothing is sampled in."""
    section = check.config[name]
    if section.choice == "best_of_n":
        check_sampling(check, name, section, section.policy)
    elif changed := [key for key, value in sampling().items() if section.sampling[key] != value]:
        raise UserError(f"{name}.sampling.{changed[0]}: with choice='reference' nothing is sampled; leave it out")


def check_keep(check: Checking, name: str) -> None:
    """Raises `UserError` where more is to be kept than is sampled."""
    section = check.config[name]
    if section.choice == "best_of_n" and section.keep > section.samples:
        raise UserError(f"{name}.keep={section.keep}, expected at most samples={section.samples}")


def run(context: StageContext) -> dict[str, float]:
    """Writes `anchors.jsonl`, rows of `id, prompt, anchors`, and returns a few numbers about them.

    Of sampled candidates, those that are empty, truncated or the same as another one are passed over (`choose`); how
    many is among the numbers.
    """
    section = context.section
    records = list(context.records(section.prompts, "prompt").with_unique_ids())
    if section.choice == "reference":
        chosen = [[_reference(record)] for record in records]
        counters = {"empty_candidates": sum(not text.strip() for (text,) in chosen)}
    else:
        chosen, counters = _best_of_n(context, records)
    rows = [
        {"id": record.id, "prompt": [turn._asdict() for turn in record.prompt], "anchors": texts}
        for record, texts in zip(records, chosen, strict=True)
    ]
    if is_leader():
        write_jsonl(context.directory / ANCHORS_FILE, rows)
    lengths = [len(text) for texts in chosen for text in texts]
    numbers = {"prompts": len(rows), "anchors": len(lengths), "characters": np.mean(lengths), **counters}
    return {name: float(number) for name, number in numbers.items()}


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


def choose(
    candidates: Candidates, scores: Float[np.ndarray, "K N"], keep: int
) -> tuple[list[list[str]], dict[str, int]]:
    """The `keep` best usable candidates of each prompt, and what was passed over.

    A prompt with fewer usable ones has fewer anchors. Where it has none at all, its best truncated candidate stands
    in, or an empty one where all are empty; `prompts_without_candidate` counts these prompts.

    Args:
      candidates: of all prompts.
      scores: the larger the better; equal ones keep the order of sampling.
      keep: anchors of a prompt, at most.
    """
    empty, usable = candidates.empty, candidates.usable
    none = ~usable.any(axis=0)
    # Usable ones first, then what says something, then the rest; each by score.
    order = np.lexsort((-scores, empty, ~usable), axis=0)
    wanted = np.minimum(keep, np.maximum(usable.sum(axis=0), 1))
    chosen = [[candidates.texts[k][n] for k in order[: wanted[n], n]] for n in range(len(wanted))]
    counters = {
        "empty_candidates": empty.sum(),
        "truncated_candidates": candidates.truncated.sum(),
        "repeated_candidates": candidates.repeated.sum(),
        "prompts_without_candidate": none.sum(),
    }
    return chosen, {name: int(count) for name, count in counters.items()}


def _best_of_n(context: StageContext, records: Sequence[PromptRecord]) -> tuple[list[list[str]], dict[str, int]]:
    """The `keep` best of `samples` responses of a policy to every prompt, as a judge ranks them; and counters."""
    section = context.section
    count, size = section.samples, section.batch_size
    policy, judge = construct(LoadedModels(context), context.name)
    prompts = [record.prompt for record in records]
    parts = count + rankings(count, scores=isinstance(judge, ScoringJudge))
    with pieces(context, parts * batches(len(prompts), size)) as piece:
        candidates = sampled(context, [policy], prompts, piece)
        scores, cuts = rank_scores(judge, prompts, candidates, size, piece)
    chosen, counters = choose(candidates, scores, section.keep)
    return chosen, {**counters, "cut_judgements": cuts, **judge_counters(judge)}


def rank_scores(
    judge: Judge, prompts: Sequence[Prompt], candidates: Candidates, size: int, piece: Pieces, prefix: str = ""
) -> tuple[Float[np.ndarray, "K N"], int]:
    """`[K, N]` scores of the K-th response to each of N prompts: a scalar judge's, or the mean win probability against
    the prompt's other responses (round robin, both orders), of which the usable ones count, where there are any.

    The judge is asked of `size` prompts at a time; `prefix` tells its pieces from those of others. Also returns how
    often it did not see all of prompt and responses.
    """
    if isinstance(judge, ScoringJudge):
        return scored(judge, prompts, candidates, size, piece, prefix)
    met = compared(judge, prompts, candidates, size, piece, prefix)
    usable = candidates.usable
    counts = np.where(usable.any(axis=0), usable, True).astype(float)  # as opponents
    wins = np.einsum("ijn,jn->in", met.wins, counts)
    return wins / np.maximum(counts.sum(axis=0) - counts, 1.0), met.cuts


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
    checks=(check_sampled, check_keep),
    run=run,
    reads=reads,
    costs=COSTS,
)
