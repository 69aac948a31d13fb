"""The number that a worked answer ends in, as an exact fraction. Numbers are found and read; no text is evaluated."""

from __future__ import annotations

import re
from fractions import Fraction

_MARK, _BOX = "####", "\\boxed{"  # what announces a final answer: in GSM8K, and in LaTeX
_MOST_DIGITS = 1000  # a longer run of digits is no number that anybody means
_HEADING = re.compile(r"[.:)]\s*\S")  # behind the number of a heading
_FRACTION = r"\\[dt]?frac\{\s*(-?[0-9]+)\s*\}\{\s*([0-9]+)\s*\}"
_NUMBER = re.compile(
    r"""
    (?: (?<![\w)\]}]) (?P<minus>[-\u2212]) )?                   # behind a number or a bracket it subtracts
    (?: \\?[$€£¥]\s? (?P<inner>[-\u2212])? )?                   # $5, -$5, $-5
    (?<![^\W_]) (?<!\.)                                         # not inside a word, nor behind a point
    (?:
        (?: (?P<whole>[0-9]+)[ ] (?=[0-9]+/) )?                 # 2 1/2
        (?<!/) (?P<over>[0-9]+) / (?P<under>[0-9]+) (?! [/0-9] | \.[0-9] )   # no part of a date
      |
        (?P<digits> [0-9]{1,3} (?:,[0-9]{3})+ (?![0-9]) | [0-9]+ | (?=\.[0-9]) )
        (?P<decimals> \.[0-9]+ )?
        (?: [eE] (?P<exponent> [-+]?[0-9]{1,3} ) (?![0-9]) )?
    )
    """,
    re.VERBOSE,
)


def final_number(text: str) -> Fraction | None:
    r"""The number that a text gives as its answer; None where there is none.

    It is the one behind the last "####" that a number follows, as GSM8K writes its answers (a heading of Markdown, such
    as "#### 2. Add them up", is none); in texts without it, the last one in the last `\boxed{...}`; in texts without
    either, the last one at all. Read are signs, decimals, thousands
    separators (1,234.5), powers of ten (1.5e3), fractions (3/4, 2 1/2, `\frac{3}{4}`). Currencies and units, the
    percent sign among them, do not change a number: 50 % is 50.
    """
    return _last_number(_announced(_plain(text)))


def _plain(text: str) -> str:
    """The text without what LaTeX writes into numbers: `1{,}234`, `1\\,234`, `\\frac{3}{4}`."""
    text = re.sub(r"(?<=[0-9])(?:\{,\}|\\,|\\!)(?=[0-9]{3})", ",", text)
    return re.sub(_FRACTION, r"\1/\2", re.sub(r"(?<=[0-9])\s*" + _FRACTION, r" \1/\2", text))


def _announced(text: str) -> str:
    """The part of a text in which the answer stands."""
    for part in reversed(text.split(_MARK)[1:]):
        line = part.lstrip(" \t").partition("\n")[0]
        number = _NUMBER.match(line)
        if number and not _HEADING.match(line, number.end()):
            return number[0]
    if _BOX not in text:
        return text
    inside, depth = text.rpartition(_BOX)[2], 1
    for i, character in enumerate(inside):
        depth += (character == "{") - (character == "}")
        if not depth:
            return inside[:i]
    return inside


def _last_number(text: str) -> Fraction | None:
    found = None
    for match in _NUMBER.finditer(text):
        value = _value(match)
        found = found if value is None else value
    return found


def _value(match: re.Match[str]) -> Fraction | None:
    """The number that was found; None for one that is too long, and for a fraction of nothing."""
    if len(match[0]) > _MOST_DIGITS:
        return None
    if match["over"]:
        over, under = int(match["over"]), int(match["under"])
        if not under:
            return None
        value = Fraction(over, under) + int(match["whole"] or 0)
    else:
        digits = f"{match['digits'] or 0}{match['decimals'] or ''}".replace(",", "")
        value = Fraction(f"{digits}e{match['exponent'] or 0}")
    return -value if match["minus"] or match["inner"] else value
