"""Responses that training stages show of their policy, for a person to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prl_jax.artifacts.cards import ModelCard, sampling_config
from prl_jax.artifacts.models import SAMPLES_SHOWN
from prl_jax.models import Decoder
from prl_jax.processes import whole_batch
from prl_jax.runs.context import StageContext
from prl_jax.sampling import respond
from prl_jax.streams import Stream, stream_key
from prl_jax.text.chat import Prompt, prompt_text
from prl_jax.text.tokenizer import Tokenizer


def shown_samples(
    context: StageContext, card: ModelCard, tokenizer: Tokenizer, prompts: Sequence[Prompt]
) -> Callable[[Decoder], list[dict[str, Any]]]:
    """Returns a function of a policy that gives its responses to up to `SAMPLES_SHOWN` prompts, as rows of
    `samples.jsonl` without their step."""
    sampling = sampling_config(card, tokenizer)

    def sample(model: Decoder) -> list[dict[str, Any]]:
        texts, rollout = respond(
            model,
            tokenizer,
            prompts,
            config=sampling,
            key=stream_key(context.key, Stream.SHOWN_SAMPLES),
            max_prompt=card.max_prompt,
            batch_size=whole_batch(SAMPLES_SHOWN, context.mesh),
            mesh=context.mesh,
        )
        rows = zip(prompts, texts, rollout.logp.sum(1).tolist(), strict=True)
        return [{"prompt": prompt_text(p), "response": text, "logp": logp} for p, text, logp in rows]

    return sample
