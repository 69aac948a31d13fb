"""The models of a config as abstract arrays: shapes, dtypes and shardings, on devices that need not be there."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import ModelCard, trained_length
from prl_jax.artifacts.models import abstract_model
from prl_jax.models import LOGICAL_AXES, Decoder, DecoderConfig, ScalarModel, combine, split
from prl_jax.runs.context import is_directory, lora_config, root_of, start_of
from prl_jax.runs.judges import behind, scores
from prl_jax.runs.models import Policy
from prl_jax.sampling import SamplingConfig
from prl_jax.sharding import batch_sharding, replicated, tree_shardings
from prl_jax.streams import Stream
from prl_jax.text.judging import verdict_ids
from prl_jax.text.tokenizer import ByteTokenizer, HFTokenizer, unsampled_ids
from prl_jax.training.state import TrainState
from prl_jax.tree import flatten, unflatten
from prl_jax.types import TokenRows

# What data no plan reads would tell; schedules of optimizers depend on it, no cost does.
EXAMPLES = 100_000
Held = Mapping[str, Any]
"""Models that a stage holds, by their part in it: `{"policy": ...}`. Those that share arrays share abstract arrays."""


class Tokens(NamedTuple):
    """The ids that compiled functions hold: of the token that ends a response, of padding, of both verdicts."""

    stop: int = 1
    pad: int = 0
    verdicts: tuple[int, int] = (0, 1)


class AbstractJudge(NamedTuple):
    """A model of a judge as abstract arrays.

    Attributes:
      model: the arrays.
      length: the static length of its rows.
      verdicts: ids of both verdicts; None of a policy, of which all log-probabilities of a response are read.
    """

    model: Decoder | ScalarModel
    length: int
    verdicts: tuple[int, int] | None

    @property
    def logits(self) -> int:
        """Tokens of a row whose logits are computed."""
        return self.length if self.verdicts is None else 1


@dataclasses.dataclass(frozen=True)
class AbstractModels:
    """The models that the stages of a config load and make (`runs.models.Models`). Models that share arrays in
    memory share abstract arrays here.

    Names of models are those of a config: a stage, a model directory (its config.json is enough), or "" for one made
    from scratch.

    Attributes:
      config: the whole config.
      mesh: of devices that need not be there.
      card: name of a model -> what its directory says, or will say, of it.
    """

    config: ConfigDict
    mesh: Mesh
    card: Callable[[str], ModelCard]

    @functools.cached_property
    def vocab_size(self) -> int:
        """The size of the vocabulary of models that the run makes from scratch."""
        section = self.config.tokenizer
        if section.kind == "huggingface":
            return HFTokenizer(Path(section.path)).vocab_size
        return section.vocab_size if section.kind == "bpe" else ByteTokenizer().vocab_size

    def tokens(self, name: str) -> Tokens:
        """The tokens of a model. Only the run's byte tokenizer is asked: others need files that may not be there, and
        change no cost."""
        if root_of(self.config, name) or self.config.tokenizer.kind != "byte":
            return Tokens()
        tokenizer, asks = ByteTokenizer(), self.card(name).asks
        verdicts = verdict_ids(tokenizer, asks) if asks else Tokens().verdicts
        return Tokens(tokenizer.eos_id, tokenizer.pad_id, verdicts)

    @property
    def unsampled(self) -> tuple[tuple[int, int], ...]:
        """The ids that no response of a new model has; known of the run's byte tokenizer, as `tokens` are."""
        if self.config.tokenizer.kind != "byte":
            return ()
        tokenizer = ByteTokenizer()
        return unsampled_ids(tokenizer, self.vocab_size, (tokenizer.eos_id,))

    def sampling(self, name: str, *, stop_token_ids: tuple[int, ...] = (), **values: Any) -> SamplingConfig:
        """As of `Models`."""
        tokens = self.tokens(name)
        # The id that stands for the stop token may be one of these: `sampling_config` refuses the real one.
        suppressed = tuple(i for i in values.pop("suppressed_tokens", ()) if i != tokens.stop)
        stops = (tokens.stop, *stop_token_ids)
        room = self.card(name).max_response
        return SamplingConfig(room, stops, tokens.pad, suppressed_tokens=suppressed, **values)

    def decoder_config(self, name: str) -> DecoderConfig:
        """The config of a model as it is stored, its adapters merged."""
        if is_directory(name):
            return dataclasses.replace(self.card(name).config, lora=None)
        if not name:
            values = {"vocab_size": self.vocab_size, "unsampled": self.unsampled}
            return DecoderConfig.from_dict(self.config.model.to_dict(), **values)
        section = self.config[name]
        found = self.decoder_config(start_of(section))
        trained_whole = start_of(section) and not section.lora.rank
        return dataclasses.replace(found, param_dtype="float32") if trained_whole else found

    @functools.cached_property
    def _decoders(self) -> dict[str, Decoder]:
        return {}

    def decoder(self, name: str) -> Decoder:
        """A model as another stage loads it, the same arrays each time."""
        if name not in self._decoders:
            config = self.decoder_config(name)
            self._decoders[name] = _another(_decoder(config, self.mesh))
        return self._decoders[name]

    def policy(self, name: str) -> Policy:
        """The same as in `Models`."""
        return Policy(self.card(name), self.decoder(name))

    def trained_config(self, stage: str) -> DecoderConfig:
        """The decoder that a stage trains."""
        section = self.config[stage]
        config = self.decoder_config(start_of(section))
        if section.lora.rank:
            return dataclasses.replace(config, lora=lora_config(section))
        return dataclasses.replace(config, param_dtype="float32") if start_of(section) else config

    def trainable(self, stage: str, *, stream: Stream = Stream.ADAPTERS, judge: bool = False) -> Decoder:
        """The same as in `Models`."""
        section = self.config[stage]
        fresh = _another(_decoder(self.trained_config(stage), self.mesh))
        if not section.lora.rank:
            return fresh
        return unflatten(fresh, flatten(fresh) | flatten(self.decoder(start_of(section))))

    def scalar(self, decoder: Decoder, *, bias: float | None = None) -> ScalarModel:
        """The same as in `Models`."""
        model = _another(_scalar(decoder.config, bias, self.mesh))
        return unflatten(model, flatten(model) | {f"decoder.{k}": leaf for k, leaf in flatten(decoder).items()})

    def values(self, stage: str, source: str) -> ScalarModel:
        """As of `Models`; of the architecture that the stage trains."""
        return self.scalar(self.trainable(stage), bias=0.0)

    def judge(self, name: str, *, batch_size: int = 0) -> tuple[AbstractJudge, ...]:
        """The same as in `Models`: the models that it asks, one after the other; none for a judge without arrays."""
        return tuple(self._judge(one) for one in behind(self.config.judges, name) if one not in self.config.judges)

    def _judge(self, name: str) -> AbstractJudge:
        """The model of a stage or directory."""
        card, verdicts = self.card(name), self.tokens(name).verdicts
        if card.kind == "policy":
            return AbstractJudge(self.decoder(name), trained_length(card), None)
        decoder = self.decoder(name) if is_directory(name) else self.trainable(name)
        model = self.scalar(decoder) if card.kind == "scalar_judge" else decoder
        return AbstractJudge(model, trained_length(card), verdicts)

    def scores(self, name: str) -> bool:
        """Whether a judge scores single responses."""
        return scores(self.config.judges, name, lambda one: self.card(one).kind == "scalar_judge")

    def copy(self, model: Decoder) -> Decoder:
        """As of `Models`."""
        trained, frozen = split(model)
        return combine(_another(trained), frozen)

    def state(self, model: Decoder | ScalarModel, optimizer: Any) -> TrainState:
        """The same as in `Models`; sharded as `create_state` shards a real one."""
        moments = self.placed(jax.eval_shape(optimizer.init, split(model)[0]), LOGICAL_AXES)
        return TrainState(model, moments, self.whole(dtype=jnp.int32))

    def number(self, value: float) -> jax.ShapeDtypeStruct:
        """The same as in `Models`."""
        return self.whole(dtype=jnp.float32)

    def placed(self, tree: Any, logical_axes: Mapping[str, tuple[str, ...]]) -> Any:
        """Abstract arrays with their shardings."""
        shardings = tree_shardings(tree, self.mesh, logical_axes)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)

    def whole(self, *shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        """An array that every device has."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(self.mesh))

    def rows(self, *shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        """Rows of a batch, cut over the devices."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(self.mesh))

    def token_rows(self, *shape: int) -> TokenRows:
        return TokenRows(self.rows(*shape), self.rows(*shape), self.rows(*shape))


@functools.lru_cache(maxsize=32)
def _decoder(config: DecoderConfig, mesh: Mesh) -> Decoder:
    return abstract_model(lambda: Decoder(config, key=jax.random.key(0)), mesh)


@functools.lru_cache(maxsize=32)
def _scalar(config: DecoderConfig, bias: float | None, mesh: Mesh) -> ScalarModel:
    return abstract_model(lambda: ScalarModel(Decoder(config, key=jax.random.key(0)), bias=bias), mesh)


def _another(model: Any) -> Any:
    """The same model in arrays of its own."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), model)


def bytes_per_device(tree: Any) -> float:
    """Returns the bytes of the different abstract arrays of a pytree; one that occurs twice counts once."""
    return float(sum(_bytes(leaf) for leaf in {id(leaf): leaf for leaf in jax.tree.leaves(tree)}.values()))


def _bytes(leaf: Any) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape) if getattr(leaf, "sharding", None) is not None else leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize


def held_bytes(held: Mapping[str, Any]) -> dict[str, float]:
    """Bytes of what a stage holds, by what it is; arrays that models share count for the first of them."""
    seen: set[int] = set()
    found = {}
    for what, tree in held.items():
        unseen = [leaf for leaf in jax.tree.leaves(tree) if id(leaf) not in seen]
        seen |= {id(leaf) for leaf in unseen}
        found[what] = bytes_per_device(unseen)
    return found


def held_judges(judges: Mapping[str, Sequence[AbstractJudge]]) -> dict[str, Any]:
    """The models of one or several judges, as a stage holds them."""
    found = tuple(one.model for judge in judges.values() for one in judge)
    return {"judge": found} if found else {}
