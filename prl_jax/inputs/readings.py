"""Which models read the records of a source, and how much of a record each of them has room for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prl_jax.artifacts.cards import read_card
from prl_jax.config.rules import GOLD
from prl_jax.measuring.records import Measured
from prl_jax.runs.context import StageContext, is_directory, root_of
from prl_jax.text.judging import JudgeTemplate


class Reader(NamedTuple):
    """A model that reads records.

    Attributes:
      tokenizer: the model directory whose tokenizer it has; "" for that of the run; None where records are only parsed.
      template, train_on, gold, chat, answered: see `Measurer`.
    """

    tokenizer: str | None = None
    template: JudgeTemplate | None = None
    train_on: str = "last"
    gold: bool = False
    chat: bool = True
    answered: bool = False


class Limit(NamedTuple):
    """How many tokens there is room for: `key` names it, `of` what is held against it (see `Measured`)."""

    key: str
    of: str
    tokens: int

    def lengths(self, measured: Measured) -> np.ndarray:
        """`[N]` tokens of each record that are held against it."""
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


def _readings(context: StageContext, key: str) -> Iterator[Reading]:
    section = context.section
    if section.kind == "sft":
        room = (
            Limit("max_prompt", "prompt", section.max_prompt),
            Limit("max_response", "responses", section.max_response),
        )
        yield Reading(Reader(root_of(context.config, section.init_from), train_on=section.train_on), room)
    elif section.kind == "bradley_terry":
        room = (
            Limit("max_prompt", "prompt", section.max_prompt),
            Limit("max_response", "responses", section.max_response),
        )
        yield Reading(Reader(root_of(context.config, section.init_from)), room)
    elif section.kind == "generative":
        template = JudgeTemplate(section.template, tuple(section.verdicts), section.shared_positions)
        # It reads prompts as plain text: whatever a chat template would refuse is nothing to it.
        reader = Reader(root_of(context.config, section.init_from), template, chat=False)
        yield Reading(reader, (Limit("max_length", "judged", section.max_length),))
    elif section.kind == "anchors":
        if section.choice == "reference":
            yield Reading(Reader(answered=True))
        else:
            yield _policy(context, section.policy)
            yield from _judge(context, section.judge, pairs=False)
    elif section.kind == "ppo":
        yield _policy(context, section.policy)
        yield from _judge(context, section.judge if key == "prompts" else section.evaluation.judge, pairs=False)
        if key == "prompts" and section.anchors:  # a prompt that has no anchors cannot be used
            yield from _readings(dataclasses.replace(context, name=section.anchors), key)
    elif key == "pairs":
        for judge in section.judges:
            yield from _judge(context, judge, pairs=True)
    else:
        yield _policy(context, section.baseline)
        yield from _judge(context, section.judge, pairs=False)


def _policy(context: StageContext, name: str) -> Reading:
    """A policy that is asked; how long a prompt it reads is what its training, or its directory, says."""
    tokenizer = root_of(context.config, name)
    while not is_directory(name) and context.config[name].kind == "ppo":
        name = context.config[name].policy
    if is_directory(name):
        tokens = read_card(Path(name), context.defaults).max_prompt
    else:
        tokens = context.config[name].max_prompt
    return Reading(Reader(tokenizer), (Limit("max_prompt", "prompt", tokens),))


def _judge(context: StageContext, name: str, *, pairs: bool) -> Iterator[Reading]:
    """A judge, of responses that are there already (`pairs`), or of those that will be made for a prompt."""
    if name == GOLD:
        yield Reading(Reader(gold=True))
        return
    template = None
    if is_directory(name):
        card = read_card(Path(name), context.defaults)
        tokens = card.max_prompt + (0 if card.template else card.max_response)
        if card.template:
            template = JudgeTemplate(**{**card.template, "verdicts": tuple(card.template["verdicts"])})
    else:
        section = context.config[name]
        if section.kind == "generative":
            tokens, template = section.max_length, JudgeTemplate(section.template, tuple(section.verdicts))
        else:
            tokens = section.max_prompt + section.max_response
    reader = Reader(root_of(context.config, name), template, chat=template is None)
    if pairs:
        yield Reading(reader, (Limit("max_length", "judged" if template else "scored", tokens),))
    elif template is None:  # a generative judge takes any prompt
        yield Reading(reader)
