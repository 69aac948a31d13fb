"""Rows of the formats that are in use, as records. Imports no jax.

Formats of a row (a JSON object):
  pairs:   `prompt`, `chosen`, `rejected`, optional `tie`, `p_chosen`, `score_chosen` and `score_rejected`,
           `win_chosen` and `win_rejected` (win rates), `slot`, `id`, `source`, `meta`; also without `prompt` when
           chosen and rejected are conversations (message lists, or "Human:"/"Assistant:" transcripts) that share all
           but the last message.
  sft:     `prompt` and `response` (or `completion`), or `messages` that end in an assistant turn (a `prompt` beside
           them is only the first turn), or a pair, whose `chosen` is the response. The turns before that response are
           its prompt; whether the assistant's among them train as well is up to the encoder.
  prompts: `prompt`, optional `reference`; every pair and sft row is one too.
A `system` or `system_prompt` column is a system turn in front. Texts are strings or conversations (`conversations`).
Other names of columns become these (`other_names`). Keys that are not read stand in the record's `unused` (`columns`).
"""

from collections.abc import Callable, Mapping
from typing import Any

from prl_jax.data.columns import doubt, refuse_context, refuse_misspelt, refuse_verdicts, unused_keys
from prl_jax.data.conversations import read_answer, read_conversation, read_prompt, read_turns, with_system
from prl_jax.data.fields import (
    check_strengths,
    read_both,
    read_id,
    read_meta,
    read_p_chosen,
    read_slot,
    read_source,
    require,
    wrong,
)
from prl_jax.data.other_names import plain_row
from prl_jax.data.records import PreferenceRecord, PromptRecord, Record, SFTRecord
from prl_jax.errors import UserError
from prl_jax.text.chat import Prompt, Turn

Row = Mapping[str, Any]


def parse_preference(row: Row, where: str) -> PreferenceRecord:
    """A pair from a row; `where` ("file.jsonl:12") opens error messages. Two identical responses are a tie.

    Raises:
      UserError: for a field that is missing, of the wrong type or contradicts another one, or a key that is refused.
    """
    row = _prepared(row, where)
    require(row, ("chosen", "rejected"), where)
    refuse_verdicts(row, where)
    prompt, chosen, rejected = _pair(row, where)
    return PreferenceRecord(
        prompt=with_system(prompt, row, where),
        chosen=chosen,
        rejected=rejected,
        **_label(row, chosen == rejected, where),
        **_common(row, "preference", where),
    )


def parse_sft(row: Row, where: str) -> SFTRecord:
    """A demonstration from a row; `better` is False for a pair that does not say that `chosen` is.

    Raises:
      UserError: as `parse_preference`; for a response that the row says not to imitate.
    """
    row = _prepared(row, where)
    reason = doubt(row, where)
    if reason:
        raise UserError(
            f"{where}: the response may be none to imitate, since {reason}: keep the rows that are, and drop the column"
        )
    name = _demonstration(row)
    *prompt, response = _conversation(row, name, where)
    _refuse_other_responses(row, name, response.content, where)
    better = name != "chosen" or _is_better(row, response.content, where)
    prompt = with_system(tuple(prompt), row, where)
    return SFTRecord(prompt=prompt, response=response.content, better=better, **_common(row, "sft", where))


def parse_prompt(row: Row, where: str) -> PromptRecord:
    """A prompt from a row of any kind; its response or chosen response becomes the reference, unless the row leaves
    doubts whether that is a good one.

    Raises:
      UserError: as `parse_preference`.
    """
    row = _prepared(row, where)
    name = "reference" if row.get("reference") is not None else _demonstration(row)
    turns = _asked(row, name, where)
    reference = turns[-1].content if turns[-1].role == "assistant" else None
    if name != "reference" and doubt(row, where):
        reference = None
    prompt = with_system(turns[:-1] if turns[-1].role == "assistant" else turns, row, where)
    return PromptRecord(prompt=prompt, reference=reference, **_common(row, "prompt", where))


PARSERS: Mapping[str, Callable[[Row, str], Record]] = {
    "preference": parse_preference,
    "sft": parse_sft,
    "prompt": parse_prompt,
}


def _prepared(row: Row, where: str) -> Row:
    """The row in the plain format, without keys that are refused for every kind of record."""
    row = plain_row(row, where)
    refuse_misspelt(row, where)
    refuse_context(row, where)
    return row


def _label(row: Row, identical: bool, where: str) -> dict[str, Any]:
    """The attributes that say which response of a pair is better."""
    meta, tie = read_meta(row, where), row.get("tie")
    if tie is not None and not isinstance(tie, bool):
        raise wrong(where, "tie", "true or false", tie)
    tie = bool(tie) or identical
    check_strengths(row, tie, where)
    slot = read_slot(row, meta, where)
    return {
        "tie": tie,
        "p_chosen": read_p_chosen(row, meta, slot, tie, where),
        "scores": read_both(row, "score", where),
        "wins": read_both(row, "win", where, least=0.0, most=1.0),
        "slot": slot,
    }


def _is_better(row: Row, chosen: str, where: str) -> bool:
    """Whether `chosen`, with this text, is better than `rejected`. Errors: as `_label`."""
    identical = row.get("rejected") is not None and _pair(row, where)[2] == chosen
    label = _label(row, identical, where)
    return not label["tie"] and (label["p_chosen"] is None or label["p_chosen"] > 0.5)


def _common(row: Row, what: str, where: str) -> dict[str, Any]:
    """The attributes that all records have."""
    return {
        "id": read_id(row, where),
        "source": read_source(row, where),
        "meta": read_meta(row, where),
        "unused": unused_keys(row, what),
    }


def _demonstration(row: Row) -> str:
    """The field that holds the demonstration of a row."""
    name = next((name for name in ("response", "completion") if row.get(name) is not None), None)
    if row.get("messages") is not None and (name is None or row.get("prompt") is None):
        return "messages"
    return name or ("chosen" if row.get("chosen") is not None else "response")


def _refuse_other_responses(row: Row, name: str, response: str, where: str) -> None:
    """Raises `UserError` where another field than `name` holds another response."""
    for other in ("response", "completion", "messages"):
        value = row.get(other)
        if not value or name in (other, "chosen"):
            continue
        last = Turn("assistant", value) if isinstance(value, str) else read_turns(value, other, where)[-1]
        if last.role == "assistant" and last.content != response:
            raise UserError(f'{where}: fields "{name}" and "{other}" hold different responses: keep one of them')


def _conversation(row: Row, name: str, where: str) -> Prompt:
    """The conversation that ends in the response of the field `name`."""
    if name == "messages":
        return read_conversation(row["messages"], "messages", where)
    if name == "chosen" and row.get("prompt") is None:
        require(row, ("rejected",), where)
        prompt, chosen, _ = _pair(row, where)  # which have to share their prompt
        return (*prompt, Turn("assistant", chosen))
    require(row, ("prompt", name), where)
    return read_answer(row[name], name, where, read_prompt(row["prompt"], "prompt", where))


def _asked(row: Row, name: str, where: str) -> Prompt:
    """The prompt of a row, and the response in the field `name` if there is one."""
    messages = row.get("messages")
    if messages is not None and (name == "messages" or row.get("prompt") is None):
        turns = read_turns(messages, "messages", where)
        if turns[-1].role == "assistant":
            return _conversation(row, "messages", where)
        if row.get("prompt") is None:
            row = {**row, "prompt": messages}
        name = "chosen" if name == "messages" else name
    if row.get(name) is not None and (name != "chosen" or row.get("rejected") is not None or row.get("prompt")):
        return _conversation(row, name, where)
    require(row, ("prompt",), where)
    return read_prompt(row["prompt"], "prompt", where)


def _pair(row: Row, where: str) -> tuple[Prompt, str, str]:
    """Prompt, chosen and rejected: two conversations that share all turns but the last."""
    if row.get("prompt") is None:
        both = [read_conversation(row[name], name, where) for name in ("chosen", "rejected")]
    else:
        prompt = read_prompt(row["prompt"], "prompt", where)
        both = [read_answer(row[name], name, where, prompt) for name in ("chosen", "rejected")]
    if both[0][:-1] != both[1][:-1]:
        raise UserError(f'{where}: "chosen" and "rejected" differ before their last turn (expected one shared prompt)')
    return both[0][:-1], both[0][-1].content, both[1][-1].content
