"""`prl export`: the model of a stage in Hugging Face's format, or as a file of llama.cpp."""

from __future__ import annotations

from pathlib import Path

from prl_jax.artifacts.cards import EXPORT_FILE, export_card, read_card
from prl_jax.artifacts.fingerprints import HUGGINGFACE_FILES
from prl_jax.artifacts.models import load_model
from prl_jax.commands.outputs import check_file, check_folder
from prl_jax.commands.rows import directories
from prl_jax.errors import UserError
from prl_jax.files import swapped_in, write_json
from prl_jax.models import Decoder, ScalarModel, merge, to_gguf, to_hf, with_param_dtype
from prl_jax.models.hf.peft import save_adapters
from prl_jax.sharding import make_mesh
from prl_jax.text.gguf_export import gguf_tokens


def export_model(
    workdir: Path, stage: str, out: Path, *, adapters: bool, dtype: str, with_tokenizer: bool, overwrite: bool = False
) -> None:
    """Writes the model of a stage in Hugging Face's format, its adapters merged, or its adapters alone in PEFT's."""
    directory = workdir / stage
    check_folder(
        out, inputs=directories(directory, read_card(directory)), overwrite=overwrite, written=HUGGINGFACE_FILES
    )
    card, model, tokenizer = load_model(directory, make_mesh())
    if adapters and (card.base is None or not isinstance(model, Decoder)):
        raise UserError(f"{directory}: --adapters exports a language model that was trained with lora.rank > 0")
    with swapped_in(out) as folder:
        if adapters:
            save_adapters(model, folder, base=str((directory / str(card.base)).resolve()))
            return
        if isinstance(model, ScalarModel):
            model.decoder = merge(model.decoder)
        else:
            model = merge(model)
        if dtype:
            model = with_param_dtype(model, dtype)
        kept = tokenizer if with_tokenizer else None
        to_hf(model, folder, tokenizer=kept, source=card.source, generation=card.generation)
        write_json(folder / EXPORT_FILE, export_card(card))


def export_gguf(workdir: Path, stage: str, out: Path, *, kind: str, overwrite: bool = False) -> None:
    """Writes the language model of a stage as a GGUF file, its adapters merged.

    Args:
      workdir, stage: of the model.
      out: the file.
      kind: type of the matrices, as of `to_gguf`.
      overwrite: whether a file that is there is replaced.
    """
    directory = workdir / stage
    card = read_card(directory)
    check_file(out, inputs=[], models=directories(directory, card), overwrite=overwrite)
    if card.kind == "scalar_judge":
        raise UserError(f"{directory}: holds a judge that scores, for whose head GGUF has no place; leave out --format")
    _, model, tokenizer = load_model(directory, make_mesh())
    tokens = gguf_tokens(tokenizer, card.config.vocab_size)
    to_gguf(merge(model), out, kind=kind, tokens=tokens, source=card.source)
