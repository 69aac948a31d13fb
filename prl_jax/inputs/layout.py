"""Whether a config and a mesh of devices go together, told before anything runs."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path

from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import read_card
from prl_jax.config.rules import names_at
from prl_jax.errors import UserError
from prl_jax.models import DecoderConfig
from prl_jax.runs.context import is_directory
from prl_jax.sharding import BATCH_AXES, batch_parts
from prl_jax.stages import KINDS
from prl_jax.stages.kind import Checking

_SAMPLED = ("policy", "others", "opponent")  # keys of stages that name who samples


def check_layout(config: ConfigDict, name: str, mesh: Mesh | AbstractMesh) -> None:
    """Raises `UserError`, with the arithmetic, for what a stage cannot be cut into.

    Rows of a batch have to divide by `data * fsdp * decode`, lengths by `sequence`, heads and feed-forward width by
    `tensor`, and the heads of whoever samples by `decode` too.
    Nothing else is refused: a vocabulary or a width that does not divide stays whole, on every device, minibatches that
    do not divide are cut less, and microbatches that do not are filled up with empty rows.
    """
    section = config[name]
    what, rows = KINDS[section.kind].rows(section)
    if rows % batch_parts(mesh.shape):
        sizes = " * ".join(
            f"{axis}={mesh.shape[axis]}" for axis in BATCH_AXES if axis != "decode" or mesh.shape[axis] > 1
        )
        raise UserError(f"{name}: {what} = {rows} does not divide among {sizes} shards of a batch")
    for what, length in _lengths(config, name):
        if length % mesh.shape["sequence"]:
            raise UserError(f"{name}: {what} = {length} does not divide by mesh.sequence={mesh.shape['sequence']}")
    for where, decoder in _models(config, name):
        for field in ("heads", "kv_heads", "mlp_width"):
            size, cuts = getattr(decoder, field), mesh.shape["tensor"]
            if size % cuts:
                raise UserError(f"{name}: {where}: {field}={size} does not divide by mesh.tensor={cuts}")
    kept = mesh.shape["tensor"] * mesh.shape["decode"]
    for where, decoder in _models(config, name, _SAMPLED):
        if decoder.kv_heads % kept:
            raise UserError(
                f"{name}: {where}: kv_heads={decoder.kv_heads} does not divide by mesh.tensor * mesh.decode = {kept}"
            )


def _lengths(config: ConfigDict, name: str) -> Iterator[tuple[str, int]]:
    """Static lengths of rows, and what they are."""
    for key in ("max_length", "max_prompt", "max_response"):
        if key in config[name]:
            yield key, config[name][key]


def _models(config: ConfigDict, name: str, keys: Container[str] | None = None) -> Iterator[tuple[str, DecoderConfig]]:
    """The models that a stage holds, or those that it names under some keys.

    Those of other stages may have been trained on another mesh.
    """
    section = config[name]
    known, rules = Checking(config, KINDS), KINDS[section.kind].rules
    named = (name for key in rules.models if keys is None or key in keys for name in names_at(section, key))
    for value in (one for name in named for one in known.behind(name)):
        if value in config.stages:
            yield from _models(config, value)
        elif is_directory(value):
            yield value, read_card(Path(value)).config
    if section.get("init_from", None) == "":
        yield "model", DecoderConfig.from_dict(config.model.to_dict(), vocab_size=1)
