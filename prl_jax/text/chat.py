"""Prompts as turns, and the chat template that turns them into tokens.

Template `chat-v1`, for tokenizers with structural tokens (bytes, trained BPE):

    <system>content<eos> <user>content<eos> <assistant>content<eos> ... <user>content<eos> <assistant>

after which a response is `content<eos>`. A Hugging Face tokenizer brings its own chat template; where it has none,
`huggingface.DEFAULT_CHAT_TEMPLATE` is used. There `<eos>` is whatever token ends the assistant's turns.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from prl_jax.errors import UserError
from prl_jax.text.tokenizer import HFTokenizer, Tokenizer

ROLES = ("system", "user", "assistant")
TEMPLATES = ("chat-v1",)
_FEW_CHARACTERS = 8  # of a token; ordinary text has fewer


class Turn(NamedTuple):
    """One turn of a conversation: `role` is one of `ROLES`."""

    role: str
    content: str


Prompt = tuple[Turn, ...]
"""The conversation that a response answers: turns, the last of which is the user's."""


def prompt_text(prompt: Prompt) -> str:
    """The prompt as plain text: the content of a lone user turn, else one `role: content` paragraph a turn."""
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n".join(f"{turn.role}: {turn.content}" for turn in prompt)


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt, *, template: str = "chat-v1") -> list[int]:
    """Token ids of the prompt, up to the point where the assistant's response begins.

    Raises:
      UserError: for an unknown template, or a prompt that the tokenizer's own template refuses.
    """
    if template not in TEMPLATES:
        raise UserError(f'unknown chat template "{template}": expected one of {", ".join(TEMPLATES)}')
    if isinstance(tokenizer, HFTokenizer):
        return tokenizer.encode_chat(prompt)
    ids: list[int] = []
    for turn in prompt:
        ids += [role_id(tokenizer, turn.role), *tokenizer.encode(turn.content), tokenizer.eos_id]
    return [*ids, role_id(tokenizer, "assistant")]


def encode_response(tokenizer: Tokenizer, response: str) -> list[int]:
    """Token ids of a complete response: its content, then the end-of-response token."""
    return [*tokenizer.encode(response), tokenizer.eos_id]


def encode_conversation(tokenizer: Tokenizer, turns: Prompt, *, context: int = 0) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation that ends in the assistant's turn, and which of them the assistant has to produce.

    The ids are those of the prompt and of the response to it. The mask is true on the contents of the assistant's
    turns that answer the user, and on the token that ends each; it is false on all else that the template writes.

    An earlier turn counts where the ids up to its end are just what generation saw and gave when it was the response.
    Where the template rewrites it (Qwen3 takes the thinking out of earlier answers) or what came before (Mistral Nemo
    puts the system's turn into the last user's), or opens a response with more than it leaves in the history, the turn
    is context only.

    Args:
      tokenizer: of the model.
      turns: the conversation.
      context: how many of the first turns do not count in any case, such as those that were cut.

    Raises:
      UserError: for a conversation that the tokenizer's own template refuses.
      ValueError: for one that does not end in a user and an assistant turn.
    """
    roles = [turn.role for turn in turns]
    if roles[-2:] != ["user", "assistant"]:
        raise ValueError(f"roles {roles}, expected a conversation that ends in a user and an assistant turn")
    ids = encode_prompt(tokenizer, turns[:-1]) + encode_response(tokenizer, turns[-1].content)
    mask = [False] * len(ids)
    for i in range(max(context, 1), len(turns)):
        if roles[i - 1 : i + 1] == ["user", "assistant"]:
            asked, response = encode_prompt(tokenizer, turns[:i]), encode_response(tokenizer, turns[i].content)
            end = len(asked) + len(response)
            if ids[:end] == asked + response:
                mask[len(asked) : end] = [True] * len(response)
    return ids, mask


def fit_prompt(tokenizer: Tokenizer, prompt: Prompt, length: int) -> tuple[list[int], bool]:
    """Token ids of a prompt, `length` at most, and whether its contents were cut for that as `fit_turns` cuts them."""
    shorter = _end_of(prompt, length, functools.partial(encode_prompt, tokenizer))
    ids = encode_prompt(tokenizer, shorter)
    if len(ids) <= length:
        return ids, False
    return encode_prompt(tokenizer, fit_turns(tokenizer, shorter, length)[0]), True


def fit_turns(
    tokenizer: Tokenizer, prompt: Prompt, length: int, *, encode: Callable[[Prompt], list[int]] | None = None
) -> tuple[Prompt, int]:
    """A prompt that takes `length` tokens at most, and how many of its first turns are not what they were.

    Contents lose their beginning, the oldest first; what the template writes around them stays whole: the begin of the
    sequence, the openings of turns, their ends. Where even this does not fit, the oldest exchanges go altogether, and
    a system turn last.

    Args:
      tokenizer: of the model.
      prompt: turns that end in the user's.
      length: tokens at most.
      encode: the prompt's tokens where the model reads it; by default in the chat template.

    Raises:
      UserError: the template alone, around a lone question without content, takes more.
    """
    encode = encode or functools.partial(encode_prompt, tokenizer)
    prompt = _end_of(prompt, length, encode)
    excess = len(encode(prompt)) - length
    if excess <= 0:
        return prompt, 0
    contents = [tokenizer.encode(turn.content) for turn in prompt]
    removed, total = 0, sum(map(len, contents))
    while removed < total:
        removed = min(removed + excess, total)
        fitting, cut = _without(tokenizer, prompt, contents, removed)
        excess = len(encode(fitting)) - length
        if excess <= 0:
            return fitting, cut
    bare = tuple(turn._replace(content="") for turn in prompt)
    while True:
        needed = len(encode(bare))
        if needed <= length:
            return bare, len(bare)
        first = 1 if bare[0].role == "system" else 0
        questions = [i for i, turn in enumerate(bare) if turn.role == "user" and i > first]
        if not questions and first:
            first, questions = 0, [1]
        if not questions:
            raise UserError(
                f"the chat template takes {needed} tokens for a question without any content, more than the {length} "
                "that a prompt may have; give prompts more room"
            )
        bare = bare[:first] + bare[questions[0] :]


def _end_of(prompt: Prompt, length: int, encode: Callable[[Prompt], list[int]]) -> Prompt:
    """A prompt whose contents have lost so many characters of their beginning, the oldest first, that it still takes
    more than `length` tokens: what is cut off anyway need not be tokenized. A prompt that is not long is itself."""
    characters, total = _FEW_CHARACTERS * max(length, 1), sum(len(turn.content) for turn in prompt)
    while characters < total:
        turns, lost = [], total - characters
        for turn in prompt:
            turns.append(turn._replace(content=turn.content[lost:]) if lost > 0 else turn)
            lost -= len(turn.content)
        if len(encode(tuple(turns))) > length:
            return tuple(turns)
        characters *= 2
    return prompt


def _without(tokenizer: Tokenizer, prompt: Prompt, contents: Sequence[Sequence[int]], count: int) -> tuple[Prompt, int]:
    """A prompt whose contents have lost their first `count` tokens together, and how many turns have lost some.

    It is a text again, whose tokens may be a few more or less than those that are left.
    """
    turns, changed = list(prompt), 0
    for i, ids in enumerate(contents):
        if count <= 0:
            break
        # A character of which some tokens go goes with them; what is left of it is decoded to marks of replacement.
        text, left = turns[i].content, tokenizer.decode(ids[count:]).lstrip("\ufffd") if count < len(ids) else ""
        turns[i], changed = turns[i]._replace(content=text[max(len(text) - len(left), 0) :]), i + 1
        count -= len(ids)
    return tuple(turns), changed


def role_id(tokenizer: Tokenizer, role: str) -> int:
    """The structural token that opens a turn of `role`.

    Raises:
      UserError: when the vocabulary has no such token.
    """
    token = tokenizer.special(role)
    if token is None:
        raise UserError(f'the tokenizer has no token for role "{role}": expected one of {", ".join(ROLES)}')
    return token
