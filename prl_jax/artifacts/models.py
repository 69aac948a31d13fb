"""Models that `--model` and `init_from` name: directories of stages or in Hugging Face's format, and GGUF files."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from prl_jax.artifacts.cards import (
    NO_DEFAULTS,
    Defaults,
    ModelCard,
    check_lengths,
    read_card,
    stands_alone,
    stop_ids,
    trained_length,
)
from prl_jax.checkpoint import Checkpoints
from prl_jax.errors import UserError, naming
from prl_jax.file_names import CHECKPOINTS_DIR, MODEL_FILE, TOKENIZER_DIR
from prl_jax.files import write_json
from prl_jax.gguf_file import is_gguf
from prl_jax.judges import GenerativeJudge, Judge, PolicyReader, ScalarJudge
from prl_jax.models import LOGICAL_AXES, Decoder, ScalarModel, from_hf, merge
from prl_jax.models.gguf import from_gguf
from prl_jax.models.hf.peft import adapter_base, load_adapters
from prl_jax.processes import is_leader
from prl_jax.sharding import tree_shardings
from prl_jax.text.hf_files import TEMPLATE_FILE, holds_tokenizer
from prl_jax.text.tokenizer import HFTokenizer, Tokenizer, check_rows, load_tokenizer, unsampled_ids, unused_ids
from prl_jax.tree import flatten, unflatten

SAMPLES_SHOWN = 8  # rows of `SAMPLES_FILE` that are written each time


def save_card(directory: Path, card: ModelCard, tokenizer: Tokenizer) -> None:
    """Writes model.json and the tokenizer."""
    if is_leader():
        tokenizer.save(directory / TOKENIZER_DIR)
        write_json(directory / MODEL_FILE, dataclasses.asdict(card))


Trunks = MutableMapping[Path, Decoder]


def load_model(
    directory: Path, mesh: Mesh, trunks: Trunks | None = None, defaults: Defaults = NO_DEFAULTS
) -> tuple[ModelCard, Decoder | ScalarModel, Tokenizer]:
    """The model of a directory, on the mesh.

    Args:
      directory: of a stage, or in Hugging Face's format; or a GGUF file.
      mesh: the devices.
      defaults: what the latter two do not say.
      trunks: frozen decoders that are in memory already, by directory. What is loaded here joins them, and models with
        adapters on the same one share it.
    """
    card, peft = read_card(directory, defaults), adapter_base(directory)
    tokenizer = model_tokenizer(directory, defaults)
    if peft is not None:
        decoder = load_adapters(load_decoder(peft, mesh, trunks, defaults), directory, mesh)
        decoder.config = dataclasses.replace(decoder.config, unused=unused_ids(tokenizer, decoder.config.vocab_size))
        card = dataclasses.replace(card, decoder=dataclasses.asdict(decoder.config), base=None)
        return card, decoder, tokenizer
    if stands_alone(directory):
        config = dataclasses.replace(card.config, unused=unused_ids(tokenizer, card.config.vocab_size))
        card = dataclasses.replace(card, decoder=dataclasses.asdict(config))
        settings = dict(compute_dtype=config.dtype, remat=config.remat, attention=config.attention)
        read = from_gguf if is_gguf(directory) else from_hf
        model = read(directory, dtype=config.param_dtype, **settings, unused=config.unused, mesh=mesh)
        return card, model, tokenizer
    like = abstract_model(functools.partial(_make, card), mesh)
    if card.base is not None:
        prefix = "decoder." if card.kind == "scalar_judge" else ""
        base = flatten(load_decoder(directory / card.base, mesh, trunks, defaults))
        like = unflatten(like, flatten(like) | {f"{prefix}{name}": leaf for name, leaf in base.items()})
    with Checkpoints(directory / CHECKPOINTS_DIR, read_only=True) as checkpoints:
        model = checkpoints.restore_model(like)
    return card, model, tokenizer


def model_tokenizer(directory: Path, defaults: Defaults = NO_DEFAULTS) -> Tokenizer:
    """The tokenizer of a model directory, with the arguments of its chat template; an adapter's own where it has one.

    Raises:
      UserError: it has ids that the model's embedding lacks, or an adapter's gives tokens other ids than its base's.
    """
    card, base = read_card(directory, defaults), adapter_base(directory)
    if base is None:
        place = directory if stands_alone(directory) else directory / TOKENIZER_DIR
        tokenizer = load_tokenizer(place, card.template_args)
    elif not holds_tokenizer(directory):
        if not (directory / TEMPLATE_FILE).is_file():
            return model_tokenizer(base, defaults)
        place = base if stands_alone(base) else base / TOKENIZER_DIR
        with naming(str(directory / TEMPLATE_FILE)):
            tokenizer = HFTokenizer(place, card.template_args, _read_template(directory / TEMPLATE_FILE))
    else:
        tokenizer = HFTokenizer(directory, card.template_args)
        _check_same_ids(directory, tokenizer, base)
    check_rows(tokenizer, card.config.vocab_size, directory)
    return tokenizer


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error}); write it as UTF-8 text") from error


def _check_same_ids(directory: Path, tokenizer: HFTokenizer, base: Path) -> None:
    """Refuses an adapter whose tokenizer is of another vocabulary than the model that it belongs to."""
    place = base if stands_alone(base) else base / TOKENIZER_DIR
    known = HFTokenizer(place) if holds_tokenizer(place) else None
    differing = tokenizer.differing(known) if known is not None else []
    if differing:
        raise UserError(
            f"{directory}: its tokenizer, of {tokenizer.vocab_size} ids, gives {len(differing)} tokens other ids than "
            f"that of {base}, such as {differing[0]!r}; give the tokenizer that the adapter was trained with"
        )


def has_tokenizer(directory: Path) -> bool:
    """Whether the tokenizer of a model directory is there."""
    places = (directory, directory / TOKENIZER_DIR, adapter_base(directory))
    return any(place is not None and holds_tokenizer(place) for place in places)


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
    card, model, tokenizer = load_model(directory, mesh, trunks, defaults)
    decoder = merge(model.decoder if isinstance(model, ScalarModel) else model)
    keep_unsampled(decoder, card, tokenizer)
    if trunks is not None:
        trunks[key] = decoder
    return decoder


def load_values(directory: Path, mesh: Mesh, defaults: Defaults = NO_DEFAULTS) -> ScalarModel:
    """A model whose numbers can be values: a judge that scores, its adapters merged, with a bias of 0; or the critic
    that a policy was trained with, from the checkpoint of its stage."""
    card = read_card(directory, defaults)
    if card.kind == "policy":
        like = abstract_model(lambda: ScalarModel(Decoder(card.config, key=jax.random.key(0)), bias=0.0), mesh)
        with Checkpoints(directory / CHECKPOINTS_DIR, read_only=True) as checkpoints:
            return checkpoints.restore_part("critic", like)
    _, judge, _ = load_model(directory, mesh, None, defaults)
    if not isinstance(judge, ScalarModel):
        raise UserError(f"{directory}: holds a {card.kind}, expected a judge that scores single responses")
    model = ScalarModel(merge(judge.decoder), bias=0.0)
    model.scalar.weight[...] = judge.scalar.weight[...]
    return model


def load_policy(
    directory: Path, mesh: Mesh, trunks: Trunks | None = None, defaults: Defaults = NO_DEFAULTS
) -> tuple[ModelCard, Decoder, Tokenizer]:
    """A policy, its adapters merged; a judge's directory is a `UserError`."""
    card = read_card(directory, defaults)
    if card.kind != "policy":
        raise UserError(f"{directory}: holds a {card.kind}, expected a policy; name a stage that trains one")
    check_lengths(card, directory)
    policy = load_decoder(directory, mesh, trunks, defaults)
    card = dataclasses.replace(card, decoder=dataclasses.asdict(policy.config), base=None)
    return card, policy, model_tokenizer(directory, defaults)


def load_reader(
    directory: Path,
    mesh: Mesh,
    *,
    criteria: str = "",
    batch_size: int = 256,
    trunks: Trunks | None = None,
    defaults: Defaults = NO_DEFAULTS,
) -> PolicyReader:
    """A policy that tells how likely responses are, with the lengths of its card; a judge's is a `UserError`."""
    card, policy, tokenizer = load_policy(directory, mesh, trunks, defaults)
    lengths = dict(max_prompt=card.max_prompt, max_response=card.max_response)
    return PolicyReader(policy, tokenizer, **lengths, batch_size=batch_size, mesh=mesh, criteria=criteria)


def keep_unsampled(decoder: Decoder, card: ModelCard, tokenizer: Tokenizer) -> None:
    """Tells a decoder which ids it never samples: those that leave no text and end no response."""
    silent = unsampled_ids(tokenizer, decoder.config.vocab_size, stop_ids(card, tokenizer))
    decoder.config = dataclasses.replace(decoder.config, unsampled=silent)


def load_judge(
    directory: Path,
    mesh: Mesh,
    *,
    batch_size: int = 256,
    on_long: str = "truncate",
    max_length: int = 0,
    trunks: Trunks | None = None,
    defaults: Defaults = NO_DEFAULTS,
) -> Judge:
    """A judge of either kind; a policy's directory is a `UserError`. `on_long` says what happens to long prompts.

    `max_length` is the static length of its rows; 0 for that of its card, as it was trained. A command asks
    `command_length`.
    """
    card, model, tokenizer = load_model(directory, mesh, trunks, defaults)
    if card.kind not in ("scalar_judge", "generative_judge"):
        raise UserError(f"{directory}: holds a {card.kind}, expected a judge; name a stage that trains one")
    if not max_length:
        check_lengths(card, directory)
    return make_judge(card, model, tokenizer, mesh, batch_size=batch_size, on_long=on_long, max_length=max_length)


def make_judge(
    card: ModelCard,
    model: Decoder | ScalarModel,
    tokenizer: Tokenizer,
    mesh: Mesh,
    *,
    batch_size: int,
    on_long: str = "truncate",
    max_length: int = 0,
) -> Judge:
    """The judge that a card describes.

    Rows are cut as in training, unless a command uses the context of a model that has one (`max_length`): there a
    scalar judge's prompts and responses have it together.
    """
    length = max_length or trained_length(card)
    options = {"max_length": length, "batch_size": batch_size, "on_long": on_long, "mesh": mesh}
    if isinstance(model, ScalarModel):
        whole = max_length and card.context
        parts = {} if whole else {"max_prompt": card.max_prompt, "max_response": card.max_response}
        return ScalarJudge(model, tokenizer, **parts, **options)
    assert card.asks is not None
    return GenerativeJudge(model, tokenizer, card.asks, merge=card.merge, **options)
