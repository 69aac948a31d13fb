"""The surroundings of every stage, and the few things that all stages do alike."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import Defaults
from prl_jax.artifacts.models import model_tokenizer
from prl_jax.config.rules import MIX
from prl_jax.data.lines import Limits
from prl_jax.data.sources import Records, SourceSpec, load_records, mixed
from prl_jax.errors import UserError, naming
from prl_jax.file_names import DATA_DIR, PAIRS_FILE, TOKENIZER_DIR
from prl_jax.gguf_file import SUFFIX
from prl_jax.measuring.records import valid_records
from prl_jax.models import Decoder, LoraConfig, with_adapters, with_param_dtype
from prl_jax.processes import is_leader
from prl_jax.progress import Progress
from prl_jax.runs.stopping import StopSignal
from prl_jax.runs.workdir import Workdir
from prl_jax.streams import Stream, order_seed, stage_key, stream_key
from prl_jax.text.common import FILE_NAME
from prl_jax.text.tokenizer import BPETokenizer, ByteTokenizer, HFTokenizer, Tokenizer, load_tokenizer

OF_STAGE = "stage"  # the kind of a source that an earlier stage of the run makes


@dataclasses.dataclass(frozen=True)
class StageContext:
    """A stage's surroundings.

    Attributes:
      name: of the stage, its section and its folder.
      config: the whole config.
      workdir: the run's folder.
      mesh: devices.
      stop: tells whether the run is to end early.
      left_out: source and kind of record (`source_key`) -> numbers of its records that cannot be read (`skip_invalid`).
    """

    name: str
    config: ConfigDict
    workdir: Workdir
    mesh: Mesh
    stop: StopSignal = dataclasses.field(default_factory=StopSignal)
    left_out: Mapping[tuple[Any, ...], Sequence[int]] = dataclasses.field(default_factory=dict)

    @property
    def section(self) -> ConfigDict:
        """The stage's own part of the config."""
        return self.config[self.name]

    @property
    def directory(self) -> Path:
        return self.workdir.stage(self.name)

    @property
    def key(self) -> jax.Array:
        """The stage's random key: from the seed and the stage's name."""
        return stage_key(self.config.seed, self.name)

    @property
    def data_seed(self) -> int:
        """Seed of the stage's data order."""
        return order_seed(self.config.seed, self.name)

    def stage(self, name: str) -> Path:
        """Folder of another stage of this run, or the model directory that stands in its place."""
        if is_directory(name):
            return Path(name)
        if name not in self.config.stages:
            raise UserError(
                f"{self.name}: needs stage {name!r}, which is not among the stages {tuple(self.config.stages)}"
            )
        return self.workdir.stage(name)

    def pairs_file(self, source: ConfigDict) -> Path:
        """The file of a source that an earlier stage of this run makes; it may not be there yet."""
        return self.stage(source.path) / PAIRS_FILE

    @property
    def defaults(self) -> Defaults:
        """The settings of models that Hugging Face directories do not hold."""
        return model_defaults(self.config)

    @property
    def counters(self) -> dict[str, int]:
        """How many records the stage leaves out, where it may leave out any."""
        count = sum(map(len, self.left_out.values()))
        return {"invalid_rows_skipped": count} if self.config.skip_invalid else {}

    def records(self, source: ConfigDict, what: str) -> Records:
        """Records of a source section, without those that cannot be read."""
        if source.kind == MIX:
            parts = source[MIX].values()
            read = [self.records(part, what) for part in parts]
            with naming(self.name):
                return mixed(read, [part.weight for part in parts])
        with naming(self.name):
            records = self.all_records(source, what)
        left_out = self.left_out.get(source_key(source, what), ())
        return records.take(np.delete(np.arange(len(records)), left_out)) if len(left_out) else records

    def all_records(self, source: ConfigDict, what: str) -> Records:
        """Records of the section of a source that is no mixture. A file that has changed since the run began is a
        `UserError`."""
        spec = dataclasses.replace(
            source_spec(source),
            builder_args=gold_arguments(self.config) if source.kind == "gold" else {},
            limits=Limits(**self.config.limits),
        )
        made_here = source.kind == OF_STAGE
        if made_here:
            spec = dataclasses.replace(spec, kind="jsonl", path=str(self.pairs_file(source)))
        records = load_records(spec, what, data_dir=self.workdir.path / DATA_DIR)
        if records.fingerprint is not None and not made_here:
            name = f"{source.path}/{source.split}" if source.kind == "tfds" else source.path
            self.workdir.recognise(name.replace("{split}", source.split), records.fingerprint)
        kept = records[source.skip :]
        if not kept:
            raise UserError(
                f"skip={source.skip} leaves no record of {source.path or source.kind}, which has {len(records)}"
            )
        return kept

    def progress(self, total: int, *, name: str = "", unit: str = "step") -> Progress:
        """A progress line on standard error, of the first process; `name` stands for that of the stage."""
        stream = sys.stderr if self.config.logging.progress and is_leader() else _Silent()
        return Progress(name or self.name, total, stream=stream, unit=unit)


def source_spec(source: ConfigDict) -> SourceSpec:
    """The data set of a source section, up to the last record that the section names."""
    end = source.limit and source.limit + source.skip
    return SourceSpec(kind=source.kind, path=source.path, split=source.split, limit=end)


def source_key(source: ConfigDict, what: str) -> tuple[Any, ...]:
    """Tells apart what sections of sources and kinds of records name."""
    return (source.kind, source.path, source.split, source.limit, source.skip, what)


def is_directory(name: str) -> bool:
    """Whether a config names a model directory (`./model`, `/models/qwen`) or GGUF file where it could name a stage."""
    return "/" in name or name.lower().endswith(SUFFIX)


def model_defaults(config: ConfigDict) -> Defaults:
    """Returns what a config says of models where their Hugging Face directories do not."""
    values = config.huggingface.to_dict()
    values["stop_tokens"] = tuple(values["stop_tokens"])  # a list in a config that was read from JSON
    model = config.model
    return Defaults(**values, dtype=model.dtype, remat=model.remat, attention=model.attention)


def start_of(section: ConfigDict) -> str:
    """The name of the model that a stage's own model starts from; "" where it is made from scratch.

    A kind of stage that trains has one of two keys: `init_from`, which takes any model and may be empty, or `policy`.
    """
    return section.init_from if "init_from" in section else section.policy


def gold_arguments(config: ConfigDict) -> dict[str, Any]:
    """Arguments of the built-in tasks, without those that leave the builder its default."""
    values = config.gold.to_dict()
    return {k: v for k, v in values.items() if v != () and not (k == "train_rows" and v == 0)}


class _Silent:
    """A stream that swallows everything."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def stage_tokenizer(context: StageContext, of_run: Tokenizer | None = None) -> Tokenizer:
    """The tokenizer of a stage that trains from text: of the model directory that it starts from, else the run's."""
    directory = first_model(context)
    if directory:
        return model_tokenizer(Path(directory), context.defaults)
    return run_tokenizer(context) if of_run is None else of_run


def run_tokenizer(context: StageContext) -> Tokenizer:
    """The tokenizer of the models that a run makes from scratch.

    A trained one is read from the workdir where it is kept, and trained where it is not.
    """
    section, directory = context.config.tokenizer, context.workdir.path / TOKENIZER_DIR
    if section.kind == "byte":
        return ByteTokenizer()
    if section.kind == "huggingface":
        return HFTokenizer(Path(section.path), context.defaults.template_args)
    if section.kind != "bpe":
        raise UserError(f"tokenizer.kind={section.kind!r}, expected 'byte', 'bpe' or 'huggingface'")
    if (directory / FILE_NAME).is_file():
        return load_tokenizer(directory)
    with naming("tokenizer.data"):
        allowed = context.config.skip_invalid
        records, _ = valid_records(context.all_records(section.data, "preference"), None, allowed=allowed)
        texts = [t for r in records for t in (*(turn.content for turn in r.prompt), r.chosen, r.rejected)]
    return BPETokenizer.train(texts, section.vocab_size)


def first_model(context: StageContext) -> str:
    """The model directory that a stage and those before it start from; "" where they start from scratch."""
    return root_of(context.config, context.section.init_from)


def root_of(config: ConfigDict, name: str) -> str:
    """The model directory that the model of this name descends from; "" where it is made from scratch."""
    while name and not is_directory(name):
        name = start_of(config[name])
    return name


def keep_tokenizer(context: StageContext, tokenizer: Tokenizer) -> None:
    """Keeps a trained tokenizer for the later stages, before any model depends on it."""
    directory = context.workdir.path / TOKENIZER_DIR
    if context.config.tokenizer.kind == "bpe" and not (directory / FILE_NAME).is_file():
        tokenizer.save(directory)


def trains_from_text(section: ConfigDict) -> bool:
    """Whether a stage reads text with a tokenizer of its own: that of what it starts from, or the run's."""
    return "init_from" in section


def trainable(decoder: Decoder) -> Decoder:
    """A copy whose parameters are float32, so that small updates count."""
    return jax.tree.map(jnp.copy, with_param_dtype(decoder, "float32"))


def lora_config(section: ConfigDict) -> LoraConfig:
    """The adapters that a stage asks for."""
    lora = section.lora
    return LoraConfig(lora.rank, lora.alpha, tuple(lora.targets), lora.dropout)


def adapted(context: StageContext, decoder: Decoder, *, stream: Stream) -> Decoder:
    """The decoder with the fresh adapters that the stage's section asks for; each stream has its own."""
    lora = lora_config(context.section)
    return with_adapters(decoder, lora, context.mesh, key=stream_key(context.key, stream))


def sampling_of(section: ConfigDict, temperature: float | None = None) -> dict[str, Any]:
    """Returns what a section says of sampling, as `sampling_config` takes it.

    Args:
      section: has the keys `temperature` and `sampling`.
      temperature: another one; at 0 the switches that cut the distribution of a warmer one are left out.
    """
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in section.sampling.to_dict().items()}
    values["temperature"] = section.temperature
    if temperature is not None:
        values["temperature"] = temperature
        if temperature == 0 and section.temperature:
            values = {k: v for k, v in values.items() if k not in ("top_k", "top_p", "min_p")}
    return values


def base_name(context: StageContext, base: Path) -> str:
    """How the card of this stage names another model's directory: a workdir can move with all its stages."""
    inside = base.resolve().is_relative_to(context.workdir.path.resolve())
    return os.path.relpath(base.resolve(), context.directory.resolve()) if inside else str(base.resolve())


def with_structure(decoder: Decoder, tokenizer: Tokenizer) -> Decoder:
    """Gives the structural tokens of judging, which a policy never sees, the meaning of the assistant's token.

    A response in a judge's row then looks to the decoder like one that it wrote itself, which is what it knows to
    judge; what remains of their random start keeps the slots apart.
    """
    source = tokenizer.special("assistant")
    ids = [tokenizer.special(name) for name in ("first", "second", "verdict", "reference")]
    if source is None or None in ids:
        return decoder
    table = decoder.embedding[...]
    decoder.embedding[...] = table.at[jnp.asarray(ids)].add(table[source])
    return decoder
