"""Model directories, of stages and in Hugging Face's format: what `--model DIR` and `init_from` read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from prl_jax.checkpoint import Checkpoints
from prl_jax.errors import UserError
from prl_jax.files import parse_json, write_json
from prl_jax.judges import GenerativeJudge, Judge, ScalarJudge
from prl_jax.models import LOGICAL_AXES, Decoder, DecoderConfig, ScalarModel, from_hf, merge
from prl_jax.models.config import DTYPES
from prl_jax.models.hf.config import CONFIG_FILE, decoder_config, is_reward_model, read_config
from prl_jax.models.hf.peft import adapter_base, load_adapters
from prl_jax.processes import is_leader
from prl_jax.sharding import tree_shardings
from prl_jax.text.judging import JudgeTemplate
from prl_jax.text.tokenizer import Tokenizer, load_tokenizer
from prl_jax.tree import flatten, unflatten

_EXPECTED = "a stage of a workdir, such as WORKDIR/sft, or a Hugging Face checkpoint"
EXPORT_FILE = "prl_model.json"  # beside an exported checkpoint: what its config.json cannot say of a judge
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
      source: the config.json of the Hugging Face checkpoint that the model descends from.
    """

    kind: str
    decoder: dict[str, Any]
    max_prompt: int
    max_response: int
    template: dict[str, Any] | None = None
    base: str | None = None
    source: dict[str, Any] | None = None

    @property
    def config(self) -> DecoderConfig:
        return DecoderConfig.from_dict(self.decoder)


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a directory in Hugging Face's format does not say of its model.

    Attributes:
      max_prompt, max_response: tokens to use it with, at most.
      dtype: of its activations; "" for that of its parameters.
      remat: see `DecoderConfig`.
    """

    max_prompt: int = 1024
    max_response: int = 1024
    dtype: str = ""
    remat: bool = False


NO_DEFAULTS = Defaults()


def save_card(directory: Path, card: ModelCard, tokenizer: Tokenizer) -> None:
    """Writes model.json and the tokenizer."""
    if is_leader():
        tokenizer.save(directory / TOKENIZER_DIR)
        write_json(directory / MODEL_FILE, dataclasses.asdict(card))


def read_card(directory: Path, defaults: Defaults = NO_DEFAULTS) -> ModelCard:
    """What a model directory says of its model; a directory that holds none is a `UserError`."""
    path = directory / MODEL_FILE
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give {_EXPECTED}")
    base = adapter_base(directory)
    if base is not None:
        return read_card(base, defaults)
    if is_huggingface(directory):
        return _huggingface_card(directory, defaults)
    if not path.is_file():
        raise UserError(f"{directory}: not a model directory (no {MODEL_FILE}, no {CONFIG_FILE}); give {_EXPECTED}")
    try:
        card = ModelCard(**parse_json(path.read_text()))
        card.config  # noqa: B018  (checks its values)
        return card
    except (OSError, ValueError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{path}: cannot be read ({error}); train the stage anew") from error


def is_huggingface(directory: Path) -> bool:
    """Whether a model directory is one in Hugging Face's format. (A workdir has a config.json too, of another kind.)"""
    if (directory / MODEL_FILE).is_file() or not (directory / CONFIG_FILE).is_file():
        return False
    return bool({"model_type", "architectures"} & set(read_config(directory)))


def _huggingface_card(directory: Path, defaults: Defaults) -> ModelCard:
    values, where = read_config(directory), str(directory / CONFIG_FILE)
    config = decoder_config(values, where)
    stored = values.get("torch_dtype", values.get("dtype"))
    stored = stored if stored in DTYPES else "float32"
    config = dataclasses.replace(config, param_dtype=stored, dtype=defaults.dtype or stored, remat=defaults.remat)
    half = int(values.get("max_position_embeddings", 2048)) // 2
    said: dict[str, Any] = {"kind": "scalar_judge" if is_reward_model(values, where) else "policy"}
    said |= {"max_prompt": min(defaults.max_prompt, half), "max_response": min(defaults.max_response, half)}
    ours = directory / EXPORT_FILE
    try:
        said |= parse_json(ours.read_text()) if ours.is_file() else {}
        return ModelCard(decoder=dataclasses.asdict(config), source=values, **said)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{ours}: cannot be read ({error}); delete it to use the model as a plain policy") from error


def export_card(card: ModelCard) -> dict[str, Any]:
    """What `EXPORT_FILE` says of an exported model beside its config.json."""
    fields = dataclasses.asdict(card)
    return {key: fields[key] for key in ("kind", "max_prompt", "max_response", "template")}


Trunks = dict[Path, Decoder]


def load_model(
    directory: Path, mesh: Mesh, trunks: Trunks | None = None, defaults: Defaults = NO_DEFAULTS
) -> tuple[ModelCard, Decoder | ScalarModel, Tokenizer]:
    """The model of a directory, on the mesh.

    Args:
      directory: of a stage, or in Hugging Face's format.
      mesh: the devices.
      defaults: what the latter does not say.
      trunks: frozen decoders that are in memory already, by directory. What is loaded here joins them, and models with
        adapters on the same one share it.
    """
    card, peft = read_card(directory, defaults), adapter_base(directory)
    if peft is not None:
        decoder = load_adapters(load_decoder(peft, mesh, trunks, defaults), directory, mesh)
        card = dataclasses.replace(card, decoder=dataclasses.asdict(decoder.config), base=None)
        return card, decoder, model_tokenizer(peft)
    if is_huggingface(directory):
        config = card.config
        model = from_hf(directory, dtype=config.param_dtype, compute_dtype=config.dtype, remat=config.remat, mesh=mesh)
        return card, model, load_tokenizer(directory)
    like = abstract_model(functools.partial(_make, card), mesh)
    if card.base is not None:
        prefix = "decoder." if card.kind == "scalar_judge" else ""
        base = flatten(load_decoder(directory / card.base, mesh, trunks, defaults))
        like = unflatten(like, flatten(like) | {f"{prefix}{name}": leaf for name, leaf in base.items()})
    with Checkpoints(directory / CHECKPOINTS_DIR, read_only=True) as checkpoints:
        model = checkpoints.restore_model(like)
    return card, model, model_tokenizer(directory)


def model_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory."""
    directory = adapter_base(directory) or directory
    return load_tokenizer(directory if is_huggingface(directory) else directory / TOKENIZER_DIR)


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


def load_decoder(
    directory: Path, mesh: Mesh, trunks: Trunks | None = None, defaults: Defaults = NO_DEFAULTS
) -> Decoder:
    """The decoder of a model directory of any kind, its adapters merged."""
    key = directory.resolve()
    if trunks is not None and key in trunks:
        return trunks[key]
    _, model, _ = load_model(directory, mesh, trunks, defaults)
    decoder = merge(model.decoder if isinstance(model, ScalarModel) else model)
    if trunks is not None:
        trunks[key] = decoder
    return decoder


def load_policy(
    directory: Path, mesh: Mesh, trunks: Trunks | None = None, defaults: Defaults = NO_DEFAULTS
) -> tuple[ModelCard, Decoder, Tokenizer]:
    """A policy, its adapters merged; a judge's directory is a `UserError`."""
    card = read_card(directory, defaults)
    if card.kind != "policy":
        raise UserError(f"{directory}: holds a {card.kind}, expected a policy (an sft or ppo stage)")
    policy = load_decoder(directory, mesh, trunks, defaults)
    card = dataclasses.replace(card, decoder=dataclasses.asdict(policy.config), base=None)
    return card, policy, model_tokenizer(directory)


def load_judge(
    directory: Path,
    mesh: Mesh,
    *,
    batch_size: int = 256,
    on_long: str = "truncate",
    trunks: Trunks | None = None,
    defaults: Defaults = NO_DEFAULTS,
) -> Judge:
    """A judge of either kind; a policy's directory is a `UserError`. `on_long` says what happens to long prompts."""
    card, model, tokenizer = load_model(directory, mesh, trunks, defaults)
    if card.kind not in ("scalar_judge", "generative_judge"):
        raise UserError(f"{directory}: holds a {card.kind}, expected a judge (a bradley_terry or generative stage)")
    return make_judge(card, model, tokenizer, mesh, batch_size=batch_size, on_long=on_long)


def make_judge(
    card: ModelCard,
    model: Decoder | ScalarModel,
    tokenizer: Tokenizer,
    mesh: Mesh,
    *,
    batch_size: int,
    on_long: str = "truncate",
) -> Judge:
    """The judge that a card describes."""
    options = {"batch_size": batch_size, "on_long": on_long, "mesh": mesh}
    if isinstance(model, ScalarModel):
        length = card.max_prompt + card.max_response
        return ScalarJudge(model, tokenizer, max_length=length, **options)
    assert card.template is not None
    template = JudgeTemplate(**{**card.template, "verdicts": tuple(card.template["verdicts"])})
    return GenerativeJudge(model, tokenizer, template, max_length=card.max_prompt, **options)
