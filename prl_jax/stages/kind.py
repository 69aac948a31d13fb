"""A kind of stage is one object. What walks over the stages of a config asks the kind of each, and knows no names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from prl_jax.artifacts.cards import Defaults, ModelCard, check_lengths, is_huggingface, read_card
from prl_jax.config.rules import NONE, Rules, names_at
from prl_jax.costs.functions import Step
from prl_jax.costs.models import AbstractModels, Held
from prl_jax.costs.work import Call, Estimate
from prl_jax.errors import UserError, naming
from prl_jax.gguf_file import is_gguf
from prl_jax.models.gguf import check_gguf
from prl_jax.models.hf.load import check_weights
from prl_jax.models.hf.peft import adapter_base
from prl_jax.runs.context import (
    StageContext,
    is_directory,
    lora_config,
    model_defaults,
    root_of,
    sampling_of,
    start_of,
)
from prl_jax.runs.judges import JUDGES, behind, scores
from prl_jax.sampling import SamplingConfig, check_ids
from prl_jax.stages.spent import Spent
from prl_jax.text.tokenizer import Tokenizer

_ANY_STOP, _ANY_ROOM = -1, 2**31 - 1  # what no config tells


class Reads(NamedTuple):
    """Somebody who reads the records of a source.

    Attributes:
      model: a stage (that of the source itself where it trains on the records), a model directory, or one of the
        config's judges; "" where the records are only looked at.
      policy: whose responses to the prompts are read too; "" where the records hold all responses.
      train_on, answered, needs: see `Measurer`.
    """

    model: str
    policy: str = ""
    train_on: str = "last"
    answered: bool = False
    needs: tuple[str, ...] = ()


def nothing(*_: Any) -> Iterator[Any]:
    """Returns no costs, for a stage that only handles text."""
    return iter(())


def batch_size_down(section: ConfigDict, stage: str, function: str, mesh: Mapping[str, int]) -> list[str]:
    """The keys that make a batch smaller."""
    return [f"{stage}.batch_size down"]


class Costs(NamedTuple):
    """The costs of a stage, estimated before it runs. The models are built by the same construction that the run uses.

    Attributes:
      functions: `(models, stage) -> the functions that it runs on the devices`, in the order of their first calls.
      held: `(models, stage) -> all that it holds on the devices`, one after the other.
      calls: `(estimate, stage) -> what its functions take`, about.
      smaller: `(section, stage, function, sizes of the mesh's axes) -> keys that make a function's batches smaller`.
    """

    functions: Callable[[AbstractModels, str], Iterator[Step]] = nothing
    held: Callable[[AbstractModels, str], Iterator[Held]] = nothing
    calls: Callable[[Estimate, str], Iterator[Call]] = nothing
    smaller: Callable[[ConfigDict, str, str, Mapping[str, int]], list[str]] = batch_size_down


def batch_rows(section: ConfigDict) -> tuple[str, int]:
    """How the rows of a batch are called, and how many there are."""
    return "batch_size", section.batch_size


@dataclasses.dataclass(frozen=True)
class Kind:
    """All that the package knows of a kind of stage.

    Sections of different kinds say the same things with the same keys: `max_prompt` and `max_response`, or
    `max_length`, are the lengths of the rows that a stage trains on; `init_from`, or `policy`, names the model that it
    starts from; `lora` are the adapters that it trains; a batch has `batch_size` rows.

    Attributes:
      name: `kind` of a section.
      family: of its result: "policy", "judge", "pairs", "anchors", "evaluation". It stands in `result.json`.
      declare: makes a section: its keys with their defaults, some of them replaced.
      rules: what a section may say.
      run: trains or evaluates, and returns a few numbers about the result.
      reads: `(name of the stage, section, key of a source) -> who reads its records`.
      checks: what else a section has to fulfil; each raises `UserError`.
      words: raises `UserError` where a section's words are none to the tokenizer of the model that the stage trains.
      rows: how the rows of a batch are called, and how many the mesh has to divide; 0 of a stage without batches.
      costs: what it takes of the devices.
      spent: what a finished stage has taken; None of a kind whose work is no part of a method's budget.
      writes: kind of the model directory that it writes, as its card has it ("policy", "scalar_judge",
        "generative_judge"); "" where it writes none.
      card: section -> card of that directory, as far as a config tells; None where it is that of the policy which the
        stage starts from.
    """

    name: str
    family: str
    declare: Callable[..., dict[str, Any]]
    rules: Rules
    run: Callable[[StageContext], dict[str, float]]
    reads: Callable[[str, ConfigDict, str], Iterator[Reads]]
    checks: Sequence[Callable[[Checking, str], None]] = ()
    words: Callable[[ConfigDict, Tokenizer], None] | None = None
    rows: Callable[[ConfigDict], tuple[str, int]] = batch_rows
    costs: Costs = Costs()
    spent: Callable[[StageContext, Checking], Spent] | None = None
    writes: str = ""
    card: Callable[[ConfigDict], ModelCard] | None = None


@dataclasses.dataclass(frozen=True)
class Checking:
    """A config that is checked before anything runs, with the kinds of its stages."""

    config: ConfigDict
    kinds: Mapping[str, Kind]

    def kind(self, stage: str) -> Kind:
        return self.kinds[self.config[stage].kind]

    def behind(self, name: str) -> tuple[str, ...]:
        """The names behind the name of a judge, see `runs.judges.behind`."""
        return behind(self.config.judges, name)

    def suits(self, name: str, families: Sequence[str]) -> bool:
        """Whether a name is that of a judge without a model which can stand where one of the families is expected."""
        section = self.config.judges.get(name, None)
        if section is None or self.behind(name) != (name,) or not only_judges(families):
            return False
        return "judge" in families or ("scalar_judge" in families and JUDGES[section.kind].scores(section))

    def scores(self, name: str) -> bool:
        """Whether a judge scores single responses: by its model or its members, where it has any."""
        return scores(
            self.config.judges, name, lambda one: self.makes_model(one) and self.card(one).kind == "scalar_judge"
        )

    def makes_model(self, name: str) -> bool:
        """Whether a model directory stands behind a name, now or when its stage has run."""
        if name in ("", *self.config.judges):
            return False
        return is_directory(name) or bool(self.kind(name).writes)

    def card(self, model: str) -> ModelCard:
        """Returns the card that the model of a stage, or of a model directory, has or will have."""
        if is_directory(model):
            return read_card(Path(model), model_defaults(self.config))
        section, kind = self.config[model], self.kind(model)
        if not kind.writes:
            raise UserError(f"{model}: a {kind.name} stage makes no model")
        return self.card(start_of(section)) if kind.card is None else kind.card(section)

    def reference(self, name: str, key: str, value: str, families: Sequence[str]) -> None:
        """Raises `UserError` unless `value`, which stands at a key of stage `name`, names an earlier stage of one of
        the families, or what stands for one (see `Rules.stages`)."""
        if value == "" and NONE in families:
            return
        if value in self.config.judges and only_judges(families) and self.behind(value) != (value,):
            section, kind = self.config.judges[value], JUDGES[self.config.judges[value].kind]
            expected = dict.fromkeys(kind.policies, ("policy",)) or {kind.members or "model": families}
            for named, wanted in expected.items():
                for one in names_at(section, named):
                    self.reference(name, f"{key}={value!r}: judges.{value}.{named}", one, wanted)
            return
        if self.suits(value, families):
            return
        kinds = [kind for family in families for kind in self.kinds.values() if family in (kind.family, kind.writes)]
        named = " or ".join(kind.name for kind in kinds)
        if is_directory(value):
            card = check_directory(self.config, f"{name}.{key}", value)
            if not any(kind.writes == card.kind for kind in kinds):
                raise UserError(f"{name}.{key}={value!r} holds a {card.kind}, expected the model of a {named}")
            return
        before = self.config.stages[: self.config.stages.index(name)]
        fit = [n for n in before if self.kind(n) in kinds]
        fit += [repr(judge) for judge in self.config.judges if self.suits(judge, families)]
        fit += ["'' for none"] if NONE in families else []
        expected = f"expected one of: {', '.join(fit)}" if fit else f"no stage before {name} is of kind {named}"
        if value in self.config.judges and "scalar_judge" in families:
            raise UserError(f"{name}.{key}={value!r} compares, and does not score single responses; {expected}")
        if value not in self.config.stages:
            raise UserError(f"{name}.{key}={value!r} is not among the stages; {expected}")
        if value not in before:
            raise UserError(
                f"{name}.{key}={value!r} does not run before {name}; change the order of stages, or {expected}"
            )
        if self.kind(value) not in kinds:
            raise UserError(f"{name}.{key}={value!r} is a {self.config[value].kind} stage; {expected}")

    def fits_context(self, name: str, needed: int, keys: str) -> None:
        """Raises `UserError` where the rows of a stage are longer than the context of the model that it starts from."""
        root = root_of(self.config, name)
        context = read_card(Path(root)).context if root else 0
        if context and needed > context:
            raise UserError(f"{keys}: take {needed} tokens, the context of the model holds {context}; give less")


def only_judges(families: Sequence[str]) -> bool:
    """Whether a judge is asked where these families are expected, so that the config's judges have names there; where
    a model is trained further or sampled from they have not."""
    return set(families) - {NONE} <= {"judge", "scalar_judge"}


def check_directory(config: ConfigDict, key: str, directory: str) -> ModelCard:
    """The card of a model directory that a key names, whose lengths have to fit where it is used with them, and the
    headers of whose weights, where they are there, have to fit its config.json."""
    lengths = config.huggingface
    with naming(key):
        card = read_card(Path(directory), Defaults(lengths.max_prompt, lengths.max_response))
        if not key.endswith(".init_from"):
            check_lengths(card, directory)
        weights = adapter_base(directory) or Path(directory)
        if is_gguf(weights):
            check_gguf(weights)
        elif is_huggingface(weights):
            check_weights(weights)
    return card


def check_lora(section: ConfigDict, name: str) -> bool:
    """Whether a stage trains adapters. Raises `UserError` for some that cannot be made."""
    if section.lora.rank < 0:
        raise UserError(f"{name}.lora.rank={section.lora.rank}, expected at least 0 (0 trains the whole model)")
    if section.lora.rank:
        with naming(name):
            lora_config(section)
    return bool(section.lora.rank)


def check_sampling(check: Checking, name: str, section: ConfigDict, policy: str) -> SamplingConfig:
    """Checks how a policy's responses are to be sampled, as far as a config tells.

    Args:
      name: of the section, in messages.
      section: has the keys `temperature` and `sampling`.
      policy: whose responses they are.

    Returns:
      What the sampler will be given, but for the tokens that only a tokenizer knows.

    Raises:
      UserError: a switch is out of range, or means nothing beside another one; it names the key.
    """
    values = sampling_of(section)
    with naming(name):
        SamplingConfig(1, (_ANY_STOP,), 0, temperature=values["temperature"])
    card, stops = check.card(policy), values.pop("stop_token_ids")
    try:
        for key, ids in (("stop_token_ids", stops), ("suppressed_tokens", values["suppressed_tokens"])):
            check_ids(key, ids, card.decoder.get("vocab_size"))
        return SamplingConfig(card.max_response or _ANY_ROOM, (_ANY_STOP, *stops), 0, **values)
    except UserError as error:  # it begins with the key
        raise UserError(f"{name}.sampling.{error}") from error
