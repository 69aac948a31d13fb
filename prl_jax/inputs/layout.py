"""Whether a config and a mesh of devices go together, told before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import read_card
from prl_jax.errors import UserError
from prl_jax.models import DecoderConfig
from prl_jax.runs.context import is_directory


def check_layout(config: ConfigDict, name: str, mesh: Mesh | AbstractMesh) -> None:
    """Raises `UserError`, with the arithmetic, for what a stage cannot be cut into.

    Rows of a batch have to divide by `data * fsdp`, lengths by `sequence`, heads and feed-forward width by `tensor`.
    Nothing else is refused: a vocabulary or a width that does not divide stays whole, on every device, minibatches that
    do not divide are cut less, and microbatches that do not are filled up with empty rows.
    """
    section = config[name]
    what, rows = "batch_size", section.get("batch_size", 0)
    if section.kind == "ppo":
        what, rows = "prompts_per_step * group_size", section.prompts_per_step * section.group_size
    if rows % (mesh.shape["data"] * mesh.shape["fsdp"]):
        raise UserError(
            f"{name}: {what} = {rows} does not divide among data={mesh.shape['data']} * fsdp={mesh.shape['fsdp']} "
            "shards of a batch"
        )
    for what, length in _lengths(config, name):
        if length % mesh.shape["sequence"]:
            raise UserError(f"{name}: {what} = {length} does not divide by mesh.sequence={mesh.shape['sequence']}")
    for where, decoder in _models(config, name):
        for field in ("heads", "kv_heads", "mlp_width"):
            size, cuts = getattr(decoder, field), mesh.shape["tensor"]
            if size % cuts:
                raise UserError(f"{name}: {where}: {field}={size} does not divide by mesh.tensor={cuts}")


def _lengths(config: ConfigDict, name: str) -> Iterator[tuple[str, int]]:
    """Static lengths of rows, and what they are."""
    section = config[name]
    if section.kind == "generative":
        yield "max_length", section.max_length
    elif section.kind in ("sft", "bradley_terry"):
        yield "max_prompt", section.max_prompt
        yield "max_response", section.max_response


def _models(config: ConfigDict, name: str) -> Iterator[tuple[str, DecoderConfig]]:
    """The models that a stage holds. Those of other stages may have been trained on another mesh."""
    section = config[name]
    for value in (*(section.get(key, None) for key in ("init_from", "policy", "judge", "baseline")), *_judges(section)):
        if value in config.stages:
            yield from _models(config, value)
        elif value is not None and is_directory(value):
            yield value, read_card(Path(value)).config
    if section.get("init_from", None) == "":
        yield "model", DecoderConfig.from_dict(config.model.to_dict(), vocab_size=1)


def _judges(section: ConfigDict) -> tuple[str, ...]:
    return (section.evaluation.judge,) if section.kind == "ppo" else tuple(section.get("judges", ()))
