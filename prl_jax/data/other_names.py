"""Rows whose columns have the names of other formats, as rows of the plain format. Imports no jax.

ShareGPT: `conversations` of `{from, value}` turns are the messages or, beside `chosen` and `rejected`, the prompt.
Alpaca:   `instruction`, optional `input` (or `context`, as in Dolly) and `history` are the prompt, `output` is the
          response; or `output_1`, `output_2` and `preference` (1, 2, or 1.5 and 0 for a draw) are a pair.
"""

from collections.abc import Mapping
from typing import Any

from prl_jax.data.fields import require, wrong


def plain_row(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The row with the plain names of its columns; those that have no part in this keep their own.

    Raises:
      UserError: for a field that is missing or of the wrong type.
    """
    turns, pair = row.get("conversations"), row.get("chosen") is not None
    if turns is not None and row.get("messages") is None and not (pair and row.get("prompt") is not None):
        row = {key: value for key, value in row.items() if key != "conversations"}
        row["prompt" if pair else "messages"] = turns
    if row.get("instruction") is not None and row.get("prompt") is None and row.get("messages") is None:
        row = _alpaca(dict(row), where)
    return row


def _alpaca(row: dict[str, Any], where: str) -> dict[str, Any]:
    text = row.pop("instruction")
    if not isinstance(text, str):
        raise wrong(where, "instruction", "a string", text)
    for name in ("input", "context"):
        more = row.pop(name, None)
        if more not in (None, "") and not isinstance(more, str):
            raise wrong(where, name, "a string", more)
        text += f"\n\n{more}" if more else ""
    turns = []
    history = row.pop("history", None) or []
    for exchange in history if isinstance(history, list) else [history]:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise wrong(where, "history", "a list of [question, answer] pairs", history)
        turns += [{"role": role, "content": said} for role, said in zip(("user", "assistant"), exchange, strict=True)]
    row["prompt"] = [*turns, {"role": "user", "content": text}] if turns else text
    if row.get("output_1") is not None or row.get("output_2") is not None:
        return _compared(row, where)
    if row.get("response") is None and "output" in row:
        row["response"] = row.pop("output")
    return row


def _compared(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Two outputs, of which `preference` names the better one, counted from 1."""
    require(row, ("output_1", "output_2", "preference"), where)
    outputs, preference = [row.pop("output_1"), row.pop("output_2")], row.pop("preference")
    if isinstance(preference, bool) or preference not in (0, 1, 1.5, 2):
        raise wrong(where, "preference", "1, 2, or 1.5 or 0 for a draw", preference)
    if preference in (0, 1.5):
        return {**row, "chosen": outputs[0], "rejected": outputs[1], "tie": True}
    slot = int(preference)
    return {**row, "chosen": outputs[slot - 1], "rejected": outputs[2 - slot], "slot": slot}
