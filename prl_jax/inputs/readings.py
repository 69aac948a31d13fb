"""Which models read the records of a source, and how much of a record each of them has room for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from prl_jax.artifacts.cards import trained_length
from prl_jax.config.rules import whole_of
from prl_jax.measuring.records import Measured
from prl_jax.runs.context import StageContext, root_of
from prl_jax.runs.judges import JUDGES
from prl_jax.stages import KINDS
from prl_jax.stages.kind import Checking, Reads
from prl_jax.text.judging import JudgeTemplate


class Reader(NamedTuple):
    """A model that reads records.

    Attributes:
      tokenizer: the model directory whose tokenizer it has; "" for that of the run; None where records are only parsed.
      template, train_on, gold, chat, answered, needs: see `Measurer`.
    """

    tokenizer: str | None = None
    template: JudgeTemplate | None = None
    train_on: str = "last"
    gold: bool = False
    chat: bool = True
    answered: bool = False
    needs: tuple[str, ...] = ()


class Limit(NamedTuple):
    """How many tokens there is room for.

    Attributes:
      key: names it.
      of: what is held against it (see `Measured`).
      tokens: the room.
      written: tokens of a response that a policy may write, of a judge that compares two of these; 0 where the records
        hold all that is read.
    """

    key: str
    of: str
    tokens: int
    written: int = 0

    def lengths(self, measured: Measured) -> np.ndarray:
        """`[N]` tokens of each record that are held against it."""
        if self.written:
            return measured.lengths["frame"] + 2 * self.written * (measured.lengths["frame"] > 0)
        if self.of == "responses":
            return np.maximum(measured.lengths["response"], measured.lengths["rejected"])
        return measured.lengths["prompt"] if self.of == "prompt" else getattr(measured, self.of)


class Reading(NamedTuple):
    """A reader with the room that it has."""

    reader: Reader
    limits: tuple[Limit, ...] = ()


def readings(context: StageContext, key: str) -> list[Reading]:
    """Who reads the records of a stage's source `key`; at least one reader."""
    return list(_readings(context, key)) or [Reading(Reader())]


def prompt_room(context: StageContext, key: str) -> int:
    """The most tokens of a prompt that a policy reads of a stage's source `key`; 0 where none does."""
    limits = [limit for _, limits in readings(context, key) for limit in limits]
    return max((limit.tokens for limit in limits if limit.of == "prompt"), default=0)


def _readings(context: StageContext, key: str) -> Iterator[Reading]:
    kind = KINDS[context.section.kind]
    known = Checking(context.config, KINDS)
    for reads in kind.reads(context.name, context.section, whole_of(key)):
        for name in known.behind(reads.model):
            judges = reads.model in context.config.judges
            yield from _reading(context, key, reads._replace(model=name), judges=judges)


def _reading(context: StageContext, key: str, reads: Reads, *, judges: bool) -> Iterator[Reading]:
    """One of them, with the room that it has; behind its name stands no other judge. `judges` tells a policy that a
    judge reads from one that samples."""
    known, model = Checking(context.config, KINDS), reads.model
    judge = context.config.judges.get(model, None)
    if judge is not None or not model:
        built_in = judge is not None and JUDGES[judge.kind].built_in_tasks
        yield Reading(Reader(gold=built_in, answered=reads.answered))
    elif not known.makes_model(model):  # a stage whose rows are read: it has them where its own readers can read
        yield from _readings(dataclasses.replace(context, name=model), key)
    else:
        card = known.card(model)
        # A judge with a template reads prompts as plain text: whatever a chat template would refuse is nothing to it.
        reader = Reader(
            root_of(context.config, model), card.asks, reads.train_on, chat=card.asks is None, needs=reads.needs
        )
        room = Limit("max_prompt", "prompt", card.max_prompt)
        trains = model == context.name and card.asks is None
        if trains or (judges and card.kind == "policy" and not reads.policy):
            yield Reading(reader, (room, Limit("max_response", "responses", card.max_response)))
        elif card.kind == "policy":
            yield Reading(reader, (room,))
        elif not reads.policy:
            of = "scored" if card.asks is None else "judged"
            yield Reading(reader, (Limit("max_length", of, trained_length(card)),))
        elif card.asks is None:
            yield Reading(reader)
        else:
            written = known.card(reads.policy).max_response
            yield Reading(reader, (Limit(f"{model}.max_length", "frame", trained_length(card), written),))
