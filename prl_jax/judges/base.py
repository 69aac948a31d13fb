"""The protocol that every judge follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, Shaped

from prl_jax.errors import UserError
from prl_jax.processes import batch_rows, fetch, greatest, put_batch, whole_batch
from prl_jax.text.chat import Prompt
from prl_jax.text.padding import static_length
from prl_jax.types import SFTBatch, TokenRows

Rows = TypeVar("Rows", TokenRows, SFTBatch)
_TINY = 1e-12  # how near to 0 and 1 a probability is believed


class Judged(NamedTuple):
    """Judgements of `N` pairs, as logits of "slot 1 wins", float32.

    Attributes:
      z_12: `[N]`, response 1 in slot 1.
      z_21: `[N]`, the two exchanged.
      merge: how the two orders become one answer, of `SPACES`: the mean of their probabilities, or of their logits.
      cut: `[N]` bool, pairs of which the judge's rows did not hold all; None of a judge that reads them whole.
      deviation: `[N]` float64, the standard deviation over several judges of P(response 1 is better); None of one.
    """

    z_12: Float[np.ndarray, "N"]
    z_21: Float[np.ndarray, "N"]
    merge: str = "probability"
    cut: Bool[np.ndarray, "N"] | None = None
    deviation: Float[np.ndarray, "N"] | None = None

    @property
    def cuts(self) -> int:
        """The number of pairs that were cut."""
        return 0 if self.cut is None else int(self.cut.sum())

    @property
    def p_12(self) -> Float[np.ndarray, "N"]:
        """`[N]` P(slot 1 wins) with response 1 in slot 1."""
        return _sigmoid(self.z_12)

    @property
    def p_21(self) -> Float[np.ndarray, "N"]:
        """`[N]` P(slot 1 wins) with response 2 in slot 1."""
        return _sigmoid(self.z_21)

    @property
    def p_first(self) -> Float[np.ndarray, "N"]:
        """`[N]` float64, P(response 1 is better) from both orders: `(p_12 + 1 - p_21) / 2`, or with `merge="logit"`
        `sigmoid((z_12 - z_21) / 2)`. Orders that contradict each other exactly give exactly 0.5."""
        if self.merge == "logit":
            return 0.5 * (1.0 + np.tanh(0.25 * (self.z_12.astype(np.float64) - self.z_21.astype(np.float64))))
        return (self.p_12.astype(np.float64) + 1.0 - self.p_21.astype(np.float64)) / 2.0


class Scored(NamedTuple):
    """Scores of `N` responses.

    Attributes:
      scores: `[N]` float32.
      cut: `[N]` bool, responses that, or whose prompts, were cut for the judge.
      deviation: `[N]` float64, the standard deviation over the scores of several judges; None of one judge.
    """

    scores: Float[np.ndarray, "N"]
    cut: Bool[np.ndarray, "N"]
    deviation: Float[np.ndarray, "N"] | None = None


@runtime_checkable
class Judge(Protocol):
    """`(prompt, response 1, response 2) -> P(response 1 is better)`, for both orders of `N` pairs at once.

    Attributes:
      merge: how its two orders become one answer, see `Judged`.
    """

    merge: str

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged: ...


@runtime_checkable
class ScoringJudge(Protocol):
    """A judge that can score single responses too, the larger the better."""

    merge: str

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged: ...

    def scored(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Scored: ...


@runtime_checkable
class CountingJudge(Protocol):
    """A judge that counts what it does, since it was made."""

    def counters(self) -> Mapping[str, float]: ...


@runtime_checkable
class OneOrderJudge(Protocol):
    """A judge that can be asked in one order, for half of what both cost.

    Its answer has `z_21 = -z_12`, as of a judge without a preference for a slot.
    """

    merge: str

    def one_order(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged: ...


def judge_pairs(
    judge: Judge, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str], *, one_order: bool = False
) -> Judged:
    """Asks a judge, but for pairs with identical responses, which are even by definition (probability 0.5).

    Those that are identical as far as the judge can read them are even too; the judge itself sees to that.

    Args:
      judge: whom to ask.
      prompts, first, second: `N` pairs.
      one_order: whether the order that is given is the only one that counts, see `OneOrderJudge`; a judge that cannot
        be asked so is asked in both.
    """
    different = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    z_12, z_21 = np.zeros(len(prompts), np.float32), np.zeros(len(prompts), np.float32)
    cut, deviation = np.zeros(len(prompts), bool), None
    if different:
        asked = [prompts[i] for i in different], [first[i] for i in different], [second[i] for i in different]
        judged = judge.one_order(*asked) if one_order and isinstance(judge, OneOrderJudge) else judge(*asked)
        z_12[different], z_21[different] = judged.z_12, -judged.z_12 if one_order else judged.z_21
        if judged.cut is not None:
            cut[different] = judged.cut
        if judged.deviation is not None:
            deviation = np.zeros(len(prompts))
            deviation[different] = judged.deviation
    return Judged(z_12, z_21, judge.merge, cut, deviation)


def in_batches(
    forward: Callable[[Rows], jax.Array],
    encode: Callable[[Int[np.ndarray, "n"]], tuple[Rows, Shaped[np.ndarray, "n K"]]],
    count: int,
    batch_size: int,
    mesh: Mesh | None,
    sizes: Sequence[int] | None = None,
) -> tuple[Float[np.ndarray, "N *rest"], Shaped[np.ndarray, "N K"]]:
    """Runs a jitted function over rows in batches of few shapes; the last one is filled up with the last row.

    Rows of about the same length share a batch, which is no longer than they need (`static_length`). Fewer rows than a
    batch are filled up to a power of two, so that another number of rows seldom compiles anew. The host makes a batch
    while the devices read the one before.

    Args:
      forward: rows of a batch -> a number or more for each.
      encode: which rows, of `count` -> these rows, numpy, right-padded, and what else is to be known of each; it may
        refuse one with a `UserError`.
      batch_size: rows of a batch, at most; a little more where the mesh has more shards.
      mesh: cuts the rows over its devices and processes; None computes where the parameters of `forward` are.
      sizes: of `count` rows about how long each is, in any unit; in the order given where nothing tells.

    Returns:
      `[N, ...]` and `[N, K]`, the same in every process. Each process encodes only rows that its own devices read.
    """
    size = min(batch_size, 1 << (count - 1).bit_length())
    size = size if mesh is None else whole_batch(size, mesh)
    order = np.arange(count) if sizes is None else np.argsort(sizes, kind="stable")
    found, running = [], None
    for index in batch_rows(count, size, mesh):
        try:
            rows, flags = encode(order[index])
        except UserError:
            for row in range(count):  # the first row that is refused is named, not the shortest one
                encode(np.array([row]))
            raise
        batch = trimmed(rows, alone=mesh is None), flags
        rows, flags = batch if mesh is None else put_batch(batch, mesh)
        before, running = running, (forward(rows), flags)
        if before is not None:
            found.append(fetch(before, mesh))
    found.append(fetch(running, mesh))
    back = np.argsort(order, kind="stable")
    values, known = (np.concatenate(parts)[:count][back] for parts in zip(*found, strict=True))
    return values, known


def trimmed(rows: Rows, *, alone: bool) -> Rows:
    """Right-padded rows without the columns that none of a batch needs, in no process unless this one is `alone`."""
    segments = (rows if isinstance(rows, TokenRows) else rows.rows).segments
    longest = int((segments > 0).sum(axis=1).max())
    length = static_length(longest if alone else greatest(longest), segments.shape[1])
    return jax.tree.map(lambda x: x[:, :length], rows)


def text_sizes(prompts: Sequence[Prompt], *columns: Sequence[str]) -> list[int]:
    """About how long a row of each prompt and its texts is, in characters."""
    asked = (sum(len(turn.content) for turn in prompt) for prompt in prompts)
    return [question + sum(map(len, texts)) for question, *texts in zip(asked, *columns, strict=True)]


def logits(p: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Logits of probabilities, float32; within 1e-12 of 0 and 1 these are taken for no nearer."""
    p = np.clip(p.astype(np.float64), _TINY, 1.0 - _TINY)
    return (np.log(p) - np.log1p(-p)).astype(np.float32)


def _sigmoid(z: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    return (0.5 * (1.0 + np.tanh(0.5 * z))).astype(np.float32)


def check_lengths(*columns: Sequence[Any]) -> None:
    """Raises ValueError unless all columns have the same length."""
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"a judge got columns of {[len(column) for column in columns]} rows, expected the same number")
