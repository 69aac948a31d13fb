"""The card of a model directory, read without the model: `model.json` of a stage, or Hugging Face's files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from prl_jax.errors import UserError, quoted
from prl_jax.file_names import MODEL_FILE
from prl_jax.files import local_path, read_object
from prl_jax.gguf_file import is_gguf, read_header
from prl_jax.models import DecoderConfig
from prl_jax.models.config import DTYPES
from prl_jax.models.gguf import hf_config
from prl_jax.models.hf.config import CONFIG_FILE, context_length, decoder_config, is_reward_model, read_config
from prl_jax.models.hf.generation import end_tokens, read_generation
from prl_jax.models.hf.peft import adapter_base
from prl_jax.sampling import SamplingConfig, check_ids
from prl_jax.text.judging import JudgeTemplate
from prl_jax.text.tokenizer import HFTokenizer, Tokenizer

_EXPECTED = "a stage of a workdir, such as WORKDIR/sft, a Hugging Face checkpoint, or a GGUF file"
EXPORT_FILE = "prl_model.json"  # beside an exported checkpoint: what its config.json cannot say of a judge
_KINDS = ("policy", "scalar_judge", "generative_judge")
_MOST_NEW_TOKENS = 1024  # of a response where nobody says how long it may be


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """The card of a stage directory's model.

    Attributes:
      kind: "policy", "scalar_judge" or "generative_judge".
      decoder: fields of `DecoderConfig`.
      max_prompt, max_response: tokens that the model was trained for; a judge that reads pairs has `max_prompt` for
        the whole row.
      template: fields of `JudgeTemplate`, of a generative judge.
      merge: how a generative judge merges its two orders, see `Judged`.
      base: the model directory that holds the frozen parameters of a model with adapters; relative paths start at this
        directory.
      source: the config.json of the Hugging Face checkpoint that the model descends from.
      generation: the generation_config.json of that checkpoint, if it has one.
      context: tokens that the model can read, the scaling of RoPE counted; 0 for a model made from scratch, which has
        no other limit than what it was trained for.
      stop_ids: tokens beside the tokenizer's that end a response.
      stop_tokens: further ones, by their text in the vocabulary.
      template_args: what the tokenizer's chat template is given beside the conversation.
    """

    kind: str
    decoder: dict[str, Any]
    max_prompt: int
    max_response: int
    template: dict[str, Any] | None = None
    merge: str = "probability"
    base: str | None = None
    source: dict[str, Any] | None = None
    generation: dict[str, Any] | None = None
    context: int = 0
    stop_ids: tuple[int, ...] = ()
    stop_tokens: tuple[str, ...] = ()
    template_args: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises `ValueError`, `TypeError` or `UserError` for values that no model has."""
        if self.kind not in _KINDS:
            raise ValueError(f"kind={self.kind!r}, expected one of {', '.join(_KINDS)}")
        for key in ("max_prompt", "max_response"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{key}={value!r}, expected a number of tokens")
        if (self.kind == "generative_judge") != (self.template is not None):
            raise ValueError(f"a template belongs to a generative_judge, and kind={self.kind!r}")
        if self.template is not None:
            JudgeTemplate(**{**self.template, "verdicts": tuple(self.template["verdicts"])})

    @property
    def config(self) -> DecoderConfig:
        return DecoderConfig.from_dict(self.decoder)

    @property
    def asks(self) -> JudgeTemplate | None:
        """How a generative judge is asked; None for any other model."""
        if self.template is None:
            return None
        return JudgeTemplate(**{**self.template, "verdicts": tuple(self.template["verdicts"])})

    @property
    def origin(self) -> dict[str, Any]:
        """The fields that a model which is trained from this one takes over."""
        names = ("source", "generation", "context", "stop_ids", "stop_tokens", "template_args")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Settings that a directory in Hugging Face's format does not hold.

    Attributes:
      max_prompt, max_response: tokens to use it with; 0 for what its context leaves.
      dtype: of its activations; "" for that of its parameters.
      remat, attention: see `DecoderConfig`.
      stop_tokens: tokens that end a response beside those that it names; for stages that descend from one too.
      template_args: what chat templates are given beside the conversation, in place of what a card says; empty leaves
        that.
    """

    max_prompt: int = 0
    max_response: int = 0
    dtype: str = ""
    remat: bool = False
    attention: str = "auto"
    stop_tokens: tuple[str, ...] = ()
    template_args: dict[str, Any] = dataclasses.field(default_factory=dict)


NO_DEFAULTS = Defaults()


def stop_ids(card: ModelCard, tokenizer: Tokenizer) -> tuple[int, ...]:
    """All tokens that end a response: the one that the chat template writes, those that the directory names, and those
    of the config. The first of them that is sampled ends it.

    Raises:
      UserError: one of the config's is no token.
    """
    further = []
    for token in card.stop_tokens:
        found = tokenizer.token_id(token) if isinstance(tokenizer, HFTokenizer) else None
        if found is None:
            raise UserError(f"stop_tokens: {quoted(token)} is no token of the vocabulary; give one by its whole text")
        further.append(found)
    return tuple(dict.fromkeys([tokenizer.eos_id, *card.stop_ids, *further]))


def sampling_config(
    card: ModelCard,
    tokenizer: Tokenizer,
    *,
    max_new_tokens: int = 0,
    stop_token_ids: tuple[int, ...] = (),
    **values: Any,
) -> SamplingConfig:
    """How responses of a model are sampled.

    Args:
      card, tokenizer: of the model.
      max_new_tokens: 0 for as long as it was trained for.
      stop_token_ids: tokens that end a response, beside those of `stop_ids`.
      values: as of `SamplingConfig`.

    Raises:
      UserError: what cannot be, an id outside of the vocabulary among it; it begins with the key.
    """
    check_ids("stop_token_ids", stop_token_ids, tokenizer.vocab_size)
    check_ids("suppressed_tokens", values.get("suppressed_tokens", ()), tokenizer.vocab_size)
    stops = tuple(dict.fromkeys([*stop_ids(card, tokenizer), *stop_token_ids]))
    return SamplingConfig(max_new_tokens or card.max_response, stops, tokenizer.pad_id, **values)


def generation_lengths(card: ModelCard, *, max_new_tokens: int = 0, max_length: int = 0) -> tuple[int, int]:
    """Tokens of a prompt, at most, and of a response, for a command that generates.

    Args:
      card: of the policy.
      max_new_tokens: of a response; 0 for what the card says.
      max_length: of prompt and response together; 0 for the model's own context.

    Raises:
      UserError: they do not fit into the model's context, or leave no room for a prompt.
    """
    response = max_new_tokens or card.max_response
    if not (card.context or max_length):
        return card.max_prompt, response
    length = command_length(card, max_length)
    if response >= length:
        raise UserError(
            f"max_new_tokens={response} leaves no room for a prompt: prompt and response together have {length} "
            "tokens; give fewer"
        )
    return length - response, response


def command_length(card: ModelCard, max_length: int = 0) -> int:
    """Tokens of a row, at most, for a command: those asked for, else the model's own context.

    Raises:
      UserError: more are asked for than the model can read.
    """
    if max_length and card.context and max_length > card.context:
        raise UserError(f"max_length={max_length} is more than the model's context of {card.context} tokens; give less")
    return max_length or card.context or trained_length(card)


def trained_length(card: ModelCard) -> int:
    """Tokens of a row as the model was trained, or as its card says that it is used."""
    return card.max_prompt + (0 if card.kind == "generative_judge" else card.max_response)


def check_lengths(card: ModelCard, where: Path | str) -> None:
    """Raises `UserError` for a model that is to be used with more tokens than its context holds."""
    if card.context and trained_length(card) > card.context:
        raise UserError(
            f"{where}: max_prompt={card.max_prompt} and max_response={card.max_response} take {trained_length(card)} "
            f"tokens, but the model's context holds {card.context}; set huggingface.max_prompt and "
            "huggingface.max_response to less"
        )


def read_card(directory: Path, defaults: Defaults = NO_DEFAULTS) -> ModelCard:
    """Returns the card of a model directory, or of a GGUF file; one that holds no model is a `UserError`."""
    path = directory / MODEL_FILE
    if is_gguf(local_path(directory)):
        return _foreign_card(directory, hf_config(read_header(directory)), None, defaults)
    if not local_path(directory).is_dir():
        raise UserError(f"{directory}: no such directory; give {_EXPECTED}")
    base = adapter_base(directory)
    if base is not None:
        return _with_ends(read_card(base, defaults), directory)
    if is_huggingface(directory):
        return _huggingface_card(directory, defaults)
    if not path.is_file():
        raise UserError(
            f"{directory}: not a model directory (no {MODEL_FILE}, no {CONFIG_FILE} of a model); give {_EXPECTED}"
        )
    try:
        values = read_object(path)
        lists = {name: tuple(values.get(name, ())) for name in ("stop_ids", "stop_tokens")}
        card = ModelCard(**{**values, **lists})
        card.config  # noqa: B018  (checks its values)
    except (ValueError, TypeError, KeyError, AttributeError, UserError) as error:
        raise UserError(f"{path}: cannot be read ({error}); train the stage anew") from error
    return _with_arguments(card, defaults)


def _with_ends(card: ModelCard, adapter: Path) -> ModelCard:
    """The card of an adapter's base, with the ends of responses that the adapter's own generation_config.json adds."""
    generation = read_generation(adapter)
    if generation is None:
        return card
    ends = end_tokens({}, generation, card.config.vocab_size, str(adapter))
    return dataclasses.replace(card, generation=generation, stop_ids=tuple(dict.fromkeys([*card.stop_ids, *ends])))


def is_huggingface(directory: Path) -> bool:
    """Whether a model directory is one in Hugging Face's format. (A workdir has a config.json too, of another kind.)"""
    if (directory / MODEL_FILE).is_file() or not (directory / CONFIG_FILE).is_file():
        return False
    return bool({"model_type", "architectures"} & set(read_config(directory)))


def stands_alone(directory: Path) -> bool:
    """Whether a model directory is no stage's: one in Hugging Face's format, or a GGUF file. Its tokenizer lies there
    too, and not in a folder of its own."""
    return is_gguf(directory) or is_huggingface(directory)


def _huggingface_card(directory: Path, defaults: Defaults) -> ModelCard:
    return _foreign_card(directory, read_config(directory), read_generation(directory), defaults)


def _foreign_card(
    directory: Path, values: dict[str, Any], generation: dict[str, Any] | None, defaults: Defaults
) -> ModelCard:
    """The card of a model that a config.json describes, or what stands for one."""
    where = str(directory if is_gguf(directory) else directory / CONFIG_FILE)
    config, context = decoder_config(values, where), context_length(values, where)
    stored = values.get("torch_dtype", values.get("dtype"))
    stored = stored if stored in DTYPES else "float32"
    settings = dict(dtype=defaults.dtype or stored, remat=defaults.remat, attention=defaults.attention)
    config = dataclasses.replace(config, param_dtype=stored, **settings)
    said: dict[str, Any] = {"kind": "scalar_judge" if is_reward_model(values, where) else "policy"}
    ours = directory / EXPORT_FILE
    if ours.is_file():
        said |= read_object(ours)
    else:
        prompt, response = _lengths(defaults, context)
        said |= {"max_prompt": prompt, "max_response": response}
    ends = end_tokens(values, generation, config.vocab_size, str(directory))
    try:
        card = ModelCard(
            decoder=dataclasses.asdict(config),
            source=values,
            generation=generation,
            context=context,
            stop_ids=ends,
            **said,
        )
    except (ValueError, TypeError, KeyError, UserError) as error:
        raise UserError(f"{ours}: cannot be read ({error}); delete it to use the model as a plain policy") from error
    return _with_arguments(card, defaults)


def _lengths(defaults: Defaults, context: int) -> tuple[int, int]:
    """Tokens of prompts and responses of a Hugging Face model: what is asked for, else what its context leaves."""
    prompt, response = defaults.max_prompt, defaults.max_response
    response = response or max(min(_MOST_NEW_TOKENS, (context - prompt + 1) // 2), 1)
    return prompt or max(context - response, 1), response


def _with_arguments(card: ModelCard, defaults: Defaults) -> ModelCard:
    said: dict[str, Any] = {"template_args": defaults.template_args} if defaults.template_args else {}
    if defaults.stop_tokens and card.source is not None:
        said["stop_tokens"] = tuple(defaults.stop_tokens)
    return dataclasses.replace(card, **said)


def export_card(card: ModelCard) -> dict[str, Any]:
    """Returns the card in `EXPORT_FILE`, which an export keeps beside its config.json."""
    fields = dataclasses.asdict(card)
    return {key: fields[key] for key in ("kind", "max_prompt", "max_response", "template", "merge", "template_args")}
