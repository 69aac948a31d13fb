"""What `prl judge`, `prl generate` and `prl export` do with a model directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prl_jax.data.jsonl import write_jsonl
from prl_jax.data.records import PreferenceRecord, PromptRecord
from prl_jax.data.sources import SourceSpec, load_records
from prl_jax.errors import UserError, naming
from prl_jax.files import write_json
from prl_jax.judges import GenerativeJudge, ScalarJudge
from prl_jax.models import Decoder, ScalarModel, merge, to_hf, with_param_dtype
from prl_jax.models.hf.peft import save_adapters
from prl_jax.processes import whole_batch
from prl_jax.sampling import respond
from prl_jax.sharding import make_mesh
from prl_jax.stages.artifacts import load_judge, load_model, load_policy
from prl_jax.stages.cards import (
    EXPORT_FILE,
    command_length,
    export_card,
    generation_lengths,
    read_card,
    sampling_config,
)
from prl_jax.stages.judging import judge_records, record_metrics


def judge_file(model: Path, data: Path, out: Path, *, batch_size: int) -> dict[str, Any]:
    """Judges every pair of a file, writes `id, p_12, p_21, p_chosen` rows and returns the metrics."""
    _check_writable(out)
    records = list(load_records(SourceSpec("jsonl", path=str(data)), "preference", data_dir=data.parent))
    judge = load_judge(
        model, make_mesh(), batch_size=batch_size, on_long="error", max_length=command_length(read_card(model))
    )
    assert isinstance(judge, ScalarJudge | GenerativeJudge)
    for record in records:
        assert isinstance(record, PreferenceRecord)
        with naming(_place(record, data)):
            judge.check_fits(record.prompt, record.chosen, record.rejected)
    judged = judge_records(judge, records)
    rows = zip(records, judged.p_12, judged.p_21, judged.p_first, strict=True)
    write_jsonl(out, [{"id": r.id, "p_12": float(a), "p_21": float(b), "p_chosen": float(p)} for r, a, b, p in rows])
    return record_metrics(judged, records)


def generate_file(
    model: Path,
    prompts: Path,
    out: Path,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    batch_size: int,
) -> int:
    """Writes a response to each prompt of a file: rows of `id, prompt, response, logp, truncated`."""
    _check_writable(out)
    records = list(load_records(SourceSpec("jsonl", path=str(prompts)), "prompt", data_dir=prompts.parent))
    mesh = make_mesh()
    card, policy, tokenizer = load_policy(model, mesh)
    max_prompt, room = generation_lengths(card, max_new_tokens=max_new_tokens)
    config = sampling_config(card, tokenizer, max_new_tokens=room, temperature=temperature, top_k=top_k, top_p=top_p)
    with naming(str(prompts)):
        texts, rollout = respond(
            policy,
            tokenizer,
            [record.prompt for record in records],
            config=config,
            key=jax.random.key(seed),
            max_prompt=max_prompt,
            batch_size=whole_batch(min(batch_size, len(records)), mesh),
            mesh=mesh,
            on_long="error",
        )
    rows = []
    for record, text, logp, cut in zip(records, texts, np.sum(rollout.logp, axis=1), rollout.truncated, strict=True):
        assert isinstance(record, PromptRecord)
        turns = [turn._asdict() for turn in record.prompt]
        rows.append({"id": record.id, "prompt": turns, "response": text, "logp": float(logp), "truncated": bool(cut)})
    write_jsonl(out, rows)
    return len(rows)


def export_model(workdir: Path, stage: str, out: Path, *, adapters: bool, dtype: str, with_tokenizer: bool) -> None:
    """Writes the model of a stage in Hugging Face's format, its adapters merged, or its adapters alone in PEFT's."""
    directory, mesh = workdir / stage, make_mesh()
    card, model, tokenizer = load_model(directory, mesh)
    if adapters:
        if card.base is None or not isinstance(model, Decoder):
            raise UserError(f"{directory}: --adapters exports a language model that was trained with lora.rank > 0")
        save_adapters(model, out, base=str((directory / card.base).resolve()))
        return
    if isinstance(model, ScalarModel):
        model.decoder = merge(model.decoder)
    else:
        model = merge(model)
    if dtype:
        model = with_param_dtype(model, dtype)
    to_hf(model, out, tokenizer=tokenizer if with_tokenizer else None, source=card.source, generation=card.generation)
    write_json(out / EXPORT_FILE, export_card(card))


def _place(record: PreferenceRecord, path: Path) -> str:
    """A record without an id is called by its file and line."""
    return record.id if record.id.startswith(f"{path}:") else f"{path}: pair {record.id!r}"


def _check_writable(out: Path) -> None:
    """A mistake in the name of the output shows before the work, not after it."""
    if out.is_dir():
        raise UserError(f"{out}: is a folder, expected the name of a file for --out")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}; make it or choose another --out")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"{out}: cannot write there; choose another --out")
