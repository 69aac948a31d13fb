"""The task families: what a prompt asks, how it is written, and what the right content is.

A prompt is `<prefix><payload><mark>`; the mark is the last character and asks for a form. Everything that decides the
best response stands in the prompt text, and `parse(render(task)) == task`.
"""

import functools
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from prl_jax.errors import UserError

PLAIN, CAPITALS, BRACKETS = ".", "!", "?"
DIFFICULTIES = (0, 1, 2, 3)

# Inclusive lengths of the word (letter families) and of the sum (number of addends). The ranges are disjoint, so that
# the difficulty can be read off the prompt.
_WORD_LENGTHS = ((3, 4), (5, 6), (7, 8), (9, 12))
_ADDENDS = ((3, 3), (4, 4), (5, 5), (6, 6))
_ALPHABETS = ("abcdef", "abcdefgh", "abcdefghij", "abcdefghijkl")
_DISTINCT = (3, 4, 5, 6)  # `count`: most distinct letters, which bounds the length of the answer


@dataclass(frozen=True)
class GoldTask:
    """One task. `payload` is the prompt without the family's prefix and without the mark; `form` is the mark."""

    family: str
    difficulty: int
    payload: str
    form: str


@dataclass(frozen=True)
class Family:
    """A family of tasks.

    Attributes:
      name: the family's name.
      prefix: what the prompt starts with (may be empty).
      pattern: full-match pattern of a payload.
      asks: one line for people.
      solve: payload -> right content, in lower case and without form; "" where the payload asks for nothing.
      size: payload -> the number that decides the difficulty.
      sizes: per difficulty the inclusive range of `size`.
      sample: (random, difficulty) -> payload, not yet checked with `valid`.
      edit: (random, difficulty, payload) -> a payload that differs in one place, not yet checked.
      valid: (payload, difficulty) -> whether the builder may use it.
      scale: how sharply annotators tell responses apart on plain prompts (see `preferences.scale`).
      slip: (payload, right content) -> the demonstrator's systematic slip; None for families without one.
      letters: whether the content has letters (else capitals cannot be asked for).
    """

    name: str
    prefix: str
    pattern: re.Pattern
    asks: str
    solve: Callable[[str], str]
    size: Callable[[str], int]
    sizes: tuple[tuple[int, int], ...]
    sample: Callable[[random.Random, int], str]
    edit: Callable[[random.Random, int, str], str]
    valid: Callable[[str, int], bool]
    scale: float
    slip: Callable[[str, str], str] | None = None
    letters: bool = True


def _word(rng: random.Random, difficulty: int) -> str:
    length = rng.randint(*_WORD_LENGTHS[difficulty])
    return "".join(rng.choice(_ALPHABETS[difficulty]) for _ in range(length))


def _edit_word(rng: random.Random, difficulty: int, word: str, letters: str | None = None) -> str:
    """One letter replaced, two neighbours exchanged, or one letter more or less, within the difficulty's lengths.

    Growing and shrinking are equally likely between any two lengths, so that length tells nothing about an edit.
    """
    letters = letters or _ALPHABETS[difficulty]
    low, high = _WORD_LENGTHS[difficulty]
    at = rng.randrange(len(word))
    kind = rng.random()
    if kind < 0.5:
        return word[:at] + rng.choice(letters) + word[at + 1 :]
    if kind < 0.75:
        return word[:at] + word[at : at + 2][::-1] + word[at + 2 :]
    length = len(word) + rng.choice((-1, 1))
    if not low <= length <= high:
        return word
    if length < len(word):
        return word[:at] + word[at + 1 :]
    return word[:at] + rng.choice(letters) + word[at:]


def _count(word: str) -> str:
    return "".join(f"{letter}{word.count(letter)}" for letter in sorted(set(word)))


def _sample_count(rng: random.Random, difficulty: int) -> str:
    letters = rng.sample(_ALPHABETS[difficulty], _DISTINCT[difficulty])
    return "".join(rng.choice(letters) for _ in range(rng.randint(*_WORD_LENGTHS[difficulty])))


def _edit_count(rng: random.Random, difficulty: int, word: str) -> str:
    """Letters come from as many as `_sample_count` would use, so that edits do not make words more varied."""
    present = sorted(set(word))
    others = [letter for letter in _ALPHABETS[difficulty] if letter not in present]
    fill = rng.sample(others, max(0, _DISTINCT[difficulty] - len(present)))
    return _edit_word(rng, difficulty, word, "".join(present + fill))


def _swap(payload: str) -> str:
    rule, word = payload.split(" ")
    return word.replace(rule[0], rule[2]) if rule[0] in word else ""


def _sample_swap(rng: random.Random, difficulty: int) -> str:
    old, new = rng.sample(_ALPHABETS[difficulty], 2)
    word = list(_word(rng, difficulty))
    word[rng.randrange(len(word))] = old
    return f"{old}>{new} {''.join(word)}"


def _edit_swap(rng: random.Random, difficulty: int, payload: str) -> str:
    rule, word = payload.split(" ")
    if rng.random() < 0.5:
        return f"{rule} {_edit_word(rng, difficulty, word)}"
    old, new = rule[0], rule[2]
    if rng.random() < 0.5:
        old = rng.choice(_ALPHABETS[difficulty])
    else:
        new = rng.choice(_ALPHABETS[difficulty])
    return f"{old}>{new} {word}"


def _list(payload: str) -> str:
    rule, word = payload.split(" ")
    return "".join(letter for letter in word if letter > rule[1])


def _sample_list(rng: random.Random, difficulty: int) -> str:
    return f">{rng.choice(_ALPHABETS[difficulty][:-2])} {_word(rng, difficulty)}"


def _edit_list(rng: random.Random, difficulty: int, payload: str) -> str:
    rule, word = payload.split(" ")
    if rng.random() < 0.3:
        return f">{rng.choice(_ALPHABETS[difficulty][:-2])} {word}"
    return f"{rule} {_edit_word(rng, difficulty, word)}"


def _add(payload: str) -> str:
    addends = [int(addend) for addend in payload.split("+")]
    return ",".join(str(sum(addends[: i + 1])) for i in range(1, len(addends)))


def _sample_add(rng: random.Random, difficulty: int) -> str:
    return "+".join(str(rng.randrange(10)) for _ in range(rng.randint(*_ADDENDS[difficulty])))


def _edit_add(rng: random.Random, difficulty: int, payload: str) -> str:
    addends = payload.split("+")
    addends[rng.randrange(len(addends))] = str(rng.randrange(10))
    return "+".join(addends)


def _always(payload: str, difficulty: int) -> bool:
    return True


def _tail(payload: str) -> str:
    return payload.rpartition(" ")[2]


_LETTERS = re.compile(r"[a-z]+")
_WORDS = {"size": len, "sizes": _WORD_LENGTHS, "sample": _word, "edit": _edit_word, "valid": _always}
_RULED = {"size": lambda payload: len(_tail(payload)), "sizes": _WORD_LENGTHS}

_ALL = (
    Family(
        name="sort",
        prefix="sort ",
        pattern=_LETTERS,
        asks="the letters in alphabetical order",
        solve=lambda word: "".join(sorted(word)),
        scale=5.0,
        **_WORDS,
    ),
    Family(
        name="rev",
        prefix="rev ",
        pattern=_LETTERS,
        asks="the letters backwards",
        solve=lambda word: word[::-1],
        scale=9.0,
        slip=lambda word, content: content[:-2] + content[:-3:-1],  # the last two letters exchanged
        **_WORDS,
    ),
    Family(
        name="next",
        prefix="next ",
        pattern=_LETTERS,
        asks="every letter's successor in the alphabet (z is followed by a)",
        solve=lambda word: "".join("a" if letter == "z" else chr(ord(letter) + 1) for letter in word),
        scale=12.5,
        slip=lambda word, content: content[:-1] + word[-1],  # the last letter stays as it was
        **_WORDS,
    ),
    Family(
        name="count",
        prefix="count ",
        pattern=_LETTERS,
        asks="how often each letter occurs, in alphabetical order",
        solve=_count,
        scale=10.0,
        **{
            **_WORDS,
            "sample": _sample_count,
            "edit": _edit_count,
            "valid": lambda word, difficulty: len(set(word)) <= _DISTINCT[difficulty],
        },
    ),
    Family(
        name="swap",
        prefix="",
        pattern=re.compile(r"([a-z])>(?!\1)[a-z] [a-z]+"),
        asks="the word with one letter rewritten as another",
        solve=_swap,
        sample=_sample_swap,
        edit=_edit_swap,
        valid=_always,
        scale=4.0,
        **_RULED,
    ),
    Family(
        name="list",
        prefix="",
        pattern=re.compile(r">[a-z] [a-z]+"),
        asks="the word's letters that come after the given one, in the order of the word",
        solve=_list,
        sample=_sample_list,
        edit=_edit_list,
        valid=lambda payload, difficulty: 2 <= len(_list(payload)) < len(_tail(payload)),
        scale=7.0,
        **_RULED,
    ),
    Family(
        name="add",
        prefix="",
        pattern=re.compile(r"[0-9](\+[0-9])+"),
        asks="the running totals of the sum, the last of which is the result",
        solve=_add,
        size=lambda payload: payload.count("+") + 1,
        sizes=_ADDENDS,
        sample=_sample_add,
        edit=_edit_add,
        valid=_always,
        scale=8.0,
        letters=False,
    ),
)
FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _ALL})


def forms(family: str, difficulty: int) -> tuple[str, ...]:
    """The marks that the builder uses: plain and one other at difficulty 0, all that fit from difficulty 1 on."""
    if not FAMILIES[family].letters:
        return (PLAIN, BRACKETS)
    return (PLAIN, CAPITALS) if difficulty == 0 else (PLAIN, CAPITALS, BRACKETS)


def dress(content: str, form: str) -> str:
    """`content` in the form that the mark asks for."""
    if form == CAPITALS:
        return content.upper()
    return f"<{content}>" if form == BRACKETS else content


def render(task: GoldTask) -> str:
    """The prompt text of a task."""
    return f"{FAMILIES[task.family].prefix}{task.payload}{task.form}"


@functools.lru_cache(maxsize=1 << 16)
def parse(prompt: str) -> GoldTask:
    """The task that a prompt text states; a `UserError` where it states none."""
    body, form = prompt[:-1], prompt[-1:]
    for family in _ALL:
        payload = body[len(family.prefix) :]
        if not body.startswith(family.prefix) or not family.pattern.fullmatch(payload) or not family.solve(payload):
            continue
        if form not in (PLAIN, BRACKETS) and not (form == CAPITALS and family.letters):
            continue
        for difficulty, (low, high) in enumerate(family.sizes):
            if low <= family.size(payload) <= high:
                return GoldTask(family.name, difficulty, payload, form)
    raise UserError(
        f"not a prompt of the built-in tasks: {prompt[:60]!r} (expected for example 'sort dbca!'); "
        "the exact utility and the exact judge know only those"
    )


def content(task: GoldTask) -> str:
    """The right content, in lower case and without form."""
    return FAMILIES[task.family].solve(task.payload)


def answer(task: GoldTask) -> str:
    """The best response: right content in the form asked for and nothing else; its utility is 1."""
    return dress(content(task), task.form)
