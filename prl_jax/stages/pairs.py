"""Pairs: prompts -> responses of one or more policies, ranked by a judge -> the pairs that a stage trains on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from prl_jax.config.rules import NONE, Rules
from prl_jax.data.jsonl import JsonLines, write_jsonl
from prl_jax.data.records import PromptRecord
from prl_jax.errors import UserError
from prl_jax.file_names import PAIRS_FILE
from prl_jax.judges import Judge, ScoringJudge
from prl_jax.methods.agreement import AGREEMENTS, certainty
from prl_jax.methods.selection import JudgedGroup, Selected, wins_of
from prl_jax.processes import is_leader
from prl_jax.runs.context import StageContext
from prl_jax.runs.models import LoadedModels
from prl_jax.runs.pieces import Pieces, batches, pieces
from prl_jax.stages.candidates import Candidates, compared, rankings, sampled, scored
from prl_jax.stages.judging import judge_counters
from prl_jax.stages.kind import Kind
from prl_jax.stages.pairs_costs import COSTS, construct, spent
from prl_jax.stages.pairs_section import check, declare, reads, responses_of, selection_in
from prl_jax.streams import selection_seed
from prl_jax.text.chat import Prompt

Row = dict[str, Any]


class Ranked(NamedTuple):
    """The answers of a judge about `K` responses to each of `N` prompts.

    Attributes:
      wins: `[K, K, N]` probabilities that the row's response beats the column's, from both orders; 0.5 on the diagonal.
      z_12: `[K, K, N]` logits of "slot 1 wins", the row's response in slot 1.
      scores: `[K, N]` of a judge that scores; else None.
      cuts: how often the judge did not see all that it was asked about.
    """

    wins: Float[np.ndarray, "K K N"]
    z_12: Float[np.ndarray, "K K N"]
    scores: Float[np.ndarray, "K N"] | None
    cuts: int

    def standings(self, members: Int[np.ndarray, "M"], n: int) -> Float[np.ndarray, "M"]:
        """The larger the better, of some responses to the prompt `n`: scores, or mean wins over each other."""
        if self.scores is not None:
            return self.scores[members, n]
        return self.wins[np.ix_(members, members, [n])][:, :, 0].mean(axis=1)


def run(context: StageContext) -> dict[str, float]:
    """Writes `pairs.jsonl`, rows of preference records (or of demonstrations, where the selection gives these), and
    returns a few numbers about them.

    A row has the win rates of both responses among those to the prompt, the probability that the chosen one beats the
    other, their scores where the judge scores, and in `meta` the judge's logits in both orders.
    """
    section, select = context.section, selection_in(context.section)
    records = list(context.records(section.prompts, "prompt").with_unique_ids())
    prompts = [record.prompt for record in records]
    policies, judges = construct(LoadedModels(context), context.name)
    number = responses_of(section)
    asked = sum(rankings(number, scores=isinstance(one, ScoringJudge)) for one in judges.values())
    parts = section.samples * len(policies) + asked
    with pieces(context, parts * batches(len(prompts), section.batch_size)) as piece:
        candidates = with_references(sampled(context, policies, prompts, piece), records, section.include_reference)
        ranked = {name: ranking(one, prompts, candidates, f"{name}_", piece, context) for name, one in judges.items()}
    first, usable = ranked[section.judge], candidates.usable
    scores = first.scores if not section.scorer else ranked[section.scorer].scores
    names = [name for name in (section.policy, *section.others) for _ in range(section.samples)]
    names += ["reference"] * section.include_reference
    rows: list[Row] = []
    without = 0
    for n, record in enumerate(records):
        members = np.flatnonzero(usable[:, n])
        group = JudgedGroup(
            tuple(candidates.texts[k][n] for k in members),
            first.wins[np.ix_(members, members, [n])][:, :, 0],
            None if scores is None else scores[members, n],
        )
        rng = np.random.default_rng(selection_seed(context.config.seed, context.name, n))
        found = select(group, rng)
        without += not found
        meta = {}
        if section.agrees_with and len(members) > 1:
            both = [ranked[name].standings(members, n) for name in (section.judge, section.agrees_with)]
            meta["certainty"] = certainty(AGREEMENTS[section.agreement](*both))
        for number, one in enumerate(found):
            fields = _row(group, one, members, first.z_12[:, :, n], names, section.include_self)
            fields["meta"] |= meta
            turns = [turn._asdict() for turn in record.prompt]
            rows.append({"id": f"{record.id}/{number}", "prompt": turns, "source": context.name, **fields})
    if not rows:
        several = int((usable.sum(axis=0) > 1).sum())
        raise UserError(
            f"{context.name}: no pair could be made of {len(records)} prompts. Of {usable.size} responses "
            f"{int(candidates.empty.sum())} are empty, {int(candidates.truncated.sum())} truncated and "
            f"{int(candidates.repeated.sum())} repeated, which leaves two or more to {several} prompts; the judge or "
            "select.min_gap took none of these. Sample more or warmer, allow longer responses, or ask another judge"
        )
    replayed = _replayed(context, len(rows))
    if is_leader():
        write_jsonl(context.directory / PAIRS_FILE, [*rows, *replayed])
    numbers = {
        "prompts": len(records),
        "prompts_without_pair": without,
        "pairs": len(rows),
        "replayed": len(replayed),
        **_means(rows),
        "empty_candidates": candidates.empty.sum(),
        "truncated_candidates": candidates.truncated.sum(),
        "repeated_candidates": candidates.repeated.sum(),
        "cut_judgements": sum(one.cuts for one in ranked.values()),
    }
    for one in judges.values():
        numbers |= judge_counters(one)
    return {name: float(number) for name, number in numbers.items()}


def with_references(candidates: Candidates, records: Sequence[PromptRecord], wanted: bool) -> Candidates:
    """The candidates with the reference answers of their prompts as the last ones, where these are wanted."""
    if not wanted:
        return candidates
    texts = [record.reference or "" for record in records]
    whole = np.zeros((1, len(texts)), bool)
    return dataclasses.replace(
        candidates, texts=[*candidates.texts, texts], truncated=np.concatenate([candidates.truncated, whole])
    )


def ranking(
    judge: Judge, prompts: Sequence[Prompt], candidates: Candidates, prefix: str, piece: Pieces, context: StageContext
) -> Ranked:
    """Asks a judge about all candidates. `prefix` tells its pieces from those of other judges."""
    size = context.section.batch_size
    if isinstance(judge, ScoringJudge):
        scores, cuts = scored(judge, prompts, candidates, size, piece, prefix)
        return Ranked(wins_of(scores), scores[:, None] - scores[None], scores, cuts)
    met = compared(judge, prompts, candidates, size, piece, prefix)
    diagonal = 0.5 * np.eye(len(met.wins))[:, :, None]
    return Ranked(met.wins + diagonal, met.z_12, None, met.cuts)


def _row(
    group: JudgedGroup,
    one: Selected,
    members: np.ndarray,
    z_12: Float[np.ndarray, "K K"],
    names: Sequence[str],
    include_self: bool,
) -> Row:
    """The fields of a record that come from a selection."""
    i, j = one.better, one.worse
    rates, better = group.win_rates(include_self), members[i]
    if j is None:
        return {"response": group.responses[i], "meta": {"policy": names[better], "win": float(rates[i])}}
    worse = members[j]
    numbers = {"p_chosen": group.wins[i, j], "win_chosen": rates[i], "win_rejected": rates[j]}
    if group.scores is not None:
        numbers |= {"score_chosen": group.scores[i], "score_rejected": group.scores[j]}
    return {
        "chosen": group.responses[i],
        "rejected": group.responses[j],
        **{name: float(number) for name, number in numbers.items()},
        "meta": {
            "policies": [names[better], names[worse]],
            "z_12": float(z_12[better, worse]),
            "z_21": float(z_12[worse, better]),
        },
    }


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the pairs; nothing of demonstrations."""
    names = ("p_chosen", "win_chosen", "win_rejected", "score_chosen", "score_rejected")
    return {name: float(np.mean([row[name] for row in rows])) for name in names if name in rows[0]}


def _replayed(context: StageContext, count: int) -> list[Row]:
    """Pairs of earlier stages, drawn without replacement, that are the section's share of all beside `count` new
    ones; all there are where these are fewer."""
    section = context.section
    files = {name: JsonLines(context.stage(name) / PAIRS_FILE) for name in section.replay}
    # Not what those have replayed themselves, which another one of them has.
    known = [row for name, rows in files.items() for _, row in rows if row["source"] == name]
    wanted = min(round(count * section.replay_share / (1.0 - section.replay_share)), len(known))
    rng = np.random.default_rng(selection_seed(context.config.seed, context.name, -1 % 2**32))
    return [known[i] for i in sorted(rng.permutation(len(known))[:wanted].tolist())]


KIND = Kind(
    name="pairs",
    family="pairs",
    declare=declare,
    rules=Rules(
        stages={
            "policy": ("policy",),
            "judge": ("judge",),
            "scorer": ("scalar_judge", NONE),
            "agrees_with": ("judge", NONE),
        },
        choices={"agreement": tuple(AGREEMENTS)},
        sources={"prompts": "prompt"},
        at_least={"samples": 1, "temperature": 0, "batch_size": 1},
        models=("policy", "others", "judge", "scorer", "agrees_with"),
        unions=("select",),
    ),
    checks=(check,),
    run=run,
    reads=reads,
    costs=COSTS,
    spent=spent,
)
