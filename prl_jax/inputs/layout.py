"""Whether a config and a mesh of devices go together, told before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import read_card
from prl_jax.config.rules import names_at
from prl_jax.errors import UserError
from prl_jax.models import DecoderConfig
from prl_jax.runs.context import is_directory
from prl_jax.stages import KINDS
from prl_jax.stages.kind import Checking


def check_layout(config: ConfigDict, name: str, mesh: Mesh | AbstractMesh) -> None:
    """Raises `UserError`, with the arithmetic, for what a stage cannot be cut into.

    Rows of a batch have to divide by `data * fsdp`, lengths by `sequence`, heads and feed-forward width by `tensor`.
    Nothing else is refused: a vocabulary or a width that does not divide stays whole, on every device, minibatches that
    do not divide are cut less, and microbatches that do not are filled up with empty rows.
    """
    section = config[name]
    what, rows = KINDS[section.kind].rows(section)
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
    for key in ("max_length", "max_prompt", "max_response"):
        if key in config[name]:
            yield key, config[name][key]


def _models(config: ConfigDict, name: str) -> Iterator[tuple[str, DecoderConfig]]:
    """The models that a stage holds. Those of other stages may have been trained on another mesh."""
    section = config[name]
    known, rules = Checking(config, KINDS), KINDS[section.kind].rules
    named = (name for key in rules.models for name in names_at(section, key))
    for value in (one for name in named for one in known.behind(name)):
        if value in config.stages:
            yield from _models(config, value)
        elif is_directory(value):
            yield value, read_card(Path(value)).config
    if section.get("init_from", None) == "":
        yield "model", DecoderConfig.from_dict(config.model.to_dict(), vocab_size=1)
