"""Piece 2: whom each response to a prompt is compared with."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Key

from prl_jax.losses import opponents
from prl_jax.methods.checks import check_range


@runtime_checkable
class Opponents(Protocol):
    """Chooses among candidates: anchors of the prompt, or the other responses to it.

    Attributes:
      kind: its name in configs.
      candidates: "none", "anchors" (texts that an anchors stage has kept for the prompt) or "group" (the responses
        themselves).
      multiple: the number of responses to a prompt is a multiple of this.
      remembers: how many earlier policies the stage keeps in memory for it.
      every: the steps between two of them.
    """

    kind: ClassVar[str]
    candidates: ClassVar[str]
    multiple: ClassVar[int]

    @property
    def remembers(self) -> int: ...

    @property
    def every(self) -> int: ...

    def per_response(self, group_size: int, anchors: int) -> int:
        """Comparisons of a response, where a prompt has so many responses and anchors."""
        ...

    def mask(self, exists: Bool[Array, "B G M"], keys: Key[Array, "B"]) -> Bool[Array, "B G M"]:
        """Who of `M` candidates is met by each of `G` responses to each of `B` prompts.

        Args:
          exists: `[B, G, M]`, which candidates there are.
          keys: `[B]`, a key for each prompt, for what is drawn.
        """
        ...


class _OfNow:
    """Opponents that no earlier policy is among."""

    @property
    def remembers(self) -> int:
        return 0

    @property
    def every(self) -> int:
        return 1


@dataclasses.dataclass(frozen=True)
class NoOpponent(_OfNow):
    """Responses are scored one by one."""

    kind: ClassVar[str] = "none"
    candidates: ClassVar[str] = "none"
    multiple: ClassVar[int] = 1

    def per_response(self, group_size: int, anchors: int) -> int:
        return 0

    def mask(self, exists, keys):
        return exists & False


@dataclasses.dataclass(frozen=True)
class Anchors(_OfNow):
    """Every anchor of the prompt.

    Attributes:
      stage: the anchors stage that made them.
    """

    kind: ClassVar[str] = "anchors"
    candidates: ClassVar[str] = "anchors"
    multiple: ClassVar[int] = 1
    stage: str = "anchors"

    def per_response(self, group_size: int, anchors: int) -> int:
        return anchors

    def mask(self, exists, keys):
        return opponents("anchor", exists)


@dataclasses.dataclass(frozen=True)
class Pool(_OfNow):
    """Some anchors of the prompt, drawn anew at each step, the same for all responses to the prompt.

    Attributes:
      stage: the anchors stage that made them.
      draws: how many are drawn; all, where there are fewer.
    """

    kind: ClassVar[str] = "pool"
    candidates: ClassVar[str] = "anchors"
    multiple: ClassVar[int] = 1
    stage: str = "anchors"
    draws: int = 1

    def __post_init__(self) -> None:
        check_range(self, ("draws",), 1, float("inf"))

    def per_response(self, group_size: int, anchors: int) -> int:
        return min(self.draws, anchors)

    def mask(self, exists, keys):
        return opponents("pool", exists, keys=keys, draws=self.draws)


@dataclasses.dataclass(frozen=True)
class Peer(_OfNow):
    """The neighbour among the responses to the prompt: the first with the second, the third with the fourth."""

    kind: ClassVar[str] = "peer"
    candidates: ClassVar[str] = "group"
    multiple: ClassVar[int] = 2

    def per_response(self, group_size: int, anchors: int) -> int:
        return 1

    def mask(self, exists, keys):
        return opponents("peer", exists)


@dataclasses.dataclass(frozen=True)
class Group(_OfNow):
    """Every other response to the prompt."""

    kind: ClassVar[str] = "group"
    candidates: ClassVar[str] = "group"
    multiple: ClassVar[int] = 1

    def per_response(self, group_size: int, anchors: int) -> int:
        return group_size - 1

    def mask(self, exists, keys):
        return opponents("group", exists)
