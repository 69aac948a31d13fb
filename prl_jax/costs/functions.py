"""Functions that a stage runs on the devices, traced from abstract arrays for any mesh; and those that stages share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.stages import Traced

from prl_jax.artifacts.cards import ModelCard
from prl_jax.costs.models import AbstractJudge, AbstractModels
from prl_jax.judges.generative import judge_rows
from prl_jax.judges.likelihood import frozen_log_probs
from prl_jax.judges.scalar import score_rows
from prl_jax.models import CACHE_AXES, ScalarModel
from prl_jax.processes import whole_batch
from prl_jax.runs.models import Policy
from prl_jax.sampling import SamplingConfig, decode, prefill, slots_of
from prl_jax.types import Rollout, SFTBatch


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


def generating(
    models: AbstractModels,
    stage: str,
    policy: Policy,
    size: int,
    sampling: SamplingConfig,
    held: Mapping[str, Any],
    prefix: str = "",
    group: int = 1,
) -> Iterator[Step]:
    """The functions that give `size` responses, `group` of them to a prompt, of the lengths of a policy.

    Continuous batching is one function, with a loop as long as the responses happen to be; here it counts as a batch of
    the rows that it holds at a time.
    """
    rows, before = models.rows, policy.card.max_prompt
    size = max(slots_of(size, sampling.max_new_tokens, group) // group, 1) * group
    arguments = (policy.model, rows(size // group, before), rows(size // group, before, dtype=bool))
    read = prefill.trace(*arguments, config=sampling, group=group)
    hidden, cache = models.placed(read.out_info, CACHE_AXES)
    yield Step(stage, f"{prefix}prefill", read, arguments, held, cache)
    keys = models.whole(size, dtype=jax.eval_shape(lambda: jax.random.key(0)).dtype)
    seen = (rows(size, policy.model.config.vocab_size, dtype=bool),) if sampling.repetition_penalty != 1.0 else ()
    further = (policy.model, hidden, cache, keys, *seen)
    yield Step(stage, f"{prefix}decode", decode.trace(*further, config=sampling), further, held, cache)


def judging(
    models: AbstractModels,
    stage: str,
    judge: Sequence[AbstractJudge],
    batch_size: int,
    count: int | None,
    held: Mapping[str, Any],
    prefix: str = "",
) -> Iterator[Step]:
    """The function of each model of a judge that judges `count` rows, if that is known, in batches of at most
    `batch_size`; those of several models have numbers."""
    size = batch_size if count is None else min(batch_size, 1 << (count - 1).bit_length())
    for number, one in enumerate(judge, 1):
        rows = models.token_rows(whole_batch(size, models.mesh), one.length)
        arguments: Any = (one.model, rows)
        if one.verdicts is None:
            arguments = (one.model, SFTBatch(rows, rows.tokens, models.rows(*rows.tokens.shape, dtype=bool)))
            traced = frozen_log_probs.trace(*arguments)
        elif isinstance(one.model, ScalarModel):
            traced = score_rows.trace(*arguments)
        else:
            traced = judge_rows.trace(*arguments, verdicts=one.verdicts)
        yield Step(stage, f"{prefix}{f'{number}_' if judge[1:] else ''}judge", traced, arguments, held)


def abstract_rollout(models: AbstractModels, size: int, card: ModelCard) -> Rollout:
    """`size` responses of a policy, as they come from its sampler."""
    rows, before, room = models.rows, card.max_prompt, card.max_response
    return Rollout(
        rows(size, before),
        rows(size, before, dtype=bool),
        rows(size, room),
        rows(size, room, dtype=bool),
        rows(size, room, dtype=jnp.float32),
        rows(size, dtype=bool),
    )
