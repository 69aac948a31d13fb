"""The models of a stage, made by one construction for two purposes: arrays from directories, or abstract arrays.

A run hands `LoadedModels` to the construction of a stage, a plan hands it `costs.AbstractModels`. What a stage holds is
thereby said once.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import ModelCard, read_card, sampling_config
from prl_jax.artifacts.models import (
    Trunks,
    load_decoder,
    load_judge,
    load_policy,
    load_reader,
    load_values,
    model_tokenizer,
)
from prl_jax.config.durations import to_steps
from prl_jax.errors import naming
from prl_jax.file_names import DATA_DIR
from prl_jax.judges import Judge, PolicyReader
from prl_jax.models import LOGICAL_AXES, Decoder, DecoderConfig, ScalarModel
from prl_jax.optim import make_optimizer
from prl_jax.runs.context import (
    StageContext,
    adapted,
    base_name,
    stage_tokenizer,
    start_of,
    trainable,
    with_structure,
)
from prl_jax.runs.judges import JUDGES
from prl_jax.runs.judges.kind import Surroundings
from prl_jax.sampling import SamplingConfig
from prl_jax.sharding import replicated, sharded_init
from prl_jax.streams import Stream
from prl_jax.text.tokenizer import Tokenizer, unsampled_ids
from prl_jax.training.state import TrainState, copied, create_state


class Policy(NamedTuple):
    """A policy, with what its directory says of it.

    Attributes:
      card: of its directory, or what will stand there.
      model: arrays, or abstract ones.
      tokenizer: None beside abstract arrays.
    """

    card: ModelCard
    model: Decoder
    tokenizer: Tokenizer | None = None


@runtime_checkable
class Models(Protocol):
    """Where a stage gets its models from. Names are those of a config: a stage, or a model directory.

    Attributes:
      config: the whole config.
      mesh: where the arrays are, or would be.
    """

    @property
    def config(self) -> ConfigDict: ...
    @property
    def mesh(self) -> Mesh: ...

    def policy(self, name: str) -> Policy:
        """A policy that is not trained, its adapters merged."""

    def sampling(self, name: str, **values: Any) -> SamplingConfig:
        """Returns how a policy's responses are sampled; `values` as of `sampling_of`."""

    def trainable(self, stage: str, *, stream: Stream = Stream.ADAPTERS, judge: bool = False) -> Decoder:
        """Returns the model that a stage trains: a copy of what it starts from, in float32; or the same arrays with
        adapters, which have other random numbers in each stream; or a new model. A copy that becomes a judge has the
        tokens of its rows prepared (`with_structure`); any other one is what it starts from to the last bit."""

    def scalar(self, decoder: Decoder, *, bias: float | None = None) -> ScalarModel:
        """A decoder with a scalar head; a bias belongs to a critic."""

    def values(self, stage: str, source: str) -> ScalarModel:
        """Returns the critic of a stage that starts as the model of another name: a judge that scores, or the critic of
        an earlier stage."""

    def judge(self, name: str, *, batch_size: int) -> Any:
        """A judge that is asked about so many rows at once."""

    def copy(self, model: Decoder) -> Decoder:
        """The same model; what is trained of it has arrays of its own."""

    def state(self, model: Decoder | ScalarModel, optimizer: Any) -> TrainState:
        """A model before its first update."""

    def number(self, value: float) -> Any:
        """A float32 number of a state."""


@dataclasses.dataclass(frozen=True)
class LoadedModels:
    """The models of a stage that runs.

    Attributes:
      context: of the stage.
      trunks: frozen decoders that are in memory, for whoever else is made of them. By default each is freed with its
        last user; a plain dict keeps it.
    """

    context: StageContext
    trunks: Trunks = dataclasses.field(default_factory=weakref.WeakValueDictionary)

    @property
    def config(self) -> ConfigDict:
        return self.context.config

    @property
    def mesh(self) -> Mesh:
        return self.context.mesh

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of a stage which trains from text."""
        return stage_tokenizer(self.context)

    def policy(self, name: str) -> Policy:
        context = self.context
        return Policy(*load_policy(context.stage(name), context.mesh, self.trunks, context.defaults))

    def sampling(self, name: str, **values: Any) -> SamplingConfig:
        directory, defaults = self.context.stage(name), self.context.defaults
        with naming(self.context.name):
            return sampling_config(read_card(directory, defaults), model_tokenizer(directory, defaults), **values)

    def trainable(self, stage: str, *, stream: Stream = Stream.ADAPTERS, judge: bool = False) -> Decoder:
        context = dataclasses.replace(self.context, name=stage)
        section, start = context.section, start_of(context.section)
        if not start:
            silent = unsampled_ids(self.tokenizer, self.tokenizer.vocab_size, (self.tokenizer.eos_id,))
            values = {"vocab_size": self.tokenizer.vocab_size, "unsampled": silent}
            config = DecoderConfig.from_dict(context.config.model.to_dict(), **values)
            return sharded_init(lambda: Decoder(config, key=context.key), context.mesh, LOGICAL_AXES)
        # What is only copied is not kept.
        trunks = dict(self.trunks)
        decoder = load_decoder(context.stage(start), context.mesh, trunks, context.defaults)
        if section.lora.rank:
            return adapted(context, decoder, stream=stream)
        copy = trainable(decoder)
        return with_structure(copy, self.tokenizer) if judge else copy

    def scalar(self, decoder: Decoder, *, bias: float | None = None) -> ScalarModel:
        model = ScalarModel(decoder, bias=bias)
        model.scalar = jax.device_put(model.scalar, replicated(self.mesh))
        return model

    def values(self, stage: str, source: str) -> ScalarModel:
        model = load_values(self.context.stage(source), self.mesh, self.context.defaults)
        place = replicated(self.mesh)
        critic = ScalarModel(trainable(model.decoder), bias=0.0)
        critic.scalar = jax.device_put(jax.tree.map(jnp.copy, model.scalar), place)
        return critic

    def judge(self, name: str, *, batch_size: int) -> Judge:
        return named_judge(self.context, name, batch_size=batch_size, trunks=self.trunks)

    def copy(self, model: Decoder) -> Decoder:
        return copied(model)

    def state(self, model: Decoder | ScalarModel, optimizer: Any) -> TrainState:
        return create_state(model, optimizer, self.mesh, LOGICAL_AXES)

    def number(self, value: float) -> jax.Array:
        # Where the other leaves of a state are: another sharding would compile its update a second time.
        return jax.device_put(jnp.float32(value), replicated(self.mesh))


def named_judge(context: StageContext, name: str, *, batch_size: int, trunks: Trunks | None = None) -> Judge:
    """The judge of that name in the config's `judges`, else that of a stage or model directory.

    Args:
      context: of the stage that asks.
      name: of the judge.
      batch_size: rows that it is asked about at once.
      trunks: as of `load_model`.
    """
    section = context.config.judges.get(name, None)
    if section is None:
        length = dict(batch_size=batch_size, defaults=context.defaults)
        return load_judge(context.stage(name), context.mesh, trunks=trunks, **length)
    load = functools.partial(named_judge, context, batch_size=batch_size, trunks=trunks)
    with naming(f"judges.{name}"):
        return JUDGES[section.kind].load(section, surroundings(context, load, batch_size=batch_size, trunks=trunks))


def surroundings(
    context: StageContext, load: Callable[[str], Judge], *, batch_size: int = 1, trunks: Trunks | None = None
) -> Surroundings:
    """The surroundings of the judges of a stage, which `load` loads by their names; the rest as of `named_judge`."""

    def policy(name: str, criteria: str) -> PolicyReader:
        options = dict(batch_size=batch_size, trunks=trunks, defaults=context.defaults)
        return load_reader(context.stage(name), context.mesh, criteria=criteria, **options)

    return Surroundings(context.config, load, context.records, context.workdir.path / DATA_DIR, policy)


def origin_of(context: StageContext) -> dict[str, Any]:
    """Returns the part of a card that says where a stage's model comes from."""
    start = start_of(context.section)
    if not start:
        return {}
    base = context.stage(start)
    adapters = {"base": base_name(context, base)} if context.section.lora.rank else {}
    return {**read_card(base, context.defaults).origin, **adapters}


def stage_optimizer(section: ConfigDict, steps: int, updates: int = 1, *, key: str) -> Any:
    """The optimizer of a section.

    Args:
      section: see `config.optimizer`.
      steps: how many steps the stage takes with it; its warm-up is a duration in these.
      updates: updates in a step.
      key: names the section in messages.
    """
    values = section.to_dict()
    warmup = to_steps(values.pop("warmup"), key=f"{key}.warmup", total=steps)
    return make_optimizer(**values, warmup_steps=warmup * updates, total_steps=steps * updates)
