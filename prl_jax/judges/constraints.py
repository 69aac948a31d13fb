"""Constraints on the form of a response that a program can check, by the names and arguments of IFEval.

Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models" (arXiv 2311.07911), and the
checks published with it. They are followed but for what needs a library of languages: words are runs of letters and
digits, sentences end with a stop before white space, and the two constraints on letter case leave the language alone.
Keywords are literal texts. `language:response_language` is not here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from prl_jax.errors import UserError, quoted

_RELATIONS = ("less than", "at least")
_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ABBREVIATIONS = frozenset("mr mrs ms dr prof st jr sr vs etc e.g i.e".split())
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)")
_POSTSCRIPTS = {"p.s.": r"p\.\s?s\.", "p.p.s": r"p\.\s?p\.\s?s"}


class Argument(NamedTuple):
    """An argument of a constraint: what is expected, in words, and whether a value is that."""

    expected: str
    fits: Callable[[Any], bool]


class Constraint(NamedTuple):
    """One constraint on a response: its name, a key of `CONSTRAINTS`, and its arguments, lists as tuples."""

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()

    def keeps(self, response: str) -> bool:
        """Whether a response keeps it."""
        return CONSTRAINTS[self.name][0](response, **dict(self.arguments))


def read_constraint(name: Any, arguments: Any) -> Constraint:
    """A constraint as IFEval's files have it, arguments that are null left out.

    Raises:
      UserError: there is no such constraint, or an argument is missing, unknown or of the wrong type.
    """
    if not isinstance(name, str) or name not in CONSTRAINTS:
        count = len(CONSTRAINTS)
        raise UserError(f"constraint {quoted(str(name))} is none of the {count} that are checked; leave the row out")
    _, declared = CONSTRAINTS[name]
    if not isinstance(arguments, Mapping):
        raise UserError(f"{name}: its arguments are {type(arguments).__name__}, expected an object in kwargs")
    given = {key: _plain(value) for key, value in arguments.items() if value is not None}
    for key in (*declared, *given):
        if key not in declared:
            raise UserError(f"{name}: no argument {quoted(str(key))}; known: {', '.join(declared) or 'it has none'}")
        if key not in given or not declared[key].fits(given[key]):
            what = repr(given[key])[:60] if key in given else "missing"
            raise UserError(f"{name}: {key} is {what}, expected {declared[key].expected}")
    return Constraint(name, tuple(sorted(given.items())))


def _plain(value: Any) -> Any:
    """A value whose lists are tuples, and whose whole numbers are written without a point."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _compares(count: int, relation: str, threshold: int) -> bool:
    return count < threshold if relation == _RELATIONS[0] else count >= threshold


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _sentences(text: str) -> int:
    """How many sentences a text has; what follows the last stop is one too."""
    count, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        last = text[start : end.start()].split()[-1:]
        word = last[0].lstrip("(\"'“‘").lower() if last else ""
        short = end[0] == "." and (word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha() and word != "i"))
        if not short:
            count, start = count + 1, end.end()
    return count + bool(text[start:].strip())


def _parts(text: str, separator: str) -> list[str] | None:
    """The parts of a text, bare of white space. Its first and last may be empty, and are left out; None where another
    one is."""
    parts = [part.strip() for part in text.split(separator)]
    kept = [part for i, part in enumerate(parts) if part or 0 < i < len(parts) - 1]
    return kept if all(kept) else None


def _keywords(text: str, keywords: tuple[str, ...]) -> bool:
    return all(keyword.lower() in text.lower() for keyword in keywords)


def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compares(text.lower().count(keyword.lower()), relation, frequency)


def _forbidden(text: str, forbidden_words: tuple[str, ...]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def _letters(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compares(text.lower().count(letter.lower()), let_relation, let_frequency)


def _number_words(text: str, num_words: int, relation: str) -> bool:
    return _compares(len(_words(text)), relation, num_words)


def _number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _compares(_sentences(text), relation, num_sentences)


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    parts = _parts(text, "***")
    return parts is not None and len(parts) == num_paragraphs


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]*\]", text)) >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.lower()
    return re.search(_POSTSCRIPTS.get(marker, re.escape(marker)), text.lower()) is not None


def _bullets(text: str, num_bullets: int) -> bool:
    lines = [line.strip() for line in text.splitlines()]
    return sum(line[:1] == "-" or (line[:1] == "*" and line[1:2] not in ("", "*")) for line in lines) == num_bullets


def _highlights(text: str, num_highlights: int) -> bool:
    single, double = re.findall(r"\*[^\n*]*\*", text), re.findall(r"\*\*[^\n*]*\*\*", text)
    return sum(bool(part.strip("*").strip()) for part in single + double) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(re.escape(section_spliter) + r"\s?\d+", text)) >= num_sections


def _json(text: str) -> bool:
    text = re.sub(r"^```(?:json)?", "", text.strip(), flags=re.IGNORECASE).removesuffix("```")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    return any(line.partition("<<")[2].rpartition(">>")[0].strip("<> \t") for line in text.splitlines())


def _two_responses(text: str) -> bool:
    parts = _parts(text, "******")
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    words = re.findall(r"\w[\w'’-]*", text)  # a hyphen joins
    return _compares(sum(word.isupper() for word in words), capital_relation, capital_frequency)


_COUNT = Argument("a whole number", lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 0)
_PLACE = Argument("a whole number from 1", lambda x: _COUNT.fits(x) and x > 0)
_TEXT = Argument("a text", lambda x: isinstance(x, str) and bool(x.strip()))
_TEXTS = Argument("a list of texts", lambda x: isinstance(x, tuple) and bool(x) and all(map(_TEXT.fits, x)))
_LETTER = Argument("one character", lambda x: isinstance(x, str) and len(x) == 1)
_RELATION = Argument(" or ".join(map(repr, _RELATIONS)), lambda x: x in _RELATIONS)

CONSTRAINTS: Mapping[str, tuple[Callable[..., bool], Mapping[str, Argument]]] = MappingProxyType(
    {
        "keywords:existence": (_keywords, {"keywords": _TEXTS}),
        "keywords:frequency": (_frequency, {"keyword": _TEXT, "frequency": _COUNT, "relation": _RELATION}),
        "keywords:forbidden_words": (_forbidden, {"forbidden_words": _TEXTS}),
        "keywords:letter_frequency": (
            _letters,
            {"letter": _LETTER, "let_frequency": _COUNT, "let_relation": _RELATION},
        ),
        "length_constraints:number_sentences": (_number_sentences, {"num_sentences": _COUNT, "relation": _RELATION}),
        "length_constraints:number_paragraphs": (_paragraphs, {"num_paragraphs": _COUNT}),
        "length_constraints:number_words": (_number_words, {"num_words": _COUNT, "relation": _RELATION}),
        "length_constraints:nth_paragraph_first_word": (
            _first_word,
            {"num_paragraphs": _COUNT, "nth_paragraph": _PLACE, "first_word": _TEXT},
        ),
        "detectable_content:number_placeholders": (_placeholders, {"num_placeholders": _COUNT}),
        "detectable_content:postscript": (_postscript, {"postscript_marker": _TEXT}),
        "detectable_format:number_bullet_lists": (_bullets, {"num_bullets": _COUNT}),
        "detectable_format:constrained_response": (lambda text: any(choice in text for choice in _CHOICES), {}),
        "detectable_format:number_highlighted_sections": (_highlights, {"num_highlights": _COUNT}),
        "detectable_format:multiple_sections": (_sections, {"section_spliter": _TEXT, "num_sections": _COUNT}),
        "detectable_format:json_format": (_json, {}),
        "detectable_format:title": (_title, {}),
        "combination:two_responses": (_two_responses, {}),
        "combination:repeat_prompt": (
            lambda text, prompt_to_repeat: text.strip().lower().startswith(prompt_to_repeat.strip().lower()),
            {"prompt_to_repeat": _TEXT},
        ),
        "startend:end_checker": (
            lambda text, end_phrase: text.strip().strip('"').lower().endswith(end_phrase.strip().lower()),
            {"end_phrase": _TEXT},
        ),
        "change_case:capital_word_frequency": (
            _capital_words,
            {"capital_frequency": _COUNT, "capital_relation": _RELATION},
        ),
        "change_case:english_capital": (str.isupper, {}),
        "change_case:english_lowercase": (str.islower, {}),
        "punctuation:no_comma": (lambda text: "," not in text, {}),
        "startend:quotation": (
            lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
            {},
        ),
    }
)
"""Name -> whether a response keeps it, given its arguments as keywords; and these arguments."""
