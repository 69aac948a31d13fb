"""Records that training, judging and sampling read: pairs, demonstrations and prompts. Imports no jax."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prl_jax.text.chat import Prompt


@dataclass(frozen=True)
class PreferenceRecord:
    """Two responses to one prompt.

    Attributes:
      id: names the pair.
      prompt: turns that end in the user's.
      chosen, rejected: the better and the worse response; for a tie just the two, in the order presented.
      tie: no preference; two identical responses are one whatever their row says.
      p_chosen: probability in [0, 1] that `chosen` is the better one, where it is known (votes, an exact judge).
      scores: of `chosen` and `rejected`, where somebody scored them one by one.
      wins: win rates of `chosen` and `rejected` in [0, 1], against other responses to the prompt.
      slot: 1 or 2, where the annotator saw `chosen`.
      source: data set.
      meta: whatever else the row said.
      unused: keys of the row that nothing reads (`columns.unused_keys`).
    """

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    tie: bool = False
    p_chosen: float | None = None
    scores: tuple[float, float] | None = None
    wins: tuple[float, float] | None = None
    slot: int | None = None
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = field(default=(), compare=False)

    @property
    def label(self) -> float:
        """1.0, or 0.5 for a tie; `p_chosen` plays no part."""
        return 0.5 if self.tie else 1.0

    @property
    def soft_label(self) -> float:
        """`p_chosen` where it is known, else `label`."""
        return self.label if self.p_chosen is None else self.p_chosen


def missing_value(record: PreferenceRecord, need: str) -> str:
    """Says what a pair lacks; "" where it lacks nothing.

    Args:
      record: the pair.
      need: "scores", "wins", or "meta.NAME" for a number in [0, 1] in its `meta`.
    """
    if need == "scores":
        return "" if record.scores else 'no "score_chosen" and "score_rejected" (expected two finite numbers)'
    if need == "wins":
        return "" if record.wins else 'no "win_chosen" and "win_rejected" (expected two win rates in [0, 1])'
    value = record.meta.get(need.removeprefix("meta."))
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return f'no "{need}" (expected a number in [0, 1])'
    return ""


@dataclass(frozen=True)
class SFTRecord:
    """A demonstration: a prompt, which may hold earlier turns of the assistant, and the response to imitate.

    `better` is False where the response is `chosen` of a pair in which it is not the better one: a tie, or `p_chosen`
    of at most one half. Such a record is not imitated.
    """

    id: str
    prompt: Prompt
    response: str
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    better: bool = True
    unused: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class PromptRecord:
    """A prompt to answer; `reference` is a gold answer or demonstration, where there is one."""

    id: str
    prompt: Prompt
    reference: str | None = None
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = field(default=(), compare=False)


Record = PreferenceRecord | SFTRecord | PromptRecord
