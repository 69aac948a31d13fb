"""Rows of data as records, and the parsers from the row formats that are in use.

Formats of a row (a JSON object):
  pairs:   `prompt`, `chosen`, `rejected`, optional `tie`, `p_chosen`, `slot`, `id`, `source`, `meta`; also without
           `prompt` when chosen and rejected are conversations (message lists, or "Human:"/"Assistant:" transcripts)
           that share all but the last message.
  sft:     `prompt` and `response` (or `completion`), or `messages` that end in an assistant turn (a `prompt` beside
           them is only the first turn), or a pair, whose `chosen` is the response. The turns before that response are
           its prompt; whether the assistant's among them train as well is up to the encoder.
  prompts: `prompt`, optional `reference`; every pair and sft row is one too.
Texts are strings or lists of `{role, content}`; a prompt ends in a user turn. Imports no jax.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prl_jax.errors import UserError
from prl_jax.text.chat import ROLES, Prompt, Turn

# `meta.votes` counts votes for (first, second, tie), but in these sources it lists what each annotator said:
# 1 (first), 2 (second) or 0 (tie).
_VOTES_ARE_VERDICTS = frozenset({"pandalm_test"})


@dataclass(frozen=True)
class PreferenceRecord:
    """Two responses to one prompt.

    Attributes:
      id: names the pair.
      prompt: turns that end in the user's.
      chosen, rejected: the better and the worse response; for a tie just the two, in the order presented.
      tie: no preference.
      p_chosen: probability in [0, 1] that `chosen` is the better one, where it is known (votes, an exact judge).
      slot: 1 or 2, where the annotator saw `chosen`.
      source: data set.
      meta: whatever else the row said.
    """

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    tie: bool = False
    p_chosen: float | None = None
    slot: int | None = None
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> float:
        """1.0, or 0.5 for a tie; `p_chosen` plays no part."""
        return 0.5 if self.tie else 1.0

    @property
    def soft_label(self) -> float:
        """`p_chosen` where it is known, else `label`."""
        return self.label if self.p_chosen is None else self.p_chosen


@dataclass(frozen=True)
class SFTRecord:
    """A demonstration: a prompt, which may hold earlier turns of the assistant, and the response to imitate."""

    id: str
    prompt: Prompt
    response: str
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptRecord:
    """A prompt to answer; `reference` is a gold answer or demonstration, where there is one."""

    id: str
    prompt: Prompt
    reference: str | None = None
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


Record = PreferenceRecord | SFTRecord | PromptRecord


def parse_preference(row: Mapping[str, Any], where: str) -> PreferenceRecord:
    """A pair from a row; `where` ("file.jsonl:12") opens error messages.

    Raises:
      UserError: for a missing field or one of the wrong type.
    """
    _require(row, ("chosen", "rejected"), where)
    if row.get("prompt") is None:
        prompt, chosen, rejected = _split_shared(row, where)
    else:
        prompt = _prompt(row["prompt"], "prompt", where)
        chosen = _response(row["chosen"], "chosen", where, prompt)
        rejected = _response(row["rejected"], "rejected", where, prompt)
    meta = _meta(row, where)
    tie = row.get("tie")
    if tie is not None and not isinstance(tie, bool):
        raise _wrong(where, "tie", "true or false", tie)
    slot = _slot(row, meta, where)
    return PreferenceRecord(
        id=_id(row, where),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        tie=bool(tie),
        p_chosen=_p_chosen(row, meta, slot, bool(tie), where),
        slot=slot,
        source=_source(row, where),
        meta=meta,
    )


def parse_sft(row: Mapping[str, Any], where: str) -> SFTRecord:
    """A demonstration from a row.

    Raises:
      UserError: for a missing field or one of the wrong type.
    """
    name = next((name for name in ("response", "completion") if row.get(name) is not None), None)
    if row.get("messages") is not None and (name is None or row.get("prompt") is None):
        prompt, response = _split_last(_turns(row["messages"], "messages", where), "messages", where)
    elif name is None and row.get("chosen") is not None:
        prompt, response = _chosen(row, where)
    else:
        _require(row, ("prompt", "response") if name is None else ("prompt",), where)
        prompt = _prompt(row["prompt"], "prompt", where)
        response = _response(row[name], name, where, prompt)
    meta = _meta(row, where)
    return SFTRecord(id=_id(row, where), prompt=prompt, response=response, source=_source(row, where), meta=meta)


def parse_prompt(row: Mapping[str, Any], where: str) -> PromptRecord:
    """A prompt from a row of any kind; its response or chosen response becomes the reference.

    Raises:
      UserError: for a missing field or one of the wrong type.
    """
    reference: str | None = None
    if row.get("prompt") is not None:
        prompt = _prompt(row["prompt"], "prompt", where)
        for name in ("reference", "response", "completion", "chosen"):
            if row.get(name) is not None:
                reference = _response(row[name], name, where, prompt)
                break
        if reference is None and row.get("messages") is not None:
            return parse_prompt({**row, "prompt": None}, where)
    elif row.get("messages") is not None:
        turns = _turns(row["messages"], "messages", where)
        if turns[-1].role == "assistant":
            prompt, reference = _split_last(turns, "messages", where)
        else:
            prompt = _prompt(row["messages"], "messages", where)
    elif row.get("chosen") is not None and row.get("rejected") is not None:
        prompt, reference, _ = _split_shared(row, where)
    else:
        raise _missing(where, "prompt")
    meta = _meta(row, where)
    return PromptRecord(id=_id(row, where), prompt=prompt, reference=reference, source=_source(row, where), meta=meta)


def _prompt(value: Any, name: str, where: str) -> Prompt:
    if isinstance(value, str):
        return (Turn("user", value),)
    turns = _turns(value, name, where)
    if turns[-1].role != "user":
        raise UserError(f'{where}: field "{name}" ends in a turn of role "{turns[-1].role}" (expected "user")')
    return turns


def _turns(value: Any, name: str, where: str) -> Prompt:
    expected = "a list of {role, content} turns" if name == "messages" else "a string or a list of {role, content}"
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise _wrong(where, name, expected, value)
    if not value:
        raise UserError(f'{where}: field "{name}" is an empty list (expected at least one turn)')
    turns = []
    for i, item in enumerate(value):
        at = f"{name}[{i}]"
        if not isinstance(item, Mapping):
            raise _wrong(where, at, "an object with role and content", item)
        for key in ("role", "content"):
            if item.get(key) is None:
                raise _missing(where, f"{at}.{key}")
            if not isinstance(item[key], str):
                raise _wrong(where, f"{at}.{key}", "a string", item[key])
        if item["role"] not in ROLES:
            raise UserError(f'{where}: field "{at}.role" is "{item["role"]}" (expected one of {", ".join(ROLES)})')
        turns.append(Turn(item["role"], item["content"]))
    return tuple(turns)


def _response(value: Any, name: str, where: str, prompt: Prompt) -> str:
    """A response: a string, or a message list of one assistant turn, the prompt's turns before it or not."""
    if isinstance(value, str):
        return value
    turns = _turns(value, name, where)
    if turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    if len(turns) != 1 or turns[0].role != "assistant":
        raise UserError(
            f'{where}: field "{name}" holds {len(turns)} turns after the prompt (expected one, "assistant")'
        )
    return turns[0].content


def _split_last(turns: Prompt, name: str, where: str) -> tuple[Prompt, str]:
    if len(turns) < 2 or turns[-1].role != "assistant" or turns[-2].role != "user":
        raise UserError(f'{where}: field "{name}" does not end in a user and an assistant turn')
    return turns[:-1], turns[-1].content


def _split_shared(row: Mapping[str, Any], where: str) -> tuple[Prompt, str, str]:
    """Prompt, chosen and rejected of two conversations that share all turns but the last."""
    both = []
    for name in ("chosen", "rejected"):
        value = row[name]
        turns = _transcript(value) if isinstance(value, str) else _turns(value, name, where)
        if turns is None:
            raise _missing(where, "prompt")
        both.append(_split_last(turns, name, where))
    (prompt, chosen), (other, rejected) = both
    if prompt != other:
        raise UserError(f'{where}: "chosen" and "rejected" differ before their last turn (expected one shared prompt)')
    return prompt, chosen, rejected


def _chosen(row: Mapping[str, Any], where: str) -> tuple[Prompt, str]:
    """Prompt and chosen response of a pair; `rejected` matters only where the two have to share their prompt."""
    if row.get("prompt") is not None:
        prompt = _prompt(row["prompt"], "prompt", where)
        return prompt, _response(row["chosen"], "chosen", where, prompt)
    _require(row, ("rejected",), where)
    return _split_shared(row, where)[:2]


def _transcript(text: str) -> Prompt | None:
    """Turns of a "Human: ... Assistant: ..." transcript; None if it is none."""
    pieces = re.split(r"(?:^|\n\n)(Human|Assistant):", text)
    if len(pieces) < 5 or pieces[0].strip():
        return None
    names = {"Human": "user", "Assistant": "assistant"}
    return tuple(Turn(names[who], said.strip()) for who, said in zip(pieces[1::2], pieces[2::2], strict=True))


def _slot(row: Mapping[str, Any], meta: Mapping[str, Any], where: str) -> int | None:
    name, value = ("slot", row["slot"]) if row.get("slot") is not None else ("meta.pos", meta.get("pos"))
    if value is None:
        return None
    if isinstance(value, bool) or value not in (1, 2):
        raise _wrong(where, name, "1 or 2", value)
    return int(value)


def _p_chosen(row: Mapping[str, Any], meta: Mapping[str, Any], slot: int | None, tie: bool, where: str) -> float | None:
    """Told by the row, by its `meta`, or by the votes in it; a tie's `chosen` is the one presented first."""
    for name, value in (("p_chosen", row.get("p_chosen")), ("meta.p_chosen", meta.get("p_chosen"))):
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise _wrong(where, name, "a number in [0, 1]", value)
            return float(value)
    votes = meta.get("votes")
    if votes is None:
        return None
    if (
        not isinstance(votes, Sequence)
        or len(votes) != 3
        or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in votes)
    ):
        raise _wrong(where, "meta.votes", "three counts [first, second, tie]", votes)
    if row.get("source") in _VOTES_ARE_VERDICTS:
        votes = [votes.count(1), votes.count(2), votes.count(0)]
    if slot is None and tie:
        slot = 1
    if slot is None or sum(votes) == 0:
        return None
    return (votes[slot - 1] + votes[2] / 2) / sum(votes)


def _meta(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    meta = row.get("meta")
    if meta is None:
        return {}
    if not isinstance(meta, Mapping):
        raise _wrong(where, "meta", "an object", meta)
    return meta


def _id(row: Mapping[str, Any], where: str) -> str:
    value = row.get("id")
    if value is None:
        return where
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _wrong(where, "id", "a string", value)
    return str(value)


def _source(row: Mapping[str, Any], where: str) -> str:
    value = row.get("source")
    if value is not None and not isinstance(value, str):
        raise _wrong(where, "source", "a string", value)
    return value or ""


_EXPECTED = {
    "prompt": "a string or a list of {role, content} turns that ends in a user turn",
    "chosen": "the preferred response",
    "rejected": "the other response",
    "response": "the response to imitate",
}


def _require(row: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for name in names:
        if row.get(name) is None:
            raise _missing(where, name)


def _missing(where: str, name: str) -> UserError:
    return UserError(f'{where}: field "{name}" is missing (expected {_EXPECTED.get(name, "a string")})')


def _wrong(where: str, name: str, expected: str, value: Any) -> UserError:
    kinds = {str: "a string", bool: "a boolean", int: "a number", float: "a number", dict: "an object", list: "a list"}
    shown = repr(value) if isinstance(value, int | float) else kinds.get(type(value), type(value).__name__)
    return UserError(f'{where}: field "{name}" is {shown} (expected {expected})')
