"""Conversations of a row, each read, or refused with its place. Imports no jax.

A conversation is a list of turns, each `{role, content}` or ShareGPT's `{from, value}`, or a
"Human: ... Assistant: ..." transcript. The content of a turn may be a list of text parts, which are joined.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prl_jax.data.fields import missing, read_text, wrong
from prl_jax.errors import UserError, quoted
from prl_jax.text.chat import ROLES, Prompt, Turn

_SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip
# Keys of a turn that change what the model reads or learns, with a value at which they do not.
_TURN_CHANGES = {
    "tool_calls": [], "tool_call_id": "", "function_call": {}, "reasoning_content": "", "reasoning": "", "thinking": "",
    "weight": 1, "loss": True, "train": True, "prefix": False, "images": [],
}  # fmt: skip
_MARKER = re.compile(r"(?:^|\r?\n\r?\n)(Human|Assistant):")
_INNER_MARKER = re.compile(r"\r?\n\r?\n(Human|Assistant):")
_LINE_MARKER = re.compile(r"\n\s*(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
# How a prompt begins, ends or goes on that a chat template has been applied to already.
_RENDERED = re.compile(
    r"\A\s*(<s>|<bos>|<\|begin_of_text\|>)?\s*(\[INST\]|<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>)"
    r"|(###\s*(Assistant|Response):|\n(ASSISTANT|Assistant):|<\|assistant\|>|<\|im_start\|>assistant)\s*\Z"
    r"|\A\s*###\s*(Human|User|Instruction):[\s\S]*###\s*(Assistant|Response):"
)


def read_prompt(value: Any, name: str, where: str) -> Prompt:
    """Turns that end in the user's: a text becomes one, and a transcript its own turns.

    Raises:
      UserError: for something else, or for role markers in a text that is no whole transcript: as part of a user's turn
        they would have the user speak for the model.
    """
    if not isinstance(value, str):
        turns = read_turns(value, name, where)
    elif _MARKER.search(read_text(value, name, where)):
        turns = read_transcript(value)
        if not turns or any(_LINE_MARKER.search(turn.content) for turn in turns):
            raise _inner_marker(name, where)
    elif _RENDERED.search(value):
        raise UserError(f'{where}: field "{name}" has been put into a chat template: give a list of its turns')
    else:
        return (Turn("user", value),)
    if turns[-1].role != "user":
        raise UserError(f'{where}: field "{name}" ends in a turn of role "{turns[-1].role}" (expected "user")')
    return turns


def read_transcript(text: str) -> Prompt:
    """Turns of a "Human: ... Assistant: ..." transcript, without an empty last turn of the assistant, which opens the
    answer; no turns where the text is no transcript."""
    pieces = _MARKER.split(text.lstrip() if text.lstrip().startswith("Human:") else text)
    if len(pieces) < 3 or pieces[0].strip() or pieces[1] != "Human":
        return ()
    turns = [Turn(_SPEAKERS[who], said.strip()) for who, said in zip(pieces[1::2], pieces[2::2], strict=True)]
    return tuple(turns[:-1] if turns[-1] == Turn("assistant", "") else turns)


def read_conversation(value: Any, name: str, where: str) -> Prompt:
    """Turns that end in the assistant's answer to the user, in any of the forms of a conversation."""
    if isinstance(value, str):
        text = read_text(value, name, where)
        turns = read_transcript(text)
        if turns and turns[-1].role == "user":  # its answer is there, and empty
            turns = (*turns, Turn("assistant", "")) if text.rstrip().endswith("Assistant:") else ()
        if not turns:
            raise missing(where, "prompt")
    else:
        turns = read_turns(value, name, where)
    if [turn.role for turn in turns[-2:]] != ["user", "assistant"]:
        raise UserError(f'{where}: field "{name}" does not end in a user and an assistant turn')
    return turns


def read_answer(value: Any, name: str, where: str, prompt: Prompt) -> Prompt:
    """The prompt and a response to it as one conversation.

    The response is a text, the assistant's turn, or turns: what follows the prompt, or all of the conversation, in
    which the prompt stands at the beginning or right before the response.
    """
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        if len(value) > 1:
            raise UserError(
                f'{where}: field "{name}" lists {len(value)} responses (expected one: write a row for each pair)'
            )
        return read_answer(value[0], f"{name}[0]", where, prompt)
    if isinstance(value, str):
        turns = read_transcript(read_text(value, name, where))
        if len(turns) <= len(prompt) or turns[: len(prompt)] != prompt:
            return (*prompt, Turn("assistant", value))
    else:
        turns = read_turns([value] if isinstance(value, Mapping) else value, name, where)
        if turns[0].role == "assistant":
            turns = (*prompt, *turns)
        elif turns[0].role == "user" and prompt[0].role == "system":
            turns = (prompt[0], *turns)
    holds = prompt in (turns[: len(prompt)], turns[:-1][-len(prompt) :])
    if not holds or [turn.role for turn in turns[-2:]] != ["user", "assistant"]:
        raise UserError(
            f'{where}: field "{name}" is no response to "prompt" (expected a text, an assistant turn, or a '
            "conversation that holds the prompt and ends in an assistant turn)"
        )
    return turns


def read_turns(value: Any, name: str, where: str) -> Prompt:
    """A list of turns."""
    expected = "a list of {role, content} turns" if name == "messages" else "a string or a list of {role, content}"
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise wrong(where, name, expected, value)
    if not value:
        raise UserError(f'{where}: field "{name}" is an empty list (expected at least one turn)')
    return tuple(_turn(item, f"{name}[{i}]", where) for i, item in enumerate(value))


def _turn(item: Any, at: str, where: str) -> Turn:
    if not isinstance(item, Mapping):
        raise wrong(where, at, "an object with role and content", item)
    for key, harmless in _TURN_CHANGES.items():
        if item.get(key) is not None and item[key] != harmless:
            raise UserError(
                f'{where}: field "{at}.{key}" is not supported: drop the row, or the key if the turn can do without'
            )
    if "from" in item and "role" not in item:
        who, said, roles = "from", "value", _SHAREGPT_ROLES
    else:
        who, said, roles = "role", "content", {role: role for role in ROLES}
    for key in (who, said):
        if item.get(key) is None:
            raise missing(where, f"{at}.{key}")
    if not isinstance(item[who], str):
        raise wrong(where, f"{at}.{who}", "a string", item[who])
    if item[who] not in roles:
        raise UserError(f'{where}: field "{at}.{who}" is {quoted(item[who])} (expected one of {", ".join(roles)})')
    turn = Turn(roles[item[who]], _content(item[said], f"{at}.{said}", where))
    if turn.role == "user" and _INNER_MARKER.search(turn.content):
        raise _inner_marker(f"{at}.{said}", where)
    return turn


def _inner_marker(name: str, where: str) -> UserError:
    return UserError(
        f'{where}: field "{name}" holds "Human:" or "Assistant:" inside a text (expected a whole transcript that '
        "begins with Human:, or a list of turns)"
    )


def _content(value: Any, at: str, where: str) -> str:
    """A text, or a list of text parts joined to one."""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        for i, part in enumerate(value):
            if part.get("type", "text") != "text" or part.get("text") is None:
                raise UserError(
                    f'{where}: field "{at}[{i}]" is a part of type {quoted(str(part.get("type")))} (expected "text")'
                )
        return "".join(read_text(part["text"], f"{at}[{i}].text", where) for i, part in enumerate(value))
    return read_text(value, at, where)


def with_system(prompt: Prompt, row: Mapping[str, Any], where: str) -> Prompt:
    """The prompt with the turn of the row's system column in front."""
    for key in ("system", "system_prompt"):
        if row.get(key) not in (None, ""):
            turn = Turn("system", read_text(row[key], key, where))
            if prompt[0].role == "system" and prompt[0] != turn:
                raise UserError(f'{where}: key "{key}" gives another system turn than the conversation (expected one)')
            prompt = prompt if prompt[0] == turn else (turn, *prompt)
    return prompt
