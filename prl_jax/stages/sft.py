"""SFT: demonstrations -> a policy."""

from __future__ import annotations

import dataclasses
import functools


from prl_jax.data.rows import encode_sft
from prl_jax.stages import supervised
from prl_jax.stages.artifacts import ModelCard
from prl_jax.stages.context import StageContext, initial_decoder, run_tokenizer
from prl_jax.training.sft import SFT


def run(context: StageContext) -> dict[str, float]:
    """Trains and returns the last metrics."""
    section = context.section
    tokenizer = run_tokenizer(context.config, context)
    model = initial_decoder(context, tokenizer)
    card = ModelCard("policy", dataclasses.asdict(model.config), section.max_prompt, section.max_response)
    task = supervised.Supervised(
        card=card,
        tokenizer=tokenizer,
        model=model,
        objective=SFT,
        records=context.records(section.data, "sft"),
        validation=context.records(section.validation, "sft"),
        encode=functools.partial(
            encode_sft, tokenizer, max_prompt=section.max_prompt, max_response=section.max_response
        ),
        counters={},
    )
    return supervised.train(context, task)
