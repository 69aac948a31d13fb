"""`prl generate`: responses to the prompts of a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prl_jax.artifacts.cards import generation_lengths, sampling_config
from prl_jax.artifacts.models import load_policy, model_tokenizer
from prl_jax.commands.outputs import check_file, rows_file
from prl_jax.commands.rows import (
    DEFAULT_OPTIONS,
    RowOptions,
    check_finite,
    command_card,
    directories,
    measured_rows,
    origin_of,
    read_rows,
    selected_rows,
    work,
)
from prl_jax.data.records import PromptRecord
from prl_jax.errors import naming
from prl_jax.processes import whole_batch
from prl_jax.runs.stopping import StopSignal
from prl_jax.sampling import respond
from prl_jax.sharding import make_mesh


def generate_file(
    model: Path,
    prompts: Path,
    out: Path,
    *,
    max_new_tokens: int,
    sampling: Mapping[str, Any],
    seed: int,
    options: RowOptions = DEFAULT_OPTIONS,
    stop: StopSignal | None = None,
) -> dict[str, int]:
    """Writes a response to each prompt of a file: rows of `id, prompt, response, logp, truncated`.

    Args:
      model: directory of a policy.
      prompts, out: files of rows.
      max_new_tokens: of a response; 0 for what the model's card says.
      sampling: how responses are sampled, as of `sampling_config`.
      seed: of sampling.
      options: of the rows.
      stop: tells whether the command is to end early.

    Returns:
      How many rows there are, and how many were truncated, skipped and invalid.

    Raises:
      UserError, Stopped: as of `judge_file`.
    """
    mesh, stop = make_mesh(), StopSignal() if stop is None else stop
    card = command_card(model, options, "policy")
    check_file(out, inputs=[prompts], models=directories(model, card), overwrite=options.overwrite)
    room, max_new_tokens = generation_lengths(card, max_new_tokens=max_new_tokens, max_length=options.max_length)
    tokenizer = model_tokenizer(model, options.defaults)
    with naming("prl generate"):
        config = sampling_config(card, tokenizer, max_new_tokens=max_new_tokens, **sampling)
    records = read_rows(prompts, "prompt", options)
    measured = measured_rows("generate", records, model, options)
    chosen = selected_rows(records, measured, measured.lengths["prompt"], room, options)
    _, policy, _ = load_policy(model, mesh, defaults=options.defaults)
    size = whole_batch(min(options.batch_size, len(chosen.records)), mesh)

    def answer(first: int, part: Sequence[PromptRecord]) -> list[dict[str, Any]]:
        texts, rollout = respond(
            policy,
            tokenizer,
            [record.prompt for record in part],
            config=config,
            key=jax.random.key(seed),
            max_prompt=chosen.length,
            batch_size=size,
            mesh=mesh,
            first_row=first,
        )
        logp, cut = np.sum(rollout.logp, axis=1).tolist(), rollout.truncated.tolist()
        return [_response(*row) for row in zip(part, texts, logp, cut, strict=True)]

    sampled = {"seed": seed, "max_new_tokens": max_new_tokens, **sampling}
    made_from = origin_of("generate", model, card, records, options, **sampled)
    with jax.set_mesh(mesh), rows_file(out, made_from, overwrite=options.overwrite) as file:
        work("generate", chosen.records, size, answer, file, stop)
        file.finish()
    failed = sum(row["logp"] is None for row in file.rows)
    check_finite(failed, len(file.rows), "responses' log-probabilities", model, out)
    return {"rows": len(file.rows), **chosen.counts}


def _response(record: PromptRecord, text: str, logp: float, cut: bool) -> dict[str, Any]:
    turns = [turn._asdict() for turn in record.prompt]
    # Where the log-probability is none, the tokens too were drawn from what is no distribution.
    text, number = (text, logp) if math.isfinite(logp) else (None, None)
    return {"id": record.id, "prompt": turns, "response": text, "logp": number, "truncated": cut}
