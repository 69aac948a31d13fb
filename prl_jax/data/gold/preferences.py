"""The exact utility of any response and the exact preference between any two.

Utility: `u = c (0.6 + 0.25 f + 0.15 b) - 0.02 max(0, e - 16)` with correctness `c`, form `f` and brevity `b`, each in
[0, 1], and `e` characters that nobody asked for.
Preference: `p*(y1 > y2 | x) = sigmoid(scale(x) (u1 - u2 + intransitivity * cyclic(a1, a2)))`.
"""

import functools
import math
import string
from collections.abc import Iterable
from typing import NamedTuple

from prl_jax.data.gold import families
from prl_jax.data.gold.families import BRACKETS, CAPITALS, FAMILIES, GoldTask

FILLER = "~"
W_CORRECT, W_FORM, W_BREVITY = 0.6, 0.25, 0.15
# Brevity costs 0.15 at most. Beyond so many unneeded characters, more than any response of the built-in data has, each
# one costs this much besides, so that no amount of filler is ever free.
FREE_EXCESS = 16
EXCESS_COST = 0.02
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_FORMED_SCALE = 1.6  # annotators look closer where a form is asked for


class Attributes(NamedTuple):
    """The parts of the utility, each in [0, 1]."""

    correctness: float
    form: float
    brevity: float


def edit_distance(a: str, b: str) -> int:
    """Optimal string alignment: insertions, deletions, replacements and exchanges of neighbours from `a` to `b`."""
    if a == b:
        return 0
    before, row = [], list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


def _split(response: str) -> tuple[str, str]:
    """(head, filler): filler is everything from the first space or `~` on."""
    for i, char in enumerate(response):
        if char == FILLER or char.isspace():
            return response[:i], response[i:]
    return response, ""


def _form(head: str, task: GoldTask) -> float:
    """Share of letters in the right case times the share of the two ends that are (or are not) bracketed as asked."""
    asked = task.form == BRACKETS
    ends = ((head[:1] == "<") == asked) + ((head[-1:] == ">") == asked)
    if not FAMILIES[task.family].letters:
        return ends / 2
    letters = [char for char in head if char.isalpha()]
    # Prompts are ASCII: a letter of another alphabet is in no case that is asked for.
    right = sum(char.isascii() and (char.isupper() if task.form == CAPITALS else char.islower()) for char in letters)
    return right / len(letters) * ends / 2 if letters else 0.0


@functools.lru_cache(maxsize=1 << 16)
def attributes(prompt: str, response: str) -> Attributes:
    """Correctness, form and brevity of any text as a response to a prompt of the built-in tasks.

    correctness: similarity `s = 1 - distance / longer length` between the response's content (form undone, filler left
      out) and the right content, sharpened to `max(0, (s - 0.4) / 0.6) ** 1.5`, which puts unrelated answers near 0.
    form: see `_form`; 1 where the request is obeyed.
    brevity: 1/2 to the power of the characters that are filler or make the content longer than the right one.

    Raises `UserError` where the prompt is not one of the built-in tasks.
    """
    task = families.parse(prompt)
    right = families.content(task)
    head, _ = _split(response)
    body = _body(head)
    longest = max(len(right), len(body))
    # Very long texts cannot be similar: do not pay for their alignment.
    distance = edit_distance(right, body) if len(body) <= 3 * len(right) else longest
    similarity = 1.0 - distance / longest
    return Attributes(
        correctness=max(0.0, (similarity - 0.4) / 0.6) ** 1.5 if distance else 1.0,
        form=_form(head, task),
        brevity=0.5 ** min(_excess(prompt, response), 60),
    )


def stated_content(response: str) -> str:
    """The content that a response states: its form undone, filler left out."""
    return _body(_split(response)[0])


def _body(head: str) -> str:
    """The content that a response states, its form undone. Only ASCII letters have a lower case here: `str.lower` would
    make a `k` of the Kelvin sign."""
    return head.removeprefix("<").removesuffix(">").translate(_LOWER)


def _excess(prompt: str, response: str) -> int:
    """Characters that are filler or make the content longer than the right one."""
    head, filler = _split(response)
    return len(filler) + max(0, len(_body(head)) - len(families.content(families.parse(prompt))))


def utility_of(values: Attributes) -> float:
    """`c (0.6 + 0.25 f + 0.15 b)`: 1 only where all three are 1, 0 without any correct content; what very long
    responses cost besides is in `utility`."""
    if min(values) == 1.0:
        return 1.0
    return values.correctness * (W_CORRECT + W_FORM * values.form + W_BREVITY * values.brevity)


def utility(prompt: str, response: str) -> float:
    """Exact utility of any text as a response to a prompt of the built-in tasks: 1 at most; 0 at least, but for a
    response with more than `FREE_EXCESS` unneeded characters, which may have any negative number."""
    beyond = max(0, _excess(prompt, response) - FREE_EXCESS)
    return utility_of(attributes(prompt, response)) - EXCESS_COST * beyond


def scale(prompt: str) -> float:
    """How sharply utility decides on this prompt, in [4, 20]: by family, 1.6 times higher where a form is asked for."""
    task = families.parse(prompt)
    return FAMILIES[task.family].scale * (1.0 if task.form == families.PLAIN else _FORMED_SCALE)


def cyclic(a: Attributes, b: Attributes) -> float:
    """Skew-symmetric bilinear form in [-1, 1]: correctness beats brevity beats form beats correctness."""
    return (
        (a.correctness * b.brevity - a.brevity * b.correctness)
        + (a.brevity * b.form - a.form * b.brevity)
        + (a.form * b.correctness - a.correctness * b.form)
    )


def preference(prompt: str, first: str, second: str, *, intransitivity: float = 0.0, sharpness: float = 0.0) -> float:
    """Noise-free `p*(first > second | prompt)`.

    `intransitivity` weighs the cyclic part in units of utility, `sharpness` stands in the place of the prompt's `scale`
    unless it is 0. Exactly 0.5 for equal texts, and `p(a, b) + p(b, a) == 1` exactly.
    """
    a, b = attributes(prompt, first), attributes(prompt, second)
    gap = utility(prompt, first) - utility(prompt, second)
    logit = (sharpness or scale(prompt)) * (gap + intransitivity * cyclic(a, b))
    high = 1.0 / (1.0 + math.exp(-abs(logit)))
    return high if logit >= 0 else 1.0 - high


def annotate(p_star: float, *, noise: float, ties: float) -> tuple[float, float, float]:
    """`label_distribution` of a pair whose p* is known."""
    tie = ties * 4.0 * p_star * (1.0 - p_star)
    clean = (1.0 - noise) * p_star + noise * (1.0 - p_star)
    return (1.0 - tie) * clean, tie, (1.0 - tie) * (1.0 - clean)


def label_distribution(
    prompt: str, first: str, second: str, *, noise: float, ties: float, intransitivity: float, sharpness: float = 0.0
) -> tuple[float, float, float]:
    """Returns the probabilities that an annotator says first, tie, second.

    A tie has probability `ties * 4 p* (1 - p*)`, so `ties` at p* = 1/2 and less away from it; what is not a tie is a
    sample of p* that is flipped with probability `noise`. The truth that calibration is measured against is
    `first + tie / 2`.
    """
    p_star = preference(prompt, first, second, intransitivity=intransitivity, sharpness=sharpness)
    return annotate(p_star, noise=noise, ties=ties)


def bayes_accuracy(
    pairs: Iterable[tuple[str, str, str]],
    *,
    noise: float,
    ties: float,
    intransitivity: float = 0.0,
    sharpness: float = 0.0,
) -> float:
    """Expected accuracy, against sampled labels and with ties left out, of a judge that knows p*.

    `pairs` are (prompt, response, response) texts; no judge does better than this on fresh labels.
    """
    right = total = 0.0
    for prompt, first, second in pairs:
        p_first, _, p_second = label_distribution(
            prompt, first, second, noise=noise, ties=ties, intransitivity=intransitivity, sharpness=sharpness
        )
        right += max(p_first, p_second)
        total += p_first + p_second
    return right / total
