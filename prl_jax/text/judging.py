"""Templates of generative judges: a prompt and two responses in, one verdict token out.

    compact-v1   <user>..turns..<eos> <first>response 1<eos> <second>response 2<eos> <verdict>   then the verdict
    question-v1  [Prompt] .. [Response 1] .. [Response 2] .. [Question] .. Answer:   then the verdict

`compact-v1` is for tokenizers with structural tokens; `question-v1` is plain text inside the tokenizer's chat template
and serves any tokenizer. The pieces of a row are encoded one by one and joined, so that truncation cannot break a
structural piece and the verdict's context is known exactly.

No content can pass for a part of the frame, so that a response cannot close its slot or open another. No text encodes
to a structural token of `compact-v1`. In `question-v1`, a heading inside a content gets a backslash in front
(`_escaped`), and so does a line of a prompt that begins like a turn. Whoever takes one away from each finds the content
again: what differs in prompt or responses differs in the row.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from prl_jax.errors import UserError
from prl_jax.text.chat import Prompt, fit_turns, prompt_text, role_id
from prl_jax.text.huggingface import HFTokenizer
from prl_jax.text.tokenizer import Tokenizer

NAMES = ("compact-v1", "question-v1")
ON_LONG = ("truncate", "error")
# What stands in front of a heading of question-v1, or of a turn in the chat template of models that bring none; also
# where it is written a little otherwise, which a language model would read as one all the same.
#
# Judges that were trained before contents were escaped are asked as they were trained: rows differ only where a content
# holds one of these, and there the old rows said something else than what they stood for. So the version stays.
_MARKER = re.compile(
    r"\[(?=\s*(?:prompt|response\s*\d+|question)\s*\])|#(?=##\s*(?:system|user|assistant)\s*:)", re.IGNORECASE
)
_TURN = re.compile(r"^(?=\\*(?:system|user|assistant):)", re.MULTILINE)  # a line that begins like one of `prompt_text`
_HEADINGS = ("[Prompt]\n", "\n\n[Response 1]\n", "\n\n[Response 2]\n", "\n\n[Question]\n")  # of question-v1


@dataclass(frozen=True)
class JudgeTemplate:
    """How a judge reads a pair.

    Attributes:
      name: one of `NAMES`.
      verdicts: the words for "response 1 is better" and "response 2 is better"; each one token in its context.
      shared_positions: response 2 gets the positions of response 1, so that neither comes later.

    Raises:
      UserError: for an unknown name.
    """

    name: str = "compact-v1"
    verdicts: tuple[str, str] = ("Y", "N")
    shared_positions: bool = False

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UserError(f'unknown judge template "{self.name}": expected one of {", ".join(NAMES)}')

    def imitated_by(self, text: str) -> bool:
        """Whether a text holds what would be a part of the frame, if contents were not kept apart from it."""
        return self.name == "question-v1" and _MARKER.search(text) is not None


class JudgeRow(NamedTuple):
    """One comparison in one order.

    Attributes:
      ids, positions: of its tokens.
      truncated: whether anything was cut.
      even: whether the two responses, as far as they are shown, are the same.
    """

    ids: list[int]
    positions: list[int]
    truncated: bool
    even: bool


class _Pieces(NamedTuple):
    """A row before fitting: fixed pieces around the contents that may be cut."""

    lead: list[int]
    turns: list[tuple[list[int], list[int]]]  # what opens a turn, and its content
    separators: tuple[list[int], list[int]]
    responses: tuple[list[int], list[int]]
    closing: list[int]  # stands behind each response
    tail: list[int]


def verdict_ids(tokenizer: Tokenizer, template: JudgeTemplate) -> tuple[int, int]:
    """The token ids of the two verdicts, each checked to be one token where it will stand.

    Raises:
      UserError: for a verdict of several tokens (or none), naming its pieces, or for two verdicts of one token.
    """
    return _answer(tokenizer, template)[1]


def encode_judge_row(
    tokenizer: Tokenizer,
    template: JudgeTemplate,
    prompt: Prompt,
    first: str,
    second: str,
    *,
    max_length: int,
    on_long: str = "truncate",
) -> JudgeRow:
    """Tokens of one comparison, up to the point where the verdict comes next.

    Args:
      tokenizer: any tokenizer that the template can use.
      template: which one.
      prompt: what was asked.
      first, second: the responses in slot 1 and slot 2.
      max_length: tokens at most.
      on_long: "truncate" cuts the prompt on the left, turn openings kept; if even an empty prompt does not fit, it
        cuts both responses on the right to the same limit, whichever slot they are in. "error" refuses long rows.

    Raises:
      UserError: for a row that does not fit with "error", or whose structure alone does not fit.
    """
    if on_long not in ON_LONG:
        raise ValueError(f"on_long={on_long!r}, expected one of {ON_LONG}")
    pieces = _pieces(tokenizer, template, prompt, first, second)
    needed = _fixed_length(pieces) + sum(len(opening) + len(content) for opening, content in pieces.turns[:-1])
    needed += len(pieces.turns[-1][1]) + sum(map(len, pieces.responses))
    truncated = needed > max_length
    if truncated:
        if on_long == "error":
            raise UserError(
                f"prompt and responses take {needed} tokens in judge template {template.name}, but the context holds "
                f"{max_length}: shorten them or use a judge with a longer context"
            )
        pieces = _fit(pieces, max_length, tokenizer, template, prompt)
    return _join(pieces, truncated, template.shared_positions)


def _fixed_length(pieces: _Pieces) -> int:
    """Tokens that are never cut: everything but contents, with the opening of the last turn."""
    separators = sum(map(len, pieces.separators))
    return len(pieces.lead) + len(pieces.turns[-1][0]) + separators + 2 * len(pieces.closing) + len(pieces.tail)


def _pieces(tokenizer: Tokenizer, template: JudgeTemplate, prompt: Prompt, first: str, second: str) -> _Pieces:
    if template.name == "question-v1":
        first, second = _escaped(first), _escaped(second)
    responses = (tokenizer.encode(first), tokenizer.encode(second))
    if template.name == "compact-v1":
        separators = ([_structural(tokenizer, "first")], [_structural(tokenizer, "second")])
        # Turns and responses end as in the chat template, so that a judge made from a policy finds what it knows.
        eos = tokenizer.eos_id
        turns = [([role_id(tokenizer, turn.role)], [*tokenizer.encode(turn.content), eos]) for turn in prompt]
        return _Pieces([], turns, separators, responses, [eos], [_structural(tokenizer, "verdict")])
    stem = _answer(tokenizer, template)[0]
    before, after = _user_frame(tokenizer)
    heading, *separators, asked = _HEADINGS
    return _Pieces(
        lead=before + tokenizer.encode(heading),
        turns=[([], tokenizer.encode(_plain_prompt(prompt)))],
        separators=(tokenizer.encode(separators[0]), tokenizer.encode(separators[1])),
        responses=responses,
        closing=[],
        tail=tokenizer.encode(asked + _question(template)) + after + stem,
    )


def question_text(template: JudgeTemplate, prompt: Prompt, first: str, second: str, question: str = "") -> str:
    """One comparison of `question-v1` as the text of a user's turn, whole, for models that are asked in text.

    Args:
      template: its verdict words stand in the question.
      prompt: what was asked.
      first, second: the responses in slot 1 and slot 2.
      question: stands in the place of the template's own question; "" leaves that.
    """
    contents = (_plain_prompt(prompt), _escaped(first), _escaped(second), question or _question(template))
    return "".join(part for pair in zip(_HEADINGS, contents, strict=True) for part in pair)


def _question(template: JudgeTemplate) -> str:
    yes, no = template.verdicts
    return f"Is response 1 better than response 2? Answer {yes} or {no}."


def _escaped(text: str) -> str:
    """A content of `question-v1`, with a backslash in front of whatever could be a part of the frame."""
    return _MARKER.sub(lambda match: "\\" + match[0], text)


def _plain_prompt(prompt: Prompt) -> str:
    """A prompt as `question-v1` writes it: `prompt_text` of contents that imitate neither headings nor turns."""
    contents = [_TURN.sub(r"\\", _escaped(turn.content)) for turn in prompt]
    turns = [turn._replace(content=content) for turn, content in zip(prompt, contents, strict=True)]
    return prompt_text(tuple(turns))


def _user_frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Returns what stands around the content of a lone user turn in the tokenizer's chat template."""
    if isinstance(tokenizer, HFTokenizer):
        return tokenizer.user_frame()
    return [role_id(tokenizer, "user")], [tokenizer.eos_id, role_id(tokenizer, "assistant")]


def _structural(tokenizer: Tokenizer, name: str) -> int:
    token = tokenizer.special(name)
    if token is None:
        raise UserError(
            f'judge template compact-v1 needs the structural token "{name}", which this tokenizer lacks: '
            "use question-v1"
        )
    return token


def _answer(tokenizer: Tokenizer, template: JudgeTemplate) -> tuple[list[int], tuple[int, int]]:
    """Returns what the verdict directly follows, and the two verdict tokens there.

    Some vocabularies join a word with the space before it (" Y"), some do not ("Y"): the space goes to the side where
    both verdicts are single tokens.
    """
    contexts = (("", ""),) if template.name == "compact-v1" else (("Answer:", " "), ("Answer: ", ""))
    problems: list[tuple[str, list[str]]] = []
    for stem, space in contexts:
        before = tokenizer.encode(stem)
        found: list[int] = []
        for word in template.verdicts:
            ids = tokenizer.encode(stem + space + word)
            added = ids[len(before) :]
            if ids[: len(before)] == before and len(added) == 1:
                found.append(added[0])
            else:
                pieces = [tokenizer.decode([i]) for i in (added if ids[: len(before)] == before else ids)]
                problems.append((word, pieces))
        if len(found) == 2:
            if found[0] == found[1]:
                raise UserError(
                    f'verdict words "{template.verdicts[0]}" and "{template.verdicts[1]}" are the same token: '
                    "choose two that differ"
                )
            return before, (found[0], found[1])
    # Tell of a word that fails everywhere, in the context that comes closest.
    words = [word for word, _ in problems]
    hopeless = [problem for problem in problems if words.count(problem[0]) == len(contexts)] or problems
    word, pieces = min(hopeless, key=lambda problem: len(problem[1]))
    raise UserError(
        f'verdict word "{word}" is {len(pieces)} tokens {pieces} in judge template {template.name}: '
        "choose verdicts that are one token each"
    )


def _fit(pieces: _Pieces, max_length: int, tokenizer: Tokenizer, template: JudgeTemplate, prompt: Prompt) -> _Pieces:
    room = max_length - _fixed_length(pieces)  # for contents, and openings of turns before the last
    if room < 0:
        raise UserError(
            f"judge template {template.name} takes {max_length - room} tokens without any content, "
            f"but the context holds {max_length}"
        )
    first, second = pieces.responses
    short = min(len(first), len(second))
    if len(first) + len(second) > room:
        limit = room // 2 if short > room // 2 else room - short
        first, second = first[:limit], second[:limit]
    room -= len(first) + len(second)
    if template.name == "question-v1":
        encode = lambda turns: tokenizer.encode(_plain_prompt(turns))  # noqa: E731
        visible, _ = fit_turns(tokenizer, prompt, room, encode=encode)
        return pieces._replace(turns=[([], encode(visible))], responses=(first, second))

    kept: list[tuple[list[int], list[int]]] = []
    for i, (opening, content) in enumerate(reversed(pieces.turns)):
        room -= len(opening) if i else 0  # the last turn's opening is counted already
        if room < 0 or (i and room == 0 and content):
            break
        cut = content[max(0, len(content) - room) :]
        kept.append((opening, cut))
        room -= len(cut)
        if len(cut) < len(content):
            break
    return pieces._replace(turns=kept[::-1], responses=(first, second))


def _join(pieces: _Pieces, truncated: bool, shared_positions: bool) -> JudgeRow:
    head = list(pieces.lead)
    for opening, content in pieces.turns:
        head += opening + content
    pairs = zip(pieces.separators, pieces.responses, strict=True)
    slots = [separator + response + pieces.closing for separator, response in pairs]
    ids = head + slots[0] + slots[1] + pieces.tail
    even = pieces.responses[0] == pieces.responses[1]
    if not shared_positions:
        return JudgeRow(ids, list(range(len(ids))), truncated, even)
    start = len(head)
    after = start + max(map(len, slots))
    positions = [*range(start), *range(start, start + len(slots[0])), *range(start, start + len(slots[1]))]
    return JudgeRow(ids, positions + list(range(after, after + len(pieces.tail))), truncated, even)
