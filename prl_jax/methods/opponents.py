"""Piece 2: whom each response to a prompt is compared with."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from prl_jax.errors import UserError
from prl_jax.losses import opponents
from prl_jax.methods.checks import check_range, check_word

ORDERS = ("both", "one", "random")


class Slots(NamedTuple):
    """The orders in which comparisons are judged, each `[B, G, M]` bool of `G` responses and `M` candidates.

    Attributes:
      first: the response stands in slot 1.
      second: it stands in slot 2.
    """

    first: Bool[Array, "B G M"]
    second: Bool[Array, "B G M"]


@runtime_checkable
class Opponents(Protocol):
    """Chooses among candidates: texts that stand for the prompt, or the other responses to it.

    Attributes:
      kind: its name in configs.
      candidates: "none", "anchors" (texts that an anchors stage has kept for the prompt), "sampled" (texts that are
        sampled for the prompt at each step, beside the responses) or "group" (the responses themselves).
      sampler: whose samples they are where candidates are sampled: "greedy" (the policy, always the likeliest token),
        "past" (an earlier policy) or "mixture" (of the policy and its reference); else "".
      multiple: the number of responses to a prompt is a multiple of this.
      least_group: how many responses a prompt needs at least.
      complete: whether all responses to a prompt meet each other.
      orders: in which orders a comparison is judged: "both", "one" (the response in slot 1; within a group the earlier
        member) or "random" (one, drawn anew at each step).
      remembers: how many earlier policies the stage keeps in memory for it.
      every: the steps between two of them.
    """

    kind: ClassVar[str]
    candidates: ClassVar[str]
    sampler: ClassVar[str]
    multiple: ClassVar[int]
    least_group: ClassVar[int]
    complete: ClassVar[bool]

    @property
    def orders(self) -> str: ...

    @property
    def remembers(self) -> int: ...

    @property
    def every(self) -> int: ...

    def per_response(self, group_size: int, anchors: int) -> int:
        """Comparisons of a response, where a prompt has so many responses and anchors."""
        ...

    def pairs(self, group_size: int, anchors: int) -> int:
        """Comparisons that are judged for a prompt, each in one order or in both; one serves both of its members."""
        ...

    def mask(self, exists: Bool[Array, "B G M"], keys: Key[Array, "B"]) -> Bool[Array, "B G M"]:
        """Who of `M` candidates is met by each of `G` responses to each of `B` prompts.

        Args:
          exists: `[B, G, M]`, which candidates there are.
          keys: `[B]`, a key for each prompt, for what is drawn.
        """
        ...

    def slots(self, mask: Bool[Array, "B G M"], keys: Key[Array, "B"]) -> Slots:
        """The orders in which each comparison of `mask` is judged; within a group both members mean the same one."""
        ...


class _OfNow:
    """Opponents that are not sampled, and that no earlier policy is among."""

    candidates: ClassVar[str]
    sampler: ClassVar[str] = ""
    multiple: ClassVar[int] = 1
    least_group: ClassVar[int] = 1
    complete: ClassVar[bool] = False

    def per_response(self, group_size: int, anchors: int) -> int:
        return 1

    def pairs(self, group_size: int, anchors: int) -> int:
        return group_size * self.per_response(group_size, anchors) // (2 if self.candidates == "group" else 1)

    @property
    def remembers(self) -> int:
        return 0

    @property
    def every(self) -> int:
        return 1


@dataclasses.dataclass(frozen=True)
class _Ordered(_OfNow):
    """Opponents whose comparisons are judged in both orders, or in one."""

    orders: str = "both"

    def __post_init__(self) -> None:
        check_word(self, "orders", ORDERS)

    def slots(self, mask, keys):
        if self.orders == "both":
            return Slots(mask, mask)
        within = self.candidates == "group"
        first = self._coins(mask, keys) if self.orders == "random" else jnp.ones_like(mask)
        if within:  # the later member of a pair stands where the earlier one leaves room
            earlier = jnp.triu(jnp.ones(mask.shape[1:], bool), 1)[None]
            first = jnp.where(earlier, first, ~jnp.swapaxes(first, 1, 2))
        return Slots(mask & first, mask & ~first)

    @staticmethod
    def _coins(mask: Bool[Array, "B G M"], keys: Key[Array, "B"]) -> Bool[Array, "B G M"]:
        return jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1), shape=mask.shape[1:]))(keys)


def check_beaten(piece: Anchors | Pool) -> None:
    """Raises `UserError` for a probability that does not say who has won."""
    if piece.beaten and not 0.5 < piece.beaten < 1:
        raise UserError(f"beaten={piece.beaten!r}, expected above 0.5 and below 1, or 0 for never")


@dataclasses.dataclass(frozen=True)
class NoOpponent(_OfNow):
    """Responses are scored one by one."""

    kind: ClassVar[str] = "none"
    candidates: ClassVar[str] = "none"

    @property
    def orders(self) -> str:
        return "both"

    def per_response(self, group_size: int, anchors: int) -> int:
        return 0

    def mask(self, exists, keys):
        return exists & False

    def slots(self, mask, keys):
        return Slots(mask, mask)


@dataclasses.dataclass(frozen=True)
class Anchors(_Ordered):
    """Every anchor of the prompt.

    Attributes:
      stage: the anchors stage that made them.
      beaten: a response that beats an anchor with at least this probability takes its place from the next step on, one
        a prompt and step; 0 for never. Of a judge that scores it is the sigmoid of the gap of two scores.
    """

    kind: ClassVar[str] = "anchors"
    candidates: ClassVar[str] = "anchors"
    stage: str = "anchors"
    beaten: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beaten(self)

    def per_response(self, group_size: int, anchors: int) -> int:
        return anchors

    def mask(self, exists, keys):
        return opponents("anchor", exists)


@dataclasses.dataclass(frozen=True)
class Pool(_Ordered):
    """Some anchors of the prompt, drawn anew at each step, the same for all responses to the prompt.

    Attributes:
      stage: the anchors stage that made them.
      draws: how many are drawn; all, where there are fewer.
      beaten: as of `Anchors`.
    """

    kind: ClassVar[str] = "pool"
    candidates: ClassVar[str] = "anchors"
    stage: str = "anchors"
    draws: int = 1
    beaten: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, ("draws",), 1, float("inf"))
        check_beaten(self)

    def per_response(self, group_size: int, anchors: int) -> int:
        return min(self.draws, anchors)

    def mask(self, exists, keys):
        return opponents("pool", exists, keys=keys, draws=self.draws)


@dataclasses.dataclass(frozen=True)
class Peer(_Ordered):
    """The neighbour among the responses to the prompt: the first with the second, the third with the fourth."""

    kind: ClassVar[str] = "peer"
    candidates: ClassVar[str] = "group"
    multiple: ClassVar[int] = 2
    least_group: ClassVar[int] = 2

    def mask(self, exists, keys):
        return opponents("peer", exists)


@dataclasses.dataclass(frozen=True)
class Group(_Ordered):
    """Every other response to the prompt."""

    kind: ClassVar[str] = "group"
    candidates: ClassVar[str] = "group"
    complete: ClassVar[bool] = True
    least_group: ClassVar[int] = 2

    def per_response(self, group_size: int, anchors: int) -> int:
        return group_size - 1

    def mask(self, exists, keys):
        return opponents("group", exists)


@dataclasses.dataclass(frozen=True)
class Circular(_OfNow):
    """The next and the previous response to the prompt, the last and the first being neighbours.

    Each response stands once in each slot, in as many comparisons as there are responses.
    """

    kind: ClassVar[str] = "circular"
    candidates: ClassVar[str] = "group"
    least_group: ClassVar[int] = 2

    @property
    def orders(self) -> str:
        return "one"

    def per_response(self, group_size: int, anchors: int) -> int:
        return min(2, group_size - 1)

    def pairs(self, group_size: int, anchors: int) -> int:
        return group_size

    def mask(self, exists, keys):
        ahead = _ahead(exists.shape[1])
        return exists & ((ahead == 1) | (ahead == exists.shape[1] - 1)) & (ahead != 0)

    def slots(self, mask, keys):
        ahead = _ahead(mask.shape[1])
        return Slots(mask & (ahead == 1), mask & (ahead == mask.shape[1] - 1))


def _ahead(size: int) -> Array:
    """`[1, G, G]` int32, how far each member of a ring is ahead of each."""
    i = jnp.arange(size)
    return ((i[None, :] - i[:, None]) % size)[None]


@dataclasses.dataclass(frozen=True)
class RandomPeer(_Ordered):
    """One of the responses to the prompt, drawn anew at each step; it meets nobody itself, and its match is even."""

    kind: ClassVar[str] = "random_peer"
    candidates: ClassVar[str] = "group"
    least_group: ClassVar[int] = 2

    def pairs(self, group_size: int, anchors: int) -> int:
        return group_size - 1

    def mask(self, exists, keys):
        size = exists.shape[1]
        drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, size))(keys)[:, None, None]
        i, j = jnp.arange(size)[None, :, None], jnp.arange(size)[None, None]
        return exists & (j == drawn) & (i != j)


@dataclasses.dataclass(frozen=True)
class Greedy(_Ordered):
    """One response of the policy itself that always takes the likeliest token, sampled anew at each step."""

    kind: ClassVar[str] = "greedy"
    candidates: ClassVar[str] = "sampled"
    sampler: ClassVar[str] = "greedy"

    def mask(self, exists, keys):
        return opponents("anchor", exists)


@dataclasses.dataclass(frozen=True)
class Past(_Ordered):
    """A response of an earlier policy, one of those that are kept, drawn anew at each step.

    Attributes:
      every: steps after which the policy joins those that are kept, and the oldest leaves them.
      size: how many are kept; at the start each is the policy that the stage starts from.
    """

    kind: ClassVar[str] = "past"
    candidates: ClassVar[str] = "sampled"
    sampler: ClassVar[str] = "past"
    every: int = 10
    size: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, ("every", "size"), 1, float("inf"))

    @property
    def remembers(self) -> int:
        return self.size

    def mask(self, exists, keys):
        return opponents("anchor", exists)


@dataclasses.dataclass(frozen=True)
class Mixture(_Ordered):
    """A response of the geometric mixture of the policy and its reference, token by token (Nash-MD, arXiv 2312.00886).

    Attributes:
      share: the weight of the reference: the next token has a probability proportional to
        `policy^(1 - share) * reference^share`.
    """

    kind: ClassVar[str] = "mixture"
    candidates: ClassVar[str] = "sampled"
    sampler: ClassVar[str] = "mixture"
    share: float = 0.125

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, ("share",), 0.0, 1.0)

    def mask(self, exists, keys):
        return opponents("anchor", exists)
