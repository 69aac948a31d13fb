"""The functions that the stages of a config run on the devices, traced from abstract arrays for any mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.stages import Traced
from ml_collections import ConfigDict

from prl_jax.costs.holdings import Holdings, held_judges
from prl_jax.costs.models import AbstractJudge, AbstractModels
from prl_jax.judges.generative import judge_rows
from prl_jax.judges.scalar import score_rows
from prl_jax.models import CACHE_AXES, Decoder, ScalarModel
from prl_jax.processes import whole_batch
from prl_jax.sampling import SamplingConfig, decode, prefill
from prl_jax.stages import bradley_terry, generative
from prl_jax.stages.win_rate import log_ratio
from prl_jax.training.ppo import CriticContext, PPOConfig, PPOState, make_update, prepare
from prl_jax.training.rollout import Experience
from prl_jax.training.sft import SFT
from prl_jax.training.step import make_train_step, make_validation
from prl_jax.types import PreferenceBatch, Rollout, SFTBatch


class Step(NamedTuple):
    """A function of a stage.

    Attributes:
      stage, function: their names.
      traced: `.jaxpr`, and `.lower().compile()`.
      arguments: abstract arrays that it is called with.
      held: what the stage keeps on the devices while it runs, by what it is: `{"policy": ...}`. Functions read some of
        it. Models that share arrays share abstract arrays.
      cache: the key-value cache that it reads or makes.
    """

    stage: str
    function: str
    traced: Traced
    arguments: Any
    held: Mapping[str, Any]
    cache: Any = ()

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.function}"


def abstract_steps(config: ConfigDict, mesh: Mesh) -> Iterator[Step]:
    """Every function that costs something, of every stage, in the order in which a run first calls it.

    Call it, and lower and compile what it yields, inside `jax.set_mesh(mesh)`, as a run does.

    Args:
      config: the model directories that it names need no more than their `config.json`.
      mesh: of any devices, those of a machine that is not there included.
    """
    models = AbstractModels(config, mesh)
    steps = _Steps(config, models, Holdings(config, models))
    for name in config.stages:
        yield from {
            "sft": steps.supervised,
            "bradley_terry": steps.supervised,
            "generative": steps.supervised,
            "anchors": steps.anchors,
            "ppo": steps.ppo,
            "evaluation": steps.evaluation,
        }[config[name].kind](name)


@dataclasses.dataclass(frozen=True)
class _Steps:
    config: ConfigDict
    models: AbstractModels
    holdings: Holdings

    def supervised(self, name: str) -> Iterator[Step]:
        section, rows, token_rows = self.config[name], self.models.rows, self.models.token_rows
        size = section.batch_size
        state, optimizer, held = self.holdings.supervised(name)
        batch: PreferenceBatch | SFTBatch
        if section.kind == "sft":
            length, objective = section.max_prompt + section.max_response, SFT
            batch = SFTBatch(token_rows(size, length), rows(size, length), rows(size, length, dtype=bool))
        else:
            if section.kind == "generative":
                objective = generative.objective(section, self.models.tokens(name).verdicts)
                length = section.max_length
            else:
                objective = bradley_terry.objective(section)
                length = section.max_prompt + section.max_response
            weight = rows(size, dtype=jnp.float32)
            batch = PreferenceBatch(token_rows(size, length), token_rows(size, length), weight, weight)
        dropout = jax.random.key(0) if section.lora.dropout else None
        step = make_train_step(objective, optimizer, section.accumulate, dropout=dropout)
        yield Step(name, "train_step", step.trace(state, batch), (state, batch), held)
        validation = make_validation(objective).trace(state.model, batch)
        yield Step(name, "validation", validation, (state.model, batch), held)

    def anchors(self, name: str) -> Iterator[Step]:
        section = self.config[name]
        if section.choice != "best_of_n":
            return
        policy, judge, held = self.holdings.anchors(name)
        sampling = self.sampling(section.policy, temperature=section.temperature)
        yield from self.generate(name, section.policy, policy, section.batch_size, sampling, held)
        yield from self.judge(name, judge, section.batch_size, None, held)

    def ppo(self, name: str) -> Iterator[Step]:
        section, models = self.config[name], self.models
        config, state, optimizers, reference, judges, held = self.holdings.ppo(name)
        policy = state.policy
        size = section.prompts_per_step * section.group_size
        sampling = self.sampling(
            section.policy, temperature=section.temperature, top_k=section.top_k, top_p=section.top_p
        )
        yield from self.generate(name, section.policy, policy.model, size, sampling, held)
        scored = size if section.reward == "score" else 2 * size * self.opponents(section)
        yield from self.judge(name, judges[section.judge], section.judge_batch_size, scored, held)
        yield from self.learn(name, config, optimizers, state, reference, held)
        # Evaluations, where they ask more than training did, or somebody else.
        limit, prefix = section.evaluation.prompts.limit, "evaluation_"
        tested = whole_batch(min(limit or section.evaluation.batch_size, section.evaluation.batch_size), models.mesh)
        asks = self.sampling(section.policy, temperature=section.evaluation.temperature)
        if tested > size or asks != sampling:
            yield from self.generate(name, section.policy, policy.model, tested, asks, held, prefix)
        if section.evaluation.judge != section.judge or not scored >= 2 * limit > 0:
            judge, pairs = judges[section.evaluation.judge], 2 * limit or None
            yield from self.judge(name, judge, section.judge_batch_size, pairs, held, prefix)

    def learn(
        self, name: str, config: PPOConfig, optimizers: tuple, state: PPOState, reference: Decoder, held: Mapping
    ) -> Iterator[Step]:
        """What follows on a rollout and its rewards."""
        section, rows, token_rows = self.config[name], self.models.rows, self.models.token_rows
        size, (before, room) = section.prompts_per_step * section.group_size, self.models.lengths(section.policy)
        mask, number = rows(size, room, dtype=bool), rows(size, room, dtype=jnp.float32)
        prompt, prompt_mask, truncated = rows(size, before), rows(size, before, dtype=bool), rows(size, dtype=bool)
        rollout = Rollout(prompt, prompt_mask, rows(size, room), mask, number, truncated)
        # A marker and an anchor stand before the prompt that a privileged critic reads.
        read = before + section.critic_sees_anchor * (1 + room)
        context = CriticContext(rows(size, read), rows(size, read, dtype=bool))
        frozen = (state, reference, rollout, context, self.models.whole(size, dtype=jnp.float32))
        yield Step(name, "prepare", prepare.trace(*frozen, config=config), frozen, held)
        experience = Experience(
            token_rows(size, before + room),
            token_rows(size, read + room),
            rows(size, room),
            mask,
            mask,
            *(number for _ in range(5)),
        )
        index = self.models.whole(size // config.minibatches, dtype=jnp.int32)
        arguments = (state, experience, index, self.models.whole(dtype=bool))
        yield Step(name, "update", make_update(config, *optimizers).trace(*arguments), arguments, held)

    def evaluation(self, name: str) -> Iterator[Step]:
        section, models = self.config[name], self.models
        for key in section.judges:
            judge = models.judge(key)
            pairs = 2 * section.pairs.limit or None
            yield from self.judge(name, judge, section.batch_size, pairs, held_judges({key: judge}), f"{key}_")
        if not section.baseline:
            return
        baseline, policy, judge, held = self.holdings.evaluation(name)
        sampling = self.sampling(section.baseline, temperature=section.temperature)
        yield from self.generate(name, section.baseline, policy, section.batch_size, sampling, held)
        size, (before, room) = section.batch_size, models.lengths(section.baseline)
        rollout = Rollout(
            models.rows(size, before),
            models.rows(size, before, dtype=bool),
            models.rows(size, room),
            models.rows(size, room, dtype=bool),
            models.rows(size, room, dtype=jnp.float32),
            models.rows(size, dtype=bool),
        )
        arguments = (policy, baseline, rollout)
        yield Step(name, "log_ratio", log_ratio.trace(*arguments, section.temperature or 1.0), arguments, held)
        yield from self.judge(name, judge, section.batch_size, 2 * section.prompts.limit or None, held)

    def generate(
        self,
        stage: str,
        policy: str,
        model: Decoder,
        size: int,
        sampling: SamplingConfig,
        held: Mapping[str, Any],
        prefix: str = "",
    ) -> Iterator[Step]:
        """Responses to `size` prompts of the lengths of a policy."""
        rows, (before, _) = self.models.rows, self.models.lengths(policy)
        arguments = (model, rows(size, before), rows(size, before, dtype=bool))
        read = prefill.trace(*arguments, config=sampling)
        hidden, cache = self.models.placed(read.out_info, CACHE_AXES)
        yield Step(stage, f"{prefix}prefill", read, arguments, held, cache)
        keys = self.models.whole(size, dtype=jax.eval_shape(lambda: jax.random.key(0)).dtype)
        further = (model, hidden, cache, keys)
        yield Step(stage, f"{prefix}decode", decode.trace(*further, config=sampling), further, held, cache)

    def judge(
        self,
        stage: str,
        judge: AbstractJudge | None,
        batch_size: int,
        count: int | None,
        held: Mapping[str, Any],
        prefix: str = "",
    ) -> Iterator[Step]:
        """`count` rows, if that is known, in batches of at most `batch_size`."""
        if judge is None:
            return
        size = batch_size if count is None else min(batch_size, 1 << (count - 1).bit_length())
        arguments = (judge.model, self.models.token_rows(whole_batch(size, self.models.mesh), judge.length))
        scalar = isinstance(judge.model, ScalarModel)
        traced = score_rows.trace(*arguments) if scalar else judge_rows.trace(*arguments, verdicts=judge.verdicts)
        yield Step(stage, f"{prefix}judge", traced, arguments, held)

    def sampling(self, policy: str, **values: Any) -> SamplingConfig:
        tokens = self.models.tokens(policy)
        return SamplingConfig(self.models.lengths(policy)[1], (tokens.stop,), tokens.pad, **values)

    def opponents(self, section: ConfigDict) -> int:
        """Comparisons of a response."""
        if section.opponents == "anchor":
            anchors = self.config[section.anchors]
            return anchors.keep if anchors.choice == "best_of_n" else 1
        return {"peer": 1, "group": section.group_size - 1, "pool": section.opponent_draws}[section.opponents]
