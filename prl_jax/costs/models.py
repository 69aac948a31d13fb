"""The models of a config as abstract arrays: shapes, dtypes and shardings, on devices that need not be there."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import Defaults, ModelCard, read_card
from prl_jax.artifacts.models import abstract_model
from prl_jax.models import LOGICAL_AXES, Decoder, DecoderConfig, ScalarModel, split
from prl_jax.runs.context import is_directory, lora_config
from prl_jax.sharding import batch_sharding, replicated, tree_shardings
from prl_jax.text.judging import JudgeTemplate, verdict_ids
from prl_jax.text.tokenizer import ByteTokenizer, HFTokenizer
from prl_jax.training.state import TrainState
from prl_jax.tree import flatten, unflatten
from prl_jax.types import TokenRows


class Tokens(NamedTuple):
    """The ids that compiled functions hold: of the token that ends a response, of padding, of both verdicts."""

    stop: int = 1
    pad: int = 0
    verdicts: tuple[int, int] = (0, 1)


class AbstractJudge(NamedTuple):
    """A judge as abstract arrays, and the static length of its rows."""

    model: Decoder | ScalarModel
    length: int
    verdicts: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class AbstractModels:
    """What the stages of a config load and make. Models that share arrays in memory share abstract arrays here.

    Names of models are those of a config: a stage, a model directory (its config.json is enough), or "" for one made
    from scratch.
    """

    config: ConfigDict
    mesh: Mesh

    @functools.cached_property
    def vocab_size(self) -> int:
        """Of the models that the run makes from scratch."""
        section = self.config.tokenizer
        if section.kind == "huggingface":
            return HFTokenizer(Path(section.path)).vocab_size
        return section.vocab_size if section.kind == "bpe" else ByteTokenizer().vocab_size

    def tokens(self, name: str) -> Tokens:
        """Of the run's byte tokenizer. Others need files that may not be there, and change no cost."""
        if self.first_model(name) or self.config.tokenizer.kind != "byte":
            return Tokens()
        tokenizer = ByteTokenizer()
        section = self.config[name] if name else ConfigDict()
        if section.get("kind") != "generative":
            return Tokens(tokenizer.eos_id, tokenizer.pad_id)
        template = JudgeTemplate(section.template, tuple(section.verdicts), section.shared_positions)
        return Tokens(tokenizer.eos_id, tokenizer.pad_id, verdict_ids(tokenizer, template))

    def first_model(self, name: str) -> str:
        """The model directory that a model descends from; "" where that is none."""
        while name and not is_directory(name):
            name = _origin(self.config[name])
        return name

    def card(self, directory: str) -> ModelCard:
        """Of a model directory."""
        model = self.config.model
        return read_card(
            Path(directory), Defaults(**self.config.huggingface.to_dict(), dtype=model.dtype, remat=model.remat)
        )

    def lengths(self, name: str) -> tuple[int, int]:
        """Tokens of prompts and responses of a policy."""
        while name and not is_directory(name):
            section = self.config[name]
            if section.kind == "sft":
                return section.max_prompt, section.max_response
            name = _origin(section)
        card = self.card(name)
        return card.max_prompt, card.max_response

    def decoder_config(self, name: str) -> DecoderConfig:
        """Of a model as it is stored, its adapters merged."""
        if is_directory(name):
            return dataclasses.replace(self.card(name).config, lora=None)
        if not name:
            return DecoderConfig.from_dict(self.config.model.to_dict(), vocab_size=self.vocab_size)
        section = self.config[name]
        found = self.decoder_config(_origin(section))
        trained_whole = _origin(section) and not section.lora.rank
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

    def trainable(self, section: ConfigDict) -> Decoder:
        """What a stage trains: a copy in float32, or the same arrays with adapters."""
        start = _origin(section)
        config = self.decoder_config(start)
        if section.lora.rank:
            config = dataclasses.replace(config, lora=lora_config(section))
        elif start:
            config = dataclasses.replace(config, param_dtype="float32")
        own = _another(_decoder(config, self.mesh))
        return unflatten(own, flatten(own) | flatten(self.decoder(start))) if section.lora.rank else own

    def scalar(self, decoder: Decoder, *, bias: float | None = None) -> ScalarModel:
        """A scalar head on a decoder."""
        model = _another(_scalar(decoder.config, bias, self.mesh))
        return unflatten(model, flatten(model) | {f"decoder.{k}": leaf for k, leaf in flatten(decoder).items()})

    def judge(self, name: str) -> AbstractJudge | None:
        """A judge as it is loaded; None for one without arrays."""
        if name == "gold":
            return None
        tokens = self.tokens(name)
        if is_directory(name):
            card, decoder = self.card(name), self.decoder(name)
            if card.kind == "scalar_judge":
                return AbstractJudge(self.scalar(decoder), card.max_prompt + card.max_response, tokens.verdicts)
            return AbstractJudge(decoder, card.max_prompt, tokens.verdicts)
        section = self.config[name]
        decoder = self.trainable(section)
        if section.kind == "bradley_terry":
            return AbstractJudge(self.scalar(decoder), section.max_prompt + section.max_response, tokens.verdicts)
        return AbstractJudge(decoder, section.max_length, tokens.verdicts)

    def state(self, model: Decoder | ScalarModel, optimizer: Any) -> TrainState:
        """A state before the first update, sharded as `create_state` shards a real one."""
        moments = self.placed(jax.eval_shape(optimizer.init, split(model)[0]), LOGICAL_AXES)
        return TrainState(model, moments, self.whole(dtype=jnp.int32))

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


def _origin(section: ConfigDict) -> str:
    """The model that a stage starts from."""
    return section.policy if section.kind == "ppo" else section.init_from


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
    """Of the different abstract arrays of a pytree; one that is there twice counts once."""
    return float(sum(_bytes(leaf) for leaf in {id(leaf): leaf for leaf in jax.tree.leaves(tree)}.values()))


def _bytes(leaf: Any) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape) if getattr(leaf, "sharding", None) is not None else leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize


def held_bytes(held: Mapping[str, Any]) -> dict[str, float]:
    """Bytes of what a stage holds, by what it is; arrays that models share count for the first of them."""
    seen: set[int] = set()
    found = {}
    for what, tree in held.items():
        own = [leaf for leaf in jax.tree.leaves(tree) if id(leaf) not in seen]
        seen |= {id(leaf) for leaf in own}
        found[what] = bytes_per_device(own)
    return found
