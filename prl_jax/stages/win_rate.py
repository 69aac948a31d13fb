"""Win rates of policies: who judges, against what, with which interval."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from prl_jax.data.gold import make_arguments, preference
from prl_jax.evaluation import bootstrap_interval
from prl_jax.judges import GoldJudge, Judge, judge_pairs
from prl_jax.models import Decoder
from prl_jax.processes import whole_batch
from prl_jax.sampling import SamplingConfig, respond
from prl_jax.stages.artifacts import Trunks, load_judge
from prl_jax.stages.context import StageContext, gold_arguments
from prl_jax.text.tokenizer import Tokenizer


def named_judge(context: StageContext, name: str, *, batch_size: int, trunks: Trunks | None = None) -> Judge:
    """The judge of a stage, or "gold", the exact judge of the built-in tasks; `trunks` as of `load_model`."""
    if name != "gold":
        directory = context.stage(name)
        return load_judge(directory, context.mesh, batch_size=batch_size, trunks=trunks, defaults=context.defaults)
    strength = make_arguments(gold_arguments(context.config)).intransitivity
    return GoldJudge(lambda prompt, first, second: preference(prompt, first, second, intransitivity=strength))


def policy_win_rate(
    context: StageContext,
    baseline: Decoder,
    tokenizer: Tokenizer,
    sampling: SamplingConfig,
    *,
    judge: Judge,
    max_prompt: int,
    section: ConfigDict,
) -> Callable[[Decoder], dict[str, float]]:
    """A function that measures a policy against the baseline's samples, one response each to the same prompts."""
    prompts = [record.prompt for record in context.records(section.prompts, "prompt")]
    key = jax.random.fold_in(context.key, 2**31 - 1)

    def sample(model: Decoder, stream: int) -> list[str]:
        texts, _ = respond(
            model,
            tokenizer,
            prompts,
            config=sampling,
            key=jax.random.fold_in(key, stream),
            max_prompt=max_prompt,
            batch_size=whole_batch(min(len(prompts), section.batch_size), context.mesh),
            mesh=context.mesh,
        )
        return texts

    opponents = sample(baseline, 0)

    def measure(model: Decoder) -> dict[str, float]:
        wins = judge_pairs(judge, prompts, sample(model, 1), opponents).p_first
        mean, low, high = bootstrap_interval(wins.astype(np.float64))
        return {"win_rate": mean, "win_rate_low": low, "win_rate_high": high}

    return measure
