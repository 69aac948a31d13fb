"""Win rates of policies: who judges, against what, with which random numbers.

Every policy that an evaluation measures, in the curves of training and in the final table alike, meets the same samples
of the opponent and draws its own with the same random numbers as every other policy (`evaluation_key`). What then
differs between two policies is the policies: equal ones have equal numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import read_card, sampling_config
from prl_jax.artifacts.models import model_tokenizer
from prl_jax.data.records import PromptRecord
from prl_jax.errors import naming
from prl_jax.evaluation import win_rate_summary
from prl_jax.judges import Judge, judge_pairs
from prl_jax.models import Decoder
from prl_jax.processes import batch_rows, fetch, put_batch, whole_batch
from prl_jax.runs.context import StageContext, sampling_of
from prl_jax.runs.pieces import Pieces
from prl_jax.sampling import SamplingConfig, Support, respond, unpadded
from prl_jax.stages.judging import judge_counters
from prl_jax.streams import evaluation_key
from prl_jax.text.chat import Prompt
from prl_jax.text.tokenizer import Tokenizer
from prl_jax.training.rollout import join_rows, response_logprobs
from prl_jax.types import Rollout

_MEASURED = ("win_rate", "win_rate_low", "win_rate_high")


class Sampled(NamedTuple):
    """`K` responses to each of `N` prompts: `texts[k][n]`, KL to the opponent in nats, tokens. Greedy ones have numbers
    for one of the `K` alone, which are all the same."""

    texts: list[list[str]]
    kl: Float[np.ndarray, "N K"]
    tokens: Float[np.ndarray, "N K"]


def policy_win_rate(
    context: StageContext,
    opponent: Decoder,
    tokenizer: Tokenizer,
    sampling: SamplingConfig,
    *,
    judge: Judge,
    max_prompt: int,
    section: ConfigDict,
) -> Callable[[Decoder], dict[str, float]]:
    """A function that measures a policy against the opponent's samples, one response each to the same prompts.

    What is not finite among its numbers, or has no value, is NaN, which the metrics write as null.
    """
    prompts = [record.prompt for record in context.records(section.prompts, "prompt")]

    def sample(model: Decoder, as_opponent: bool) -> list[str]:
        texts, _ = respond(
            model,
            tokenizer,
            prompts,
            config=sampling,
            key=evaluation_key(context.config.seed, opponent=as_opponent, sample=0),
            max_prompt=max_prompt,
            batch_size=whole_batch(min(len(prompts), section.batch_size), context.mesh),
            mesh=context.mesh,
            first_row=section.prompts.skip,
        )
        return texts

    @functools.cache  # once, for the first evaluation
    def opponents() -> list[str]:
        return sample(opponent, True)

    def measure(model: Decoder) -> dict[str, float]:
        others = opponents()
        judged = judge_pairs(judge, prompts, sample(model, False), others)
        found = win_rate_summary(judged.p_first)
        values = {key: np.nan if found[key] is None else found[key] for key in _MEASURED}
        counters = {"prompts_left_out": found["prompts_left_out"], "win_rate_cut_judgements": judged.cuts}
        counters |= {f"win_rate_{name}": count for name, count in judge_counters(judge).items()}
        return values | {name: float(count) for name, count in counters.items() if count}

    return measure


def sample_policy(
    context: StageContext,
    records: Sequence[PromptRecord],
    piece: Pieces,
    opponent: Decoder,
    policy: Decoder,
    name: str,
    *,
    temperature: float,
    times: int = 1,
    as_opponent: bool = False,
) -> Sampled:
    """Responses of a policy to the prompts of an evaluation stage, as pieces that are called `name`; `times` as many as
    the section says, unless they are greedy."""
    section = context.section
    directory = context.stage(section.opponent)
    card, tokenizer = read_card(directory, context.defaults), model_tokenizer(directory, context.defaults)
    with naming(context.name):
        sampling = sampling_config(card, tokenizer, **sampling_of(section, temperature))
    prompts, size = [record.prompt for record in records], section.batch_size

    def sample(k: int, first: int, part: Sequence[Prompt]) -> list[tuple[str, float | None, int]]:
        texts, rollout = respond(
            policy,
            tokenizer,
            part,
            config=sampling,
            key=evaluation_key(context.config.seed, opponent=as_opponent, sample=k),
            max_prompt=card.max_prompt,
            batch_size=size,
            mesh=context.mesh,
            first_row=section.prompts.skip + first,
        )
        kl = map(finite, _kl(context, policy, opponent, rollout, temperature or 1.0, sampling.support))
        return list(zip(texts, kl, rollout.mask.sum(1).tolist(), strict=True))

    columns = []
    # Greedy responses are all the same: one is enough, against each of the opponent's samples.
    for k in range(section.samples * times if temperature else 1):
        columns.append(piece.each(f"{name}_{k}", prompts, size, functools.partial(sample, k)))
    texts = [[text for text, _, _ in column] for column in columns]
    numbers = np.array([[row[1:] for row in column] for column in columns], np.float64)
    return Sampled(texts if temperature else texts * section.samples, *numbers.transpose(2, 1, 0))


def _kl(
    context: StageContext, policy: Decoder, opponent: Decoder, rollout: Rollout, temperature: float, support: Support
) -> Float[np.ndarray, "N"]:
    """`log pi - log pi_opponent` of each response, in nats."""
    count, totals = len(rollout.response), []
    rollout = unpadded(rollout, int(rollout.mask.sum(1).max()))
    for index in batch_rows(count, context.section.batch_size, context.mesh):
        part = Rollout(*put_batch(tuple(x[index] for x in rollout), context.mesh))
        totals.append(fetch(log_ratio(policy, opponent, part, temperature, support), context.mesh))
    return np.concatenate(totals)[:count]


@functools.partial(jax.jit, static_argnums=(3, 4))
def log_ratio(policy: Decoder, opponent: Decoder, rollout: Rollout, temperature: float, support: Support):
    rows = join_rows(rollout.prompt, rollout.prompt_mask, rollout.response, rollout.mask)
    logp, _ = response_logprobs(policy, rows, rollout.response, rollout.mask, temperature, support)
    base, _ = response_logprobs(opponent, rows, rollout.response, rollout.mask, temperature, support)
    return (logp - base).sum(1)


def finite(value: float | np.floating) -> float | None:
    """A number as JSON holds it."""
    return float(value) if np.isfinite(value) else None
