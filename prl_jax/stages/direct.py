"""Direct preference learning: a policy and pairs of responses -> a policy, without a reward model or sampling."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from prl_jax.artifacts.models import SAMPLES_SHOWN
from prl_jax.config.rules import RESULTS, Rules, parts_of, value_at
from prl_jax.data.records import PreferenceRecord, missing_value
from prl_jax.data.rows import encode_responses
from prl_jax.data.sources import Records
from prl_jax.errors import UserError
from prl_jax.file_names import REFERENCES_FILE
from prl_jax.files import local_path
from prl_jax.losses import mixed_reference
from prl_jax.processes import shared
from prl_jax.runs.context import OF_STAGE, StageContext
from prl_jax.runs.models import LoadedModels, origin_of
from prl_jax.runs.references import Fixed, reference_log_probs
from prl_jax.stages import supervised
from prl_jax.stages.direct_costs import direct_costs
from prl_jax.stages.direct_section import LABELS, check_section, declare, loss_in, needs_of, weights_in
from prl_jax.stages.kind import Checking, Kind, Reads
from prl_jax.stages.preferences import SOURCES, different
from prl_jax.stages.shown import shown_samples
from prl_jax.stages.spent import by_records
from prl_jax.training.direct import LENGTHS, direct_objective
from prl_jax.types import DirectPairs, SFTBatch


def objective(section: ConfigDict, verdicts: tuple[int, int], packed: int) -> Any:
    """Returns the objective that the section asks for; a policy has no verdicts."""
    keys = ("length", "sft_weight", "sft_length", "value_weight", "beta_scale", "beta_scale_rate")
    loss, values = loss_in(section), {key: section[key] for key in keys}
    # Targets of gaps are what records say of each response, or follow from what they say of the pair.
    gap_of_label = loss.reads == "gap" and section.label in ("hard", "soft")
    return direct_objective(loss, **values, gap_of_label=gap_of_label, packed=packed)


_NEXT = 8  # records behind a record, among which one with another prompt is looked for


class ReferencedPair(NamedTuple):
    """A pair, and what frozen models say of it.

    Attributes:
      record: the pair.
      reference: log-probabilities of the responses (`responses`) under the references, mixed.
      other: a response to another prompt, for losses that read one; else None.
    """

    record: PreferenceRecord
    reference: Float[np.ndarray, "R"]
    other: str | None

    @property
    def responses(self) -> tuple[str, ...]:
        """The chosen response, the rejected one and, where a loss reads it, that to another prompt."""
        pair = (self.record.chosen, self.record.rejected)
        return pair if self.other is None else (*pair, self.other)


class ReferencedPairs(Sequence[ReferencedPair]):
    """The pairs of a source, each with what frozen models say of it.

    Args:
      records: the pairs.
      reference: their numbers.
      mismatched: whether each has a response to another prompt.
    """

    def __init__(
        self, records: Sequence[PreferenceRecord], reference: Float[np.ndarray, "N R"], *, mismatched: bool = False
    ):
        self._records, self._reference, self._mismatched = records, reference, mismatched

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        i = int(index)
        other = other_response(self._records, i) if self._mismatched else None
        return ReferencedPair(self._records[i], self._reference[i], other)


def other_response(records: Sequence[PreferenceRecord], i: int) -> str:
    """The chosen response of the next record that has another prompt, of the first ones behind the last; of the last
    that is looked at where none of the next few has."""
    found = records[i]
    for k in range(1, _NEXT + 1):
        found = records[(i + k) % len(records)]
        if found.prompt != records[i].prompt:
            break
    return found.chosen


def run(context: StageContext) -> dict[str, float]:
    """Trains a policy and returns the metrics of what it has come to."""
    section, models = context.section, LoadedModels(context)
    card = dataclasses.replace(supervised.policy_card(section), **origin_of(context))
    records, skipped, ties = different(context.records(section.data, "preference"))
    validation, _, _ = different(context.records(section.validation, "preference"))
    sources = {"data": records, "validation": validation}
    for key, source in sources.items():
        check_values(f"{context.name}.{key}", source, needs_of(section))

    def encode(pair: ReferencedPair) -> tuple[DirectPairs, bool]:
        room = dict(max_prompt=section.max_prompt, max_response=section.max_response)
        found, truncated = encode_responses(models.tokenizer, pair.record.prompt, pair.responses, **room)
        row = DirectPairs(found[0], found[1], pair.reference[:2], **numbers(section, pair.record))
        if pair.other is not None:
            row = row._replace(mismatched=found[2], reference_mismatched=pair.reference[2])
        return row, truncated

    pairs = referenced(context, models, sources)
    task = supervised.Supervised(
        card=card,
        models=models,
        fit=FIT,
        verdicts=(0, 0),
        records=pairs["data"],
        validation=pairs["validation"],
        encode=encode,
        sample=shown_samples(context, card, models.tokenizer, [r.prompt for r in validation[:SAMPLES_SHOWN]]),
        counters={"identical_pairs_skipped": skipped, "ties": ties},
    )
    return supervised.train(context, task)


def referenced(
    context: StageContext, models: LoadedModels, sources: Mapping[str, Records]
) -> dict[str, ReferencedPairs]:
    """The pairs of each source with what the references say of them, which they are asked first."""
    section, weights = context.section, weights_in(context.section)
    mismatched = loss_in(section).statistic == "mismatched"
    room = dict(max_prompt=section.max_prompt, max_response=section.max_response)
    width = 3 if mismatched else 2

    def fixed(records: Records) -> Fixed:
        bare = ReferencedPairs(records, np.zeros((len(records), width), np.float32), mismatched=mismatched)

        def rows(i: int) -> Sequence[SFTBatch]:
            pair = bare[i]
            return encode_responses(models.tokenizer, pair.record.prompt, pair.responses, **room)[0]

        return Fixed(rows, len(records), records.place)

    names, every = tuple(section.references), {key: fixed(records) for key, records in sources.items()}
    asked = reference_log_probs(context, models, names, every, precomputed=section.precomputed)
    found = {}
    for key, records in sources.items():
        each = jnp.asarray(asked[key].reshape(len(names), -1)) if names else jnp.zeros((0, len(records) * width))
        mixed = np.asarray(mixed_reference(each, jnp.asarray(weights, jnp.float32))).reshape(len(records), width)
        found[key] = ReferencedPairs(records, mixed, mismatched=mismatched)
    return found


def numbers(section: ConfigDict, record: PreferenceRecord) -> dict[str, Any]:
    """The numbers of a pair that its loss may read: fields of `DirectPairs`, float32."""
    label, gap = LABELS[section.label], 0.0
    probability = record.label if label.probability is None else label.probability(record)
    targets = (0.0, 0.0) if label.targets is None else label.targets(record)
    if section.certainty:
        certain = record.meta[section.certainty]
        probability = certain * probability + (1.0 - certain) * (1.0 - probability)
    if section.beta_scale and record.scores is not None:
        gap = record.scores[0] - record.scores[1]
    found = dict(label=probability, target=targets, score_gap=gap, weight=1.0)
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def check_values(key: str, records: Records, needs: Sequence[str]) -> None:
    """Raises `UserError` for the first pair that lacks a value which the loss reads."""
    for need in needs:
        lacking = np.flatnonzero(shared(lambda i, need=need: bool(missing_value(records[i], need)), len(records)))
        if lacking.size:
            first = int(lacking[0])
            more = f"; {lacking.size} of {len(records)} pairs lack it" if lacking.size > 1 else ""
            raise UserError(f"{key}: {records.place(first)} has {missing_value(records[first], need)}{more}")


def check(check: Checking, name: str) -> None:
    """Raises `UserError` for a section whose keys do not go together, and for references that are none."""
    section = check.config[name]
    try:
        check_section(section)
    except UserError as error:  # it begins with the key
        raise UserError(f"{name}.{error}") from error
    for reference in section.references:
        check.reference(name, "references", reference, ("policy",))
    for key in (part for source in SOURCES for part in parts_of(section, source)):
        source = value_at(section, key)
        carried = {"gold": (), OF_STAGE: _made(check, source)}.get(source.kind, needs_of(section))
        if lacking := [need for need in needs_of(section) if need not in carried]:
            pairs = "the built-in pairs have" if source.kind == "gold" else f"the pairs of {source.path!r} have"
            raise UserError(
                f"{name}.{key}.kind={source.kind!r}: {pairs} no {', '.join(lacking)}, which {name} reads "
                f"(label={section.label!r}); take pairs that carry them"
            )
    file = local_path(section.precomputed) / REFERENCES_FILE
    if section.precomputed and not file.is_file():
        raise UserError(f"{name}.precomputed={section.precomputed!r}: there is no {file}; leave it out to ask anew")


def _made(check: Checking, source: ConfigDict) -> tuple[str, ...]:
    """The values that pairs of an earlier stage carry, where the source names one."""
    if source.kind != OF_STAGE or source.path not in check.config.stages:
        return ()
    made = check.config[source.path]
    scored = ("scores",) if any(map(check.scores, filter(None, (made.judge, made.scorer)))) else ()
    return ("wins", *scored, *(("meta.certainty",) if made.agrees_with else ()))


def reads(name: str, section: ConfigDict, key: str) -> Iterator[Reads]:
    """Who reads the pairs: the policy, with the values that its loss needs. References have the same tokenizer."""
    yield Reads(name, needs=needs_of(section))


FIT = supervised.Fit(objective, pairs=True)
KIND = Kind(
    name="direct",
    family="policy",
    declare=declare,
    rules=Rules(
        sources=SOURCES,
        choices={"label": tuple(LABELS), "length": LENGTHS, "sft_length": LENGTHS, "result": RESULTS},
        at_least={**supervised.SIZES, **supervised.ROOM, "sft_weight": 0, "beta_scale": 0, "beta_scale_rate": 0},
        from_data=tuple(supervised.ROOM),
        **{
            **supervised.RULES,
            "stages": {"init_from": ("policy",)},
            "models": ("init_from", "references"),
            "unions": ("loss",),
        },
    ),
    checks=(*supervised.CHECKS, check),
    run=run,
    reads=reads,
    costs=direct_costs(FIT),
    spent=lambda context, check: by_records(context, "preference", 2),
    writes="policy",
    card=supervised.policy_card,
)
