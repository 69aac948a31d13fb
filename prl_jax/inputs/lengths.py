"""Lengths that a config leaves to its data: written as 0, they become as long as the data need.

`max_prompt` and `max_response` have room for each prompt and each response or reference answer that a model is given,
`max_length` of a generative judge for each comparison that it is asked for: the template's own tokens, the prompt and
two responses, of which a policy's may be as long as it may write. No length is beyond the model's context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import read_card
from prl_jax.config.rules import sources_in, value_at, whole_of
from prl_jax.errors import UserError, naming
from prl_jax.inputs.measurements import Measurements
from prl_jax.inputs.readings import Reader
from prl_jax.measuring.records import Measured
from prl_jax.runs.context import OF_STAGE, StageContext, is_directory, root_of, start_of
from prl_jax.stages import KINDS
from prl_jax.stages.kind import Checking

_ROOT = "huggingface"  # the section with the lengths of policies that are directories in Hugging Face's format
_LENGTHS = ("max_prompt", "max_response", "max_length")


class Use(NamedTuple):
    """A source, and the model that reads it.

    Attributes:
      stage, key: where the source stands.
      what: the kind of record.
      model: a stage, or a model directory.
      policy: whose responses to the prompts are read too; "" where the records hold all responses.
    """

    stage: str
    key: str
    what: str
    model: str
    policy: str = ""


def open_lengths(config: ConfigDict) -> list[str]:
    """Keys of the lengths that are 0, so that the data decide."""
    sections = (_ROOT, *config.stages)
    return [f"{name}.{key}" for name in sections for key in _LENGTHS if config[name].get(key, None) == 0]


def uses(config: ConfigDict) -> Iterator[Use]:
    """Who reads what."""
    known = Checking(config, KINDS)
    for name in config.stages:
        section, kind = config[name], known.kind(name)
        for key, what in sources_in(section, kind.rules):
            source = value_at(section, key)
            for reads in kind.reads(name, section, whole_of(key)):
                for model in known.behind(reads.model):
                    if not known.makes_model(model):
                        continue
                    if source.kind == OF_STAGE:  # the prompts of the stage that makes it, and its policies' responses
                        made = config[source.path]
                        for policy in (made.policy, *made.others):
                            yield Use(source.path, "prompts", "prompt", model, policy)
                    else:
                        yield Use(name, key, what, model, reads.policy)


def with_lengths(
    config: ConfigDict,
    surroundings: Callable[[ConfigDict], StageContext],
    measurements: Measurements,
    *,
    known: Mapping[str, Any] = MappingProxyType({}),
    tell: Callable[[str], None] = lambda line: None,
    absent: bool = False,
) -> ConfigDict:
    """The config with every length given; itself where it leaves none to the data.

    Args:
      config: checked by `check_config`.
      surroundings: gives the context of any stage of a config: where sources and tokenizers are.
      measurements: of the data, which are made where they are not there yet.
      known: the config of the run that this one continues; its lengths stay.
      tell: takes a line about each length.
      absent: the data are not needed for more than lengths, so that an error about them names the keys to give instead.

    Raises:
      UserError: a source cannot be read.
    """
    keys = open_lengths(config)
    if not keys:
        return config
    found = ConfigDict(config.to_dict())
    for key in keys:
        name, _, what = key.partition(".")
        found[name][what] = known.get(name, {}).get(what, 0)
    if open_lengths(found):
        try:
            _Lengths(found, surroundings(found), measurements, tell).find()
        except UserError as error:
            if not absent:
                raise
            flags = " ".join(f"--config.{key}=N" for key in open_lengths(found))
            raise UserError(f"{error} (lengths are taken from the data unless they are given: {flags})") from error
    return found.lock()


@dataclasses.dataclass(frozen=True)
class _Lengths:
    """Puts the lengths that are missing into a config."""

    config: ConfigDict
    surroundings: StageContext
    measurements: Measurements
    tell: Callable[[str], None]

    def find(self) -> None:
        """Finds the lengths of policies first: judges read what these may write."""
        read = list(uses(self.config))
        self.policy(_ROOT, [use for use in read if is_directory(self.owner(use.model)) and not use.policy])
        for writes in ("policy", "scalar_judge", "generative_judge"):
            for name in (name for name in self.config.stages if self.known.kind(name).writes == writes):
                stage_uses = [use for use in read if self.owner(use.model) == name]
                if "max_length" in self.config[name]:
                    self.judge(name, stage_uses)
                elif "max_prompt" in self.config[name]:
                    self.policy(name, stage_uses)

    def policy(self, name: str, stage_uses: Sequence[Use]) -> None:
        """Lengths of prompts and of single responses."""
        section = self.config[name]
        if not stage_uses or 0 not in (section.max_prompt, section.max_response):
            return
        measured = [self.measured(use) for use in stage_uses]
        prompts = np.concatenate([one.lengths["prompt"] for one in measured])
        responses = np.concatenate([one.lengths[key] for one in measured for key in ("response", "rejected")])
        # Where rows cannot be read, any length will do: the check of the data comes next and says which and why.
        least = int(any(len(one.problems) for one in measured))
        prompt = section.max_prompt or friendly(max(int(prompts.max()), least))
        written = [self.room(use.policy) for use in stage_uses if use.policy]
        response = section.max_response or friendly(max([int(responses.max()), *written, least]))
        if not response:
            flag = f"--config.{name}.max_response=N"
            raise UserError(f"{name}.max_response: no record has a response to take its length from; give {flag}")
        contexts = [context for use in stage_uses if (context := self.limit(use.model))]
        if contexts and prompt + response > min(contexts):  # what is given stays; what is not shares what there is
            most = min(contexts)
            response = section.max_response or min(response, max(most - prompt, most // 2))
            prompt = section.max_prompt or min(prompt, most - response)
            if prompt < 2:  # as short as a length may be
                given = f"{name}.max_response={response}"
                raise UserError(f"{given} leaves no room for prompts: the model's context holds {most}; set less")
        self.put(name, "max_prompt", prompt, prompts)
        self.put(name, "max_response", response, responses)

    def judge(self, name: str, stage_uses: Sequence[Use]) -> None:
        """The length of a row with a prompt and two responses, either of which may be a policy's."""
        rows = []
        for use in stage_uses:
            one = self.measured(use)
            # A response that runs out of room has no token that ends it.
            longest = max(self.room(use.policy), one.longest("response") - 1) if use.policy else 0
            rows.append(one.lengths["frame"] + 2 * longest if use.policy else one.judged)
        if stage_uses and not self.config[name].max_length:
            needed, most = np.concatenate(rows), self.limit(name)
            length = friendly(int(needed.max()))
            self.put(name, "max_length", min(length, most) if most else length, needed)

    def put(self, name: str, key: str, length: int, needed: np.ndarray) -> None:
        """Sets a length that is missing, and says what it was taken from and what it cuts."""
        if self.config[name][key]:
            return
        self.config[name][key] = length
        cut = int((needed > length).sum())
        more = f"; {cut} of {len(needed)} are cut to what the model's context holds" if cut else ""
        usual = friendly(int(np.quantile(needed, 0.99)))
        more += f"; {usual} would do for 99 %" if 2 * usual <= length else ""
        self.tell(f"{name}.{key}={length}: the data need {int(needed.max())}{more}")

    def measured(self, use: Use) -> Measured:
        """The records of a source in tokens of a model."""
        reader = Reader(root_of(self.config, use.model))
        owner = self.owner(use.model)
        if owner in self.config.stages and (asks := self.known.card(owner).asks):
            reader = reader._replace(template=asks, chat=False)
        with naming(f"{use.stage}.{use.key}"):
            return self.measurements(self.context(use.stage), use.key, use.what, reader)

    @property
    def known(self) -> Checking:
        return Checking(self.config, KINDS)

    def context(self, stage: str) -> StageContext:
        return dataclasses.replace(self.surroundings, name=stage, config=self.config)

    def owner(self, model: str) -> str:
        """The stage that says with which lengths a model is used, or its directory."""
        while not is_directory(model) and self.known.kind(model).card is None:
            model = start_of(self.config[model])
        return model

    def room(self, policy: str) -> int:
        """Tokens that a policy may write."""
        owner = self.owner(policy)
        if not is_directory(owner):
            return self.config[owner].max_response
        return read_card(Path(owner), self.context(self.config.stages[0]).defaults).max_response

    def limit(self, model: str) -> int:
        """Tokens of a model's context; 0 where it has no limit."""
        name = root_of(self.config, model)
        return read_card(Path(name)).context if name else 0


def friendly(length: int) -> int:
    """The next length that devices like: a multiple of 16, from 128 on of 64, from 1024 on of 128."""
    step = 16 if length <= 128 else 64 if length <= 1024 else 128
    return -(-length // step) * step
