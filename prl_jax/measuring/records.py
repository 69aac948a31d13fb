"""How many tokens the records of a source take, and which of them cannot be read. Imports no jax.

    measured = measure(records, tokenizer, template=JudgeTemplate("question-v1"))
    measured.longest("prompt"), measured.longest("response"), measured.longest("rejected")
    measured.judged.max()                               # the longest row of a judge on these very pairs
    measured.longest("frame") + 2 * max_response  # room for a judge's row with any two responses

Lengths are those before anything is cut. A record that is malformed, or whose conversation the chat template refuses,
has zeros and is one of the `problems`.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from prl_jax.data.gold import parse
from prl_jax.data.records import PreferenceRecord, PromptRecord, Record, SFTRecord, missing_value
from prl_jax.data.sources import Records
from prl_jax.errors import UserError, naming, quoted
from prl_jax.text.chat import Prompt, Turn, encode_conversation, encode_prompt, prompt_text
from prl_jax.text.judging import JudgeTemplate, encode_judge_row
from prl_jax.text.tokenizer import Tokenizer

COLUMNS = ("prompt", "response", "rejected", "frame", "kind", "unused", "problem")
PLAIN, TIE, IDENTICAL = range(3)  # kinds of pairs; a demonstration from a pair without a better response is a TIE
_REMEMBERED = 50_000_000  # characters of text whose lengths are kept, so that stages that read alike count once
_ANY_LENGTH = 2**30
_NAMED = 20  # keys that nothing reads


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of `N` records.

    Attributes:
      lengths: column -> `[N]` tokens; 0 where a record has no such text.
        prompt: the prompt in the chat template, with the opening of the assistant's turn.
        response: the response, the chosen response or the reference, with the token that ends it.
        rejected: the other response of a pair, with the token that ends it.
        frame: the row of a generative judge without its two responses; 0 without a judge template.
      kinds: `[N]` kinds of pairs: `PLAIN`, `TIE` or `IDENTICAL`; `PLAIN` of what is no pair. A demonstration that is
        not to be imitated (`SFTRecord.better`) is a `TIE`.
      unused: `[N]` numbers that stand for the keys of the row that nothing reads; 0 where all are read.
      problems: numbers of the records that cannot be read.
      reason: why the first of them cannot.
    """

    lengths: Mapping[str, Int[np.ndarray, "N"]]
    kinds: Int[np.ndarray, "N"]
    unused: Int[np.ndarray, "N"]
    problems: Sequence[int]
    reason: str = ""

    @classmethod
    def of(cls, rows: Int[np.ndarray, "N C"], reason: str) -> Measured:
        """Measurements of the numbers of each record in the order of `COLUMNS`."""
        columns = dict(zip(COLUMNS, rows.T, strict=True))
        problems, kinds = np.flatnonzero(columns.pop("problem")).tolist(), columns.pop("kind")
        unused = columns.pop("unused")
        return cls(columns, kinds, unused, problems, reason)

    @property
    def rows(self) -> Int[np.ndarray, "N C"]:
        """The numbers of each record in the order of `COLUMNS`."""
        problem = np.zeros_like(self.kinds)
        problem[list(self.problems)] = 1
        columns = {**self.lengths, "kind": self.kinds, "unused": self.unused, "problem": problem}
        return np.stack([columns[name] for name in COLUMNS], axis=1)

    def __len__(self) -> int:
        return len(self.kinds)

    def longest(self, column: str) -> int:
        """The largest number of a column, 0 for no records."""
        return int(self.lengths[column].max(initial=0))

    @property
    def scored(self) -> Int[np.ndarray, "N"]:
        """Tokens of the longer row of a scalar judge: the prompt and one response."""
        return self.lengths["prompt"] + np.maximum(self.lengths["response"], self.lengths["rejected"])

    @property
    def judged(self) -> Int[np.ndarray, "N"]:
        """Tokens of the judge's row, the same in both orders; a response that is not there counts nothing."""
        contents = [np.maximum(self.lengths[column] - 1, 0) for column in ("response", "rejected")]
        return self.lengths["frame"] + contents[0] + contents[1]


class Lengths:
    """Lengths of texts and prompts in the tokens of one tokenizer; those that it has seen are remembered."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._known: dict[tuple[Any, str | Prompt], int] = {}
        self._room = _REMEMBERED

    def text(self, text: str) -> int:
        return self._count("text", text, len(text), lambda: len(self.tokenizer.encode(text)))

    def prompt(self, prompt: Prompt) -> int:
        """In the chat template. Errors: `UserError` where that refuses the conversation."""
        return self._count("prompt", prompt, _characters(prompt), lambda: len(encode_prompt(self.tokenizer, prompt)))

    def frame(self, template: JudgeTemplate, prompt: Prompt) -> int:
        """The length of a judge's row without its responses."""

        def row() -> int:
            return len(encode_judge_row(self.tokenizer, template, prompt, "", "", max_length=_ANY_LENGTH).ids)

        return self._count(template, prompt, _characters(prompt), row)

    def _count(self, what: Any, text: str | Prompt, size: int, count: Callable[[], int]) -> int:
        number = self._known.get((what, text))
        if number is None:
            number = count()
            self._room -= size
            if self._room >= 0:
                self._known[what, text] = number
        return number


class Measurer(NamedTuple):
    """How one model reads records.

    Attributes:
      lengths: in the model's tokens; None only parses.
      template: of a generative judge; None counts no `frame`.
      train_on: see `encode_sft`; "all" also renders the earlier turns of the assistant as responses.
      gold: prompts have to be built-in tasks.
      chat: puts prompts into the chat template; False counts no `prompt`.
      answered: prompts have to carry a reference answer.
      needs: values that pairs have to carry (`missing_value`).
    """

    lengths: Lengths | None
    template: JudgeTemplate | None = None
    train_on: str = "last"
    gold: bool = False
    chat: bool = True
    answered: bool = False
    needs: tuple[str, ...] = ()

    def __call__(self, record: Record) -> tuple[int, ...]:
        """The numbers of `COLUMNS`. Errors: `UserError` for a conversation that the model cannot read."""
        texts, further = _responses(record), (_kind(record), _stand_for(record.unused), 0)
        if self.gold:
            parse(prompt_text(record.prompt))
        if self.answered and texts[0] is None:
            raise UserError(f"prompt {record.id!r} has no reference answer; use choice='best_of_n' or another source")
        for need in self.needs if isinstance(record, PreferenceRecord) else ():
            if lacks := missing_value(record, need):
                raise UserError(f"pair {record.id!r} has {lacks}")
        if self.lengths is None:  # only tells which texts there are
            return 0, int(texts[0] is not None), int(texts[1] is not None), 0, *further
        if self.train_on == "all" and isinstance(record, SFTRecord):
            encode_conversation(self.lengths.tokenizer, (*record.prompt, Turn("assistant", record.response)))
        responses = [0 if text is None else 1 + self.lengths.text(text) for text in texts]
        frame = 0 if self.template is None else self.lengths.frame(self.template, record.prompt)
        return self.lengths.prompt(record.prompt) if self.chat else 0, *responses, frame, *further


def measure(
    records: Records,
    tokenizer: Tokenizer | None,
    *,
    template: JudgeTemplate | None = None,
    train_on: str = "last",
    gold: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Reads all records of a source and measures them.

    Args:
      records: of one source; a malformed one raises `UserError` when it is asked for.
      tokenizer, template, train_on, gold: see `Measurer`.
      progress: told how many records are done.
    """
    lengths = None if tokenizer is None else Lengths(tokenizer)
    return measure_with(records, Measurer(lengths, template, train_on, gold=gold), progress)


def measure_with(records: Records, measurer: Measurer, progress: Callable[[int], None] = lambda done: None) -> Measured:
    """`measure`, as a measurer reads."""
    rows, reason = np.zeros((len(records), len(COLUMNS)), np.int32), ""
    for i in range(len(records)):
        try:
            rows[i] = look(records, i, measurer)
        except UserError as error:
            rows[i, -1], reason = 1, reason or str(error)
        progress(i + 1)
    return Measured.of(rows, reason)


def look(records: Records, i: int, measurer: Measurer) -> tuple[int, ...]:
    """The numbers of one record. Errors: `UserError`, which names its place, where it cannot be read."""
    record = records[i]  # a malformed one says where
    with naming(records.place(i)):
        return measurer(record)


def invalid_rows(
    measured: Sequence[Measured], allowed: int, flag: str = "--config.skip_invalid"
) -> tuple[list[int], str]:
    """Numbers of the records that one reader or another cannot read, and a line that says so.

    Args:
      measured: the same records, as each reader sees them.
      allowed: how many may be left out.
      flag: sets that number.

    Raises:
      UserError: for more.
    """
    bad = sorted({i for numbers in measured for i in numbers.problems})
    if not bad:
        return [], ""
    reason = next(numbers.reason for numbers in measured if numbers.problems and numbers.problems[0] == bad[0])
    count = len(measured[0])
    if len(bad) > allowed:
        more = f"; {len(bad)} of {count} rows cannot be read" if len(bad) > 1 else ""
        raise UserError(f"{reason}{more}; mend this, or leave it out with {flag}={len(bad)}")
    return bad, f"{len(bad)} of {count} rows left out, the first: {reason}"


def unused_keys(records: Records, measured: Measured) -> dict[str, int]:
    """The keys of rows that nothing reads, with the number of rows that have each."""
    rows: Counter[str] = Counter()
    found = np.unique(measured.unused, return_index=True, return_counts=True)
    for number, first, count in zip(*found, strict=True):
        if number:
            rows.update(dict.fromkeys(records[int(first)].unused, int(count)))
    return dict(rows.most_common())


def unused_line(keys: Mapping[str, int], total: int) -> str:
    """Names keys that nothing reads in one line, "" where there are none; `total` is the number of rows."""
    named = [f"{quoted(key)} (in {count} of {total} rows)" for key, count in list(keys.items())[:_NAMED]]
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"nothing reads {', '.join(named)}{more}" if named else ""


def valid_records(
    records: Records,
    tokenizer: Tokenizer | None,
    *,
    allowed: int,
    template: JudgeTemplate | None = None,
    flag: str = "--config.skip_invalid",
) -> tuple[Records, str]:
    """The records that a model can read, and a line about the others and about keys that nothing reads, "" where there
    are none.

    Args:
      records: of one source.
      tokenizer, template: see `Measurer`.
      allowed, flag: see `invalid_rows`.

    Raises:
      UserError: more than `allowed` cannot be read, or none is left.
    """
    measured = measure(records, tokenizer, template=template)
    bad, line = invalid_rows([measured], allowed, flag)
    if bad and len(bad) == len(records):
        raise UserError(f"no row is left: {line}")
    line = "; ".join(filter(None, (line, unused_line(unused_keys(records, measured), len(records)))))
    return (records.take(np.delete(np.arange(len(records)), bad)) if bad else records), line


def _stand_for(keys: Sequence[str]) -> int:
    """A positive number for a list of keys, 0 for none."""
    return zlib.crc32("\n".join(keys).encode("utf-8", "surrogatepass")) % (2**31 - 1) + 1 if keys else 0


def _characters(prompt: Prompt) -> int:
    return sum(len(turn.content) for turn in prompt)


def _responses(record: Record) -> tuple[str | None, str | None]:
    if isinstance(record, PreferenceRecord):
        return record.chosen, record.rejected
    if isinstance(record, PromptRecord):
        return record.reference, None
    return record.response, None


def _kind(record: Record) -> int:
    if isinstance(record, SFTRecord):
        return PLAIN if record.better else TIE
    if not isinstance(record, PreferenceRecord):
        return PLAIN
    return IDENTICAL if record.chosen == record.rejected else TIE if record.tie else PLAIN
