"""The step functions of a config on abstract arrays: shape-checked and compiled ahead of time, on any mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.stages import Lowered
from ml_collections import ConfigDict

from prl_jax.models import LOGICAL_AXES, Decoder, DecoderConfig, ScalarModel, split
from prl_jax.optim import make_optimizer
from prl_jax.sampling import SamplingConfig, generate
from prl_jax.sharding import batch_sharding, replicated, tree_shardings
from prl_jax.stages.artifacts import Defaults, abstract_model, read_card
from prl_jax.stages.context import is_directory, lora_config
from prl_jax.stages.reward_model import stage_objective
from prl_jax.training.ppo import CriticContext, PPOConfig, PPOState, make_update, prepare
from prl_jax.training.rollout import Experience
from prl_jax.training.sft import SFT
from prl_jax.training.state import TrainState
from prl_jax.training.step import make_train_step
from prl_jax.types import PreferenceBatch, Rollout, SFTBatch, TokenRows


def lowered_steps(config: ConfigDict, mesh: Mesh, *, vocab_size: int = 272) -> Iterator[tuple[str, Lowered]]:
    """Every function that the training stages of a config run on the mesh, lowered without an array.

    Args:
      config: the model directories that it names need no more than their `config.json`.
      mesh: of any devices, those of a machine that is not there included.
      vocab_size: of the run's tokenizer, where a stage starts from scratch.

    Yields:
      `stage/function` and what `.compile()` compiles.
    """
    plan = _Plan(config, mesh, vocab_size)
    for name in config.stages:
        kind = config[name].kind
        if kind in ("sft", "bradley_terry", "generative"):
            yield f"{name}/train_step", plan.train_step(name)
        elif kind == "ppo":
            yield from plan.ppo(name)


@dataclasses.dataclass(frozen=True)
class _Plan:
    config: ConfigDict
    mesh: Mesh
    vocab_size: int

    def decoder(self, name: str, *, trained: bool) -> DecoderConfig:
        """The decoder of a stage or directory, as another stage starts from it (`trained`) or uses it."""
        if is_directory(name):
            model = self.config.model
            defaults = Defaults(**self.config.huggingface.to_dict(), dtype=model.dtype, remat=model.remat)
            found = read_card(Path(name), defaults).config
        elif not name:
            found = DecoderConfig.from_dict(self.config.model.to_dict(), vocab_size=self.vocab_size)
        else:
            section = self.config[name]
            found = self.decoder(section.policy if section.kind == "ppo" else section.init_from, trained=True)
        return dataclasses.replace(found, param_dtype="float32" if trained else found.param_dtype)

    def adapted(self, section: ConfigDict, start: str) -> DecoderConfig:
        """The decoder that a stage trains."""
        if section.lora.rank:
            return dataclasses.replace(self.decoder(start, trained=False), lora=lora_config(section))
        return self.decoder(start, trained=True)

    def state(self, config: DecoderConfig, optimizer: Any, *, scalar: bool, bias: float | None = None) -> TrainState:
        """An abstract state, sharded as `create_state` shards a real one."""

        def make() -> Decoder | ScalarModel:
            decoder = Decoder(config, key=jax.random.key(0))
            return ScalarModel(decoder, bias=bias) if scalar else decoder

        model = abstract_model(make, self.mesh)
        moments = jax.eval_shape(optimizer.init, split(model)[0])
        shardings = tree_shardings(moments, self.mesh, LOGICAL_AXES)
        moments = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), moments, shardings)
        return TrainState(model, moments, self.scalar_array(jnp.int32))

    def scalar_array(self, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), dtype, sharding=replicated(self.mesh))

    def rows(self, *shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(self.mesh))

    def token_rows(self, *shape: int) -> TokenRows:
        return TokenRows(self.rows(*shape), self.rows(*shape), self.rows(*shape))

    def train_step(self, name: str) -> Lowered:
        section = self.config[name]
        optimizer, size = _optimizer(section.optimizer), section.batch_size
        batch: PreferenceBatch | SFTBatch
        if section.kind == "sft":
            length, objective = section.max_prompt + section.max_response, SFT
            batch = SFTBatch(
                self.token_rows(size, length), self.rows(size, length), self.rows(size, length, dtype=bool)
            )
        else:
            generative, objective = section.kind == "generative", stage_objective(section)
            length = section.max_length if generative else section.max_prompt + section.max_response
            weight = self.rows(size, dtype=jnp.float32)
            batch = PreferenceBatch(self.token_rows(size, length), self.token_rows(size, length), weight, weight)
        decoder = self.adapted(section, section.init_from)
        state = self.state(decoder, optimizer, scalar=section.kind == "bradley_terry")
        dropout = jax.random.key(0) if section.lora.dropout else None
        return make_train_step(objective, optimizer, section.accumulate, dropout=dropout).lower(state, batch)

    def ppo(self, name: str) -> Iterator[tuple[str, Lowered]]:
        section = self.config[name]
        config = PPOConfig(**section.algorithm.to_dict(), temperature=section.temperature)
        optimizers = _optimizer(section.policy_optimizer), _optimizer(section.critic_optimizer)
        decoder = self.adapted(section, section.policy)
        reference = abstract_model(
            lambda: Decoder(self.decoder(section.policy, trained=False), key=jax.random.key(0)), self.mesh
        )
        critic = self.state(decoder, optimizers[1], scalar=True, bias=section.value_init)
        policy = self.state(decoder, optimizers[0], scalar=False)
        state = PPOState(policy, critic, self.scalar_array(jnp.float32))
        size, (before, room) = section.prompts_per_step * section.group_size, self.lengths(section.policy)
        prompt, prompt_mask = self.rows(size, before), self.rows(size, before, dtype=bool)
        keys = jax.ShapeDtypeStruct((size,), jax.eval_shape(lambda: jax.random.key(0)).dtype)
        sampling = SamplingConfig(
            room, (0,), 0, temperature=section.temperature, top_k=section.top_k, top_p=section.top_p
        )
        yield f"{name}/generate", generate.lower(policy.model, prompt, prompt_mask, keys, config=sampling)
        mask, number = self.rows(size, room, dtype=bool), self.rows(size, room, dtype=jnp.float32)
        flag = self.rows(size, dtype=bool)
        rollout = Rollout(prompt, prompt_mask, self.rows(size, room), mask, number, flag)
        # A marker and an anchor stand before the prompt that a privileged critic reads.
        read = before + section.critic_sees_anchor * (1 + room)
        context = CriticContext(self.rows(size, read), self.rows(size, read, dtype=bool))
        score = self.rows(size, dtype=jnp.float32)
        yield f"{name}/prepare", prepare.lower(state, reference, rollout, context, score, config=config)
        rows, critic_rows = self.token_rows(size, before + room), self.token_rows(size, read + room)
        experience = Experience(rows, critic_rows, self.rows(size, room), mask, mask, *(number for _ in range(5)))
        index = jax.ShapeDtypeStruct((size // config.minibatches,), jnp.int32)
        update = make_update(config, *optimizers)
        yield f"{name}/update", update.lower(state, experience, index, jax.ShapeDtypeStruct((), bool))

    def lengths(self, name: str) -> tuple[int, int]:
        """Tokens of prompts and responses of a policy."""
        while name and not is_directory(name):
            section = self.config[name]
            if section.kind == "sft":
                return section.max_prompt, section.max_response
            name = section.policy if section.kind == "ppo" else section.init_from
        return self.config.huggingface.max_prompt, self.config.huggingface.max_response


def _optimizer(section: ConfigDict) -> Any:
    values = section.to_dict()
    values.pop("warmup")
    return make_optimizer(**values, total_steps=1000)
