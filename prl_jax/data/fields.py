"""The fields of a row, each read, or refused with its place. Conversations are in `conversations`. Imports no jax."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prl_jax.errors import UserError

# `meta.votes` counts votes for (first, second, tie), but in these sources it lists what each annotator said:
# 1 (first), 2 (second) or 0 (tie).
_VOTES_ARE_VERDICTS = frozenset({"pandalm_test"})
_LARGEST = 1e300  # of a number that is read
_ONE_OF_TWO = re.compile(r"(response|output|answer|completion|assistant|model|conversation)_?([012ab])", re.IGNORECASE)
_SCORE = re.compile(r"(score|rating|reward)[_-](chosen|rejected)|(chosen|rejected)[_-](avg[_-])?(score|rating|reward)")


def read_text(value: Any, name: str, where: str) -> str:
    """A string of whole characters."""
    if not isinstance(value, str):
        raise wrong(where, name, "a string", value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f'{where}: field "{name}" holds half of a surrogate pair, \\u{ord(value[error.start]):04x}, at character '
            f"{error.start + 1} (expected whole characters): drop it or put \\ufffd there"
        ) from error
    return value


def read_slot(row: Mapping[str, Any], meta: Mapping[str, Any], where: str) -> int | None:
    """1 or 2, where it is known in which place the annotator saw `chosen`."""
    name, value = ("slot", row["slot"]) if row.get("slot") is not None else ("meta.pos", meta.get("pos"))
    if value is None:
        return None
    if isinstance(value, bool) or value not in (1, 2):
        raise wrong(where, name, "1 or 2", value)
    return int(value)


def read_p_chosen(
    row: Mapping[str, Any], meta: Mapping[str, Any], slot: int | None, tie: bool, where: str
) -> float | None:
    """The probability that `chosen` is better, from the row, its `meta`, or the votes in it; a tie's `chosen` is the
    response presented first."""
    for name, value in (("p_chosen", row.get("p_chosen")), ("meta.p_chosen", meta.get("p_chosen"))):
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise wrong(where, name, "a number in [0, 1]", value)
            return float(value)
    votes = meta.get("votes")
    if votes is None:
        return None
    if (
        not isinstance(votes, Sequence)
        or len(votes) != 3
        or any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < _LARGEST for n in votes)
    ):
        raise wrong(where, "meta.votes", "three counts [first, second, tie]", votes)
    if row.get("source") in _VOTES_ARE_VERDICTS:
        votes = [votes.count(1), votes.count(2), votes.count(0)]
    if slot is None and tie:
        slot = 1
    if slot is None or sum(votes) == 0:
        return None
    return (votes[slot - 1] + votes[2] / 2) / sum(votes)


def read_both(
    row: Mapping[str, Any], name: str, where: str, *, least: float = -_LARGEST, most: float = _LARGEST
) -> tuple[float, float] | None:
    """The numbers `NAME_chosen` and `NAME_rejected` of a pair; None where the row has not both.

    Raises:
      UserError: one of them is beyond `least` and `most`.
    """
    keys = (f"{name}_chosen", f"{name}_rejected")
    values = {key: row[key] for key in keys if row.get(key) is not None}
    expected = "a finite number" if most == _LARGEST else f"a number in [{least:g}, {most:g}]"
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise wrong(where, key, expected, value)
    return (float(values[keys[0]]), float(values[keys[1]])) if len(values) == 2 else None


def check_strengths(row: Mapping[str, Any], tie: bool, where: str) -> None:
    """Raises `UserError` where a margin or scores say that `rejected` is the better response."""
    for key, value in row.items():
        other = _other_score(key)
        if value is None or not (other or key == "margin"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
            raise wrong(where, key, "a finite number", value)
        if key == "margin" and value < 0 and not tie:
            raise wrong(where, key, 'at least 0, since "chosen" is the better response', value)
        least = row.get(other) if "chosen" in key else None
        if isinstance(least, int | float) and value < least and not tie:
            raise wrong(where, key, f'at least "{other}", which is {least!r}, since "chosen" is the better one', value)


def _other_score(key: str) -> str:
    """The key with the score of the other response of a pair, "" for a key that is no score: `score_chosen`,
    `chosen_score`, `chosen-rating` and the like."""
    if not _SCORE.fullmatch(key):
        return ""
    return key.replace("chosen", "rejected") if "chosen" in key else key.replace("rejected", "chosen")


def read_meta(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The row's `meta`, {} where there is none."""
    meta = row.get("meta")
    if meta is None:
        return {}
    if not isinstance(meta, Mapping):
        raise wrong(where, "meta", "an object", meta)
    return meta


def read_id(row: Mapping[str, Any], where: str) -> str:
    """The row's `id`, or its place where it has none. Whole numbers are written without a point."""
    value = row.get("id")
    if value is None or (isinstance(value, str) and not value.strip()):
        return where
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
        raise wrong(where, "id", "a string", value)
    if isinstance(value, float):
        if math.isnan(value):
            raise wrong(where, "id", "a string", value)
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


def read_source(row: Mapping[str, Any], where: str) -> str:
    """The name of the data set, "" where the row has none."""
    value = row.get("source")
    if value is not None and not isinstance(value, str):
        raise wrong(where, "source", "a string", value)
    return value or ""


_EXPECTED = {
    "prompt": "a string or a list of {role, content} turns that ends in a user turn",
    "chosen": "the preferred response",
    "rejected": "the other response",
    "response": "the response to imitate",
}


def require(row: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Raises `UserError` for the first field that is missing or null."""
    for name in names:
        if row.get(name) is None:
            raise missing(where, name, null=name in row, advice=_pair_advice(row))


def missing(where: str, name: str, *, null: bool = False, advice: str = "") -> UserError:
    """The error of a field that is not there, or null."""
    what = "null" if null else "missing"
    return UserError(f'{where}: field "{name}" is {what} (expected {_EXPECTED.get(name, "a string")}){advice}')


def two_responses(row: Mapping[str, Any]) -> Sequence[str]:
    """The keys of two responses that bear other names, such as `response_a` and `response_b`; none in other rows."""
    keys = [key for key in row if _ONE_OF_TWO.fullmatch(key) and row[key] is not None]
    return keys if len(keys) == 2 else ()


def _pair_advice(row: Mapping[str, Any]) -> str:
    """Returns advice on a row of `two_responses`; "" for another row."""
    keys = two_responses(row)
    if not keys:
        return ""
    return (
        f'; of "{keys[0]}" and "{keys[1]}", write the better one as "chosen" and the other one as "rejected" ("tie": '
        'true where neither is), with what they answer as "prompt"'
    )


def wrong(where: str, name: str, expected: str, value: Any) -> UserError:
    """The error of a field of another type or beyond its range."""
    kinds = {str: "a string", bool: "a boolean", int: "a number", float: "a number", dict: "an object", list: "a list"}
    given = repr(value)[:40] if isinstance(value, int | float) else kinds.get(type(value), type(value).__name__)
    return UserError(f'{where}: field "{name}" is {given} (expected {expected})')
