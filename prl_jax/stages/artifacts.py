"""Stage directories as models: what `--model DIR` and `init_from` read."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from prl_jax.checkpoint import Checkpoints
from prl_jax.errors import UserError
from prl_jax.judges import GenerativeJudge, Judge, ScalarJudge
from prl_jax.models import LOGICAL_AXES, Decoder, DecoderConfig, ScalarModel, merge
from prl_jax.sharding import tree_shardings
from prl_jax.stages.workdir import write_json
from prl_jax.text.judging import JudgeTemplate
from prl_jax.text.tokenizer import Tokenizer, load_tokenizer
from prl_jax.tree import flatten, unflatten

MODEL_FILE, TOKENIZER_DIR, CHECKPOINTS_DIR = "model.json", "tokenizer", "checkpoints"
SAMPLES_FILE, SAMPLES_SHOWN = "samples.jsonl", 8  # rows written each time


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What a stage directory says of its model.

    Attributes:
      kind: "policy", "scalar_judge" or "generative_judge".
      decoder: fields of `DecoderConfig`.
      max_prompt, max_response: tokens that the model was trained for; a judge that reads pairs has `max_prompt` for
        the whole row.
      template: fields of `JudgeTemplate`, of a generative judge.
      base: the model directory that holds the frozen parameters of a model with adapters; relative paths start at this
        directory.
    """

    kind: str
    decoder: dict[str, Any]
    max_prompt: int
    max_response: int
    template: dict[str, Any] | None = None
    base: str | None = None

    @property
    def config(self) -> DecoderConfig:
        return DecoderConfig.from_dict(self.decoder)


def save_card(directory: Path, card: ModelCard, tokenizer: Tokenizer) -> None:
    """Writes model.json and the tokenizer."""
    tokenizer.save(directory / TOKENIZER_DIR)
    write_json(directory / MODEL_FILE, dataclasses.asdict(card))


def read_card(directory: Path) -> ModelCard:
    """Reads model.json; a directory without one is a `UserError`."""
    path = directory / MODEL_FILE
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give a stage of a workdir, such as WORKDIR/sft")
    if not path.is_file():
        raise UserError(
            f"{directory}: not a model directory (no {MODEL_FILE}); give a stage of a workdir, such as WORKDIR/sft"
        )
    try:
        card = ModelCard(**json.loads(path.read_text()))
        card.config  # noqa: B018  (checks its values)
        return card
    except (OSError, ValueError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{path}: cannot be read ({error}); train the stage anew") from error


Trunks = dict[Path, Decoder]


def load_model(
    directory: Path, mesh: Mesh, trunks: Trunks | None = None
) -> tuple[ModelCard, Decoder | ScalarModel, Tokenizer]:
    """The model of a stage directory, on the mesh.

    Args:
      directory: of a stage.
      mesh: the devices.
      trunks: frozen decoders that are in memory already, by directory. What is loaded here joins them, and models with
        adapters on the same one share it.
    """
    card = read_card(directory)
    like = abstract_model(functools.partial(_make, card), mesh)
    if card.base is not None:
        prefix = "decoder." if card.kind == "scalar_judge" else ""
        base = flatten(load_decoder(directory / card.base, mesh, trunks))
        like = unflatten(like, flatten(like) | {f"{prefix}{name}": leaf for name, leaf in base.items()})
    with Checkpoints(directory / CHECKPOINTS_DIR, read_only=True) as checkpoints:
        model = checkpoints.restore_model(like)
    return card, model, load_tokenizer(directory / TOKENIZER_DIR)


def _make(card: ModelCard) -> Decoder | ScalarModel:
    decoder = Decoder(card.config, key=jax.random.key(0))
    return ScalarModel(decoder) if card.kind == "scalar_judge" else decoder


def abstract_model(make: Callable[[], Any], mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of a model, without its arrays."""
    shapes = jax.eval_shape(make)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        tree_shardings(shapes, mesh, LOGICAL_AXES),
    )


def load_decoder(directory: Path, mesh: Mesh, trunks: Trunks | None = None) -> Decoder:
    """The decoder of a stage directory of any kind, its adapters merged."""
    key = directory.resolve()
    if trunks is not None and key in trunks:
        return trunks[key]
    _, model, _ = load_model(directory, mesh, trunks)
    decoder = merge(model.decoder if isinstance(model, ScalarModel) else model)
    if trunks is not None:
        trunks[key] = decoder
    return decoder


def load_policy(directory: Path, mesh: Mesh, trunks: Trunks | None = None) -> tuple[ModelCard, Decoder, Tokenizer]:
    """A policy, its adapters merged; a judge's directory is a `UserError`."""
    card = read_card(directory)
    if card.kind != "policy":
        raise UserError(f"{directory}: holds a {card.kind}, expected a policy (an sft or ppo stage)")
    policy = load_decoder(directory, mesh, trunks)
    card = dataclasses.replace(card, decoder=dataclasses.asdict(policy.config), base=None)
    return card, policy, load_tokenizer(directory / TOKENIZER_DIR)


def load_judge(
    directory: Path, mesh: Mesh, *, batch_size: int = 256, on_long: str = "truncate", trunks: Trunks | None = None
) -> Judge:
    """A judge of either kind; a policy's directory is a `UserError`. `on_long` says what happens to long prompts."""
    card, model, tokenizer = load_model(directory, mesh, trunks)
    if card.kind not in ("scalar_judge", "generative_judge"):
        raise UserError(f"{directory}: holds a {card.kind}, expected a judge (a bradley_terry or generative stage)")
    return make_judge(card, model, tokenizer, batch_size=batch_size, on_long=on_long)


def make_judge(
    card: ModelCard, model: Decoder | ScalarModel, tokenizer: Tokenizer, *, batch_size: int, on_long: str = "truncate"
) -> Judge:
    """The judge that a card describes."""
    if isinstance(model, ScalarModel):
        length = card.max_prompt + card.max_response
        return ScalarJudge(model, tokenizer, max_length=length, batch_size=batch_size, on_long=on_long)
    assert card.template is not None
    template = JudgeTemplate(**{**card.template, "verdicts": tuple(card.template["verdicts"])})
    return GenerativeJudge(
        model, tokenizer, template, max_length=card.max_prompt, batch_size=batch_size, on_long=on_long
    )
