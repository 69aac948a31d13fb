"""Log-probabilities that frozen policies give to fixed responses: asked once, kept with the stage, and read as data."""

from __future__ import annotations

import dataclasses
import functools
import io
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from prl_jax.data.rows import stack_rows
from prl_jax.errors import UserError, naming
from prl_jax.file_names import REFERENCES_FILE
from prl_jax.files import local_path, write_bytes
from prl_jax.judges.base import in_batches
from prl_jax.judges.likelihood import frozen_log_probs
from prl_jax.measuring.files import identity
from prl_jax.processes import is_leader, shared, wait_for_all
from prl_jax.runs.context import StageContext
from prl_jax.runs.models import LoadedModels
from prl_jax.runs.pieces import Pieces, batches, check_finite, drop_pieces, pieces
from prl_jax.text.tokenizer import HFTokenizer, Tokenizer
from prl_jax.types import SFTBatch

Rows = Callable[[int], Sequence[SFTBatch]]


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Fixed responses of a source.

    Attributes:
      rows: number of a record -> its responses behind their prompts, `R` of each record.
      count: how many records there are.
      place: says where a record stands, in messages.
    """

    rows: Rows
    count: int
    place: Callable[[int], str]


def reference_log_probs(
    context: StageContext,
    models: LoadedModels,
    names: Sequence[str],
    fixed: Mapping[str, Fixed],
    *,
    precomputed: str = "",
) -> dict[str, Float[np.ndarray, "J N R"]]:
    """Log-probabilities of the responses of each source under each policy, sums over tokens, float32.

    Each policy is loaded, asked and freed before the next one. A stage that was stopped goes on behind the batch that
    it has kept; a finished pass stands in `references.npz`, with a checksum of the numbers and one of each record's
    tokens.

    Args:
      context: of the stage.
      models: of the stage; its tokenizer is that of the rows.
      names: of the policies.
      fixed: name of a source -> its responses.
      precomputed: the folder of a stage that has asked these policies about the same rows; "" asks them.

    Raises:
      UserError: a policy has another tokenizer, or gives a number that is not finite; a file is damaged, or is about
        other rows.
    """
    if not names:
        return {source: np.zeros((0, one.count, 0), np.float32) for source, one in fixed.items()}
    kept = context.directory / REFERENCES_FILE
    if precomputed:
        return _read(local_path(precomputed) / REFERENCES_FILE, len(names), fixed, _checksums(fixed))
    if kept.is_file():  # of the same config, and thus of the same rows
        return _read(kept, len(names), fixed, None)
    found = _asked(context, models, names, fixed)
    if is_leader():
        _write(kept, found, _checksums(fixed))
        drop_pieces(context.directory)
    else:
        _checksums(fixed)
    wait_for_all("references")
    return found


def _asked(
    context: StageContext, models: LoadedModels, names: Sequence[str], fixed: Mapping[str, Fixed]
) -> dict[str, Float[np.ndarray, "J N R"]]:
    size = context.section.batch_size
    total = len(names) * sum(batches(one.count, size) for one in fixed.values())
    found: dict[str, list[Any]] = {source: [] for source in fixed}
    with pieces(context, total, f"{context.name}.references") as piece:
        for number, name in enumerate(names):
            policy = models.policy(name)
            _check_tokenizer(context.name, name, policy.tokenizer, models.tokenizer)
            for source, one in fixed.items():
                found[source].append(_responses_of(context, policy.model, one, piece, f"{source}_{number}", size))
            del policy
    return {source: np.array(values, np.float32) for source, values in found.items()}


def _responses_of(
    context: StageContext, model: Any, fixed: Fixed, piece: Pieces, name: str, size: int
) -> list[list[float]]:
    """A list of `R` numbers for each record."""

    rows_of = functools.lru_cache(maxsize=1)(fixed.rows)  # the responses of a record stand next to each other

    def ask(first: int, part: Sequence[int]) -> list[list[float]]:
        width = len(rows_of(part[0]))

        def encode(index: Int[np.ndarray, "n"]) -> tuple[SFTBatch, Bool[np.ndarray, "n 1"]]:
            rows = [rows_of(part[i // width])[i % width] for i in index.tolist()]
            return stack_rows(rows), np.zeros((len(rows), 1), bool)

        forward: Any = functools.partial(frozen_log_probs, model)
        sums, _ = in_batches(forward, encode, width * len(part), width * size, context.mesh)
        with naming(context.name):
            check_finite(sums, "references: log-probabilities of responses")
        return sums.reshape(len(part), width).tolist()

    return piece.each(name, range(fixed.count), size, ask)


def _check_tokenizer(stage: str, name: str, one: Tokenizer | None, other: Tokenizer) -> None:
    # Chat templates may differ: the rows are those of the policy that is trained.
    both = isinstance(one, HFTokenizer) and isinstance(other, HFTokenizer)
    if other.differing(one) if both else identity(one) != identity(other):
        raise UserError(
            f"{stage}.references: {name!r} has another tokenizer than the policy that is trained, so that its "
            "log-probabilities are of other tokens; take a model of the same family"
        )


def _checksums(fixed: Mapping[str, Fixed]) -> dict[str, Int[np.ndarray, "N"]]:
    """A checksum of each record's tokens, by source."""

    def of(one: Fixed, i: int) -> int:
        found = 0
        for row in one.rows(i):
            found = zlib.crc32(row.targets[row.mask].tobytes(), zlib.crc32(row.rows.tokens.tobytes(), found))
        return found & 0x7FFFFFFF

    return {source: shared(functools.partial(of, one), one.count) for source, one in fixed.items()}


def _write(path: Path, found: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]) -> None:
    """One file, whole or not at all."""
    arrays = {f"log_probs/{source}": values for source, values in found.items()}
    arrays |= {f"rows/{source}": values.astype(np.int32) for source, values in rows.items()}
    buffer = io.BytesIO()
    np.savez(buffer, checksum=np.uint32(_checksum(arrays)), **arrays)
    write_bytes(path, buffer.getvalue())


def _read(
    path: Path, references: int, fixed: Mapping[str, Fixed], rows: Mapping[str, np.ndarray] | None
) -> dict[str, Float[np.ndarray, "J N R"]]:
    """The numbers of a file. `rows` are the checksums that the records have here; None where they are known to be the
    same."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        kept = int(arrays.pop("checksum"))
        found = {source: arrays[f"log_probs/{source}"] for source in fixed}
        known = {source: arrays[f"rows/{source}"] for source in fixed}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: holds no log-probabilities of references ({error}); remove it to ask anew") from error
    if kept != _checksum(arrays):
        raise UserError(f"{path}: is damaged (its checksum is another one); remove it to ask anew")
    for source, one in fixed.items():
        shape = found[source].shape
        if len(shape) != 3 or shape[:2] != (references, one.count) or known[source].shape != (one.count,):
            raise UserError(
                f"{path}: has {shape[0]} references of {len(known[source])} records of {source}, expected {references} "
                f"of {one.count}; ask the references anew"
            )
        if rows is not None and (other := np.flatnonzero(known[source] != rows[source])).size:
            raise UserError(
                f"{path}: is about other rows: the first one that differs is {one.place(int(other[0]))} "
                f"({len(other)} of {one.count} of {source}); ask the references anew"
            )
    return found


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    found = 0
    for name in sorted(arrays):
        found = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), zlib.crc32(name.encode(), found))
    return found
