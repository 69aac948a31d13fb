"""The ranges of the metrics of a policy that learns, and plain words for one that leaves its range.

All of it follows from the rows of `metrics.jsonl`, so that a run which was interrupted says what an uninterrupted one
says, and a report the same as the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LASTING = 3  # rows of metrics in a row after which a metric has left its range


class Range(NamedTuple):
    """The range in which a metric of a healthy run lies, its ends included, and what it means to be outside."""

    metric: str
    low: float
    high: float
    outside: str


_NEVER = math.inf
RANGES: Sequence[Range] = (
    Range(
        "identical_to_opponent",
        0.0,
        0.5,
        "more than half of the responses are identical to their opponent: the reward says nothing about them",
    ),
    Range(
        "judge_saturation",
        0.0,
        0.9,
        "the judge is certain (beyond 0.98) of more than 90 % of the comparisons: a better response earns no more than "
        "a good one",
    ),
    Range(
        "order_disagreement",
        0.0,
        0.6,
        "in more than 60 % of the comparisons the judge names another winner when the two responses change places: it "
        "decides by their order",
    ),
    Range(
        "judge_accuracy",
        0.5,
        1.0,
        "the judge is right about less than half of the policy's own comparisons: a coin would be as good",
    ),
    Range(
        "judge_ece",
        0.0,
        0.3,
        "the judge's probabilities on the policy's own comparisons are off by more than 0.3 on average: it is far too "
        "sure of itself, or far too careful",
    ),
    Range(
        "exact_gain",
        -0.05,
        _NEVER,
        "the exact reward is more than 0.05 below that of the first step: the policy gets worse, whatever its judge "
        "says",
    ),
    Range(
        "length_drift",
        0.5,
        2.0,
        "the responses are more than twice as long as at the first step, or less than half as long: see whether the "
        "judge pays for their length",
    ),
    Range(
        "frame_imitations",
        0.0,
        0.01,
        "more than 1 % of the responses hold marks of the judge's template: the policy tries to write the question "
        "that its judge is asked",
    ),
    Range(
        "stop_reasons/room",
        0.0,
        0.5,
        "more than half of the responses run out of room before they end: raise max_response, or let "
        "missing_eos_penalty make it expensive",
    ),
    Range(
        "stop_reasons/repetition",
        0.0,
        0.1,
        "more than 10 % of the responses are stopped because they repeat themselves: the policy is falling apart",
    ),
    Range(
        "truncated_prompts",
        0.0,
        0.0,
        "some prompts do not fit into max_prompt: the policy answers questions whose beginning it does not see",
    ),
    Range(
        "cut_judgements",
        0.0,
        0.0,
        "some comparisons do not fit into the judge's rows: it judges responses whose ends it does not see",
    ),
)


class Watch:
    """Follows the rows of a stage that trains a policy.

    Attributes:
      found: metric -> the first and the last step of each time that it was outside of its range.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        """Has seen some rows already, such as those before the checkpoint that a run continues from."""
        self.found: dict[str, list[tuple[int, int]]] = {}
        self._first: dict[str, float] = {}
        self._outside: dict[str, tuple[int, int]] = {}  # since which step, and for how many rows
        for row in rows:
            self.see(row)

    def derived(self, values: Mapping[str, Any]) -> dict[str, float]:
        """The metrics that compare the next row with the first one.

        `length_drift`: the mean length of responses, as a multiple of the first one; `exact_gain`: the exact reward,
        less the first one.
        """
        found = {}
        length, exact = (_number(values.get(key)) for key in ("response_length", "exact_reward"))
        if length is not None:
            found["length_drift"] = length / max(self._first.get("response_length", length), 1.0)
        if exact is not None:
            found["exact_gain"] = exact - self._first.get("exact_reward", exact)
        return found

    def see(self, row: Mapping[str, Any]) -> list[str]:
        """Takes the next row, `step` and metrics; returns a sentence about each metric that has now left its range for
        the first time."""
        news, step = [], int(row["step"])
        for key in ("response_length", "exact_reward"):
            if (value := _number(row.get(key))) is not None:
                self._first.setdefault(key, value)
        for one in RANGES:
            if (value := _number(row.get(one.metric))) is None:
                continue
            if one.low <= value <= one.high:
                self._outside.pop(one.metric, None)
                continue
            since, count = self._outside.get(one.metric, (step, 0))
            self._outside[one.metric] = since, count + 1
            if count + 1 < LASTING:
                continue
            times = self.found.setdefault(one.metric, [])
            if count + 1 == LASTING:
                news += [f"From step {since} on {one.outside}."] if not times else []
                times.append((since, step))
            else:
                times[-1] = since, step
        return news

    @property
    def outside(self) -> int:
        """How many metrics are outside of their range now."""
        return sum(count >= LASTING for _, count in self._outside.values())

    def sentences(self) -> list[str]:
        """A sentence about each metric that has left its range, with the steps."""
        return [f"{self._when(one.metric)} {one.outside}." for one in RANGES if one.metric in self.found]

    def _when(self, metric: str) -> str:
        *earlier, (since, last) = self.found[metric]
        spans = [f"from {first} to {end}" for first, end in earlier]
        if self._outside.get(metric, (0, 0))[1] >= LASTING:
            return f"From step {since} on" if not spans else f"In steps {', '.join(spans)}, and from {since} on,"
        return f"In steps {', '.join([*spans, f'from {since} to {last}'])}"


def _number(value: Any) -> float | None:
    """A finite number; None for anything else, such as the null of a metric that was not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
