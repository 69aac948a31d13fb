"""How many tokens the records of a source take, and which of them cannot be read. Imports no jax.

    measured = measure(records, tokenizer, template=JudgeTemplate("question-v1"))
    measured.longest("prompt"), measured.longest("response"), measured.longest("rejected")
    measured.judged.max()                               # the longest row of a judge on these very pairs
    measured.longest("frame") + 2 * (max_response - 1)  # room for a judge's row with any two responses

Lengths are those before anything is cut. A record that is malformed, or whose conversation the chat template refuses,
has zeros and stands in `problems`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Int

from prl_jax.data.records import PreferenceRecord, PromptRecord, Record, SFTRecord
from prl_jax.data.sources import Records
from prl_jax.errors import UserError, naming
from prl_jax.text.chat import Prompt, Turn, encode_conversation, encode_prompt
from prl_jax.text.judging import JudgeTemplate, encode_judge_row
from prl_jax.text.tokenizer import Tokenizer

COLUMNS = ("prompt", "response", "rejected", "frame")
_REMEMBERED = 50_000_000  # characters of text whose lengths are kept, so that stages that read alike count once
_ANY_LENGTH = 2**30


@dataclasses.dataclass(frozen=True)
class Measured:
    """Tokens of `N` records.

    Attributes:
      lengths: column -> `[N]` tokens; 0 where a record has no such text.
        prompt: the prompt in the chat template, with the opening of the assistant's turn.
        response: the response, the chosen response or the reference, with the token that ends it.
        rejected: the other response of a pair, with the token that ends it.
        frame: the row of a generative judge without its two responses; 0 without a judge template.
      problems: number of a record -> why it cannot be read.
    """

    lengths: Mapping[str, Int[np.ndarray, "N"]]
    problems: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.lengths["prompt"])

    def longest(self, column: str) -> int:
        """The largest number of a column, 0 for no records."""
        return int(self.lengths[column].max(initial=0))

    @property
    def judged(self) -> Int[np.ndarray, "N"]:
        """Tokens of the judge's row, the same in both orders; a response that is not there counts nothing."""
        contents = [np.maximum(self.lengths[column] - 1, 0) for column in ("response", "rejected")]
        return self.lengths["frame"] + contents[0] + contents[1]


class Measurer:
    """Measures records for one tokenizer, and remembers the lengths of texts that it has seen.

    Args:
      tokenizer: of the model that reads.
      template: of a generative judge; None counts no `frame`.
      train_on: see `encode_sft`.
    """

    def __init__(self, tokenizer: Tokenizer, template: JudgeTemplate | None = None, train_on: str = "last"):
        self._tokenizer, self._template, self._train_on = tokenizer, template, train_on
        self._known: dict[tuple[str, str | Prompt], int] = {}
        self._room = _REMEMBERED

    def __call__(self, record: Record) -> tuple[int, int, int, int]:
        """The numbers of `COLUMNS`. Errors: `UserError` where the chat template refuses the conversation."""
        prompt, tokenizer = record.prompt, self._tokenizer
        asked = self._count("prompt", prompt, lambda: len(encode_prompt(tokenizer, prompt)))
        texts = _responses(record)
        if self._train_on == "all" and isinstance(record, SFTRecord):
            encode_conversation(tokenizer, (*prompt, Turn("assistant", record.response)))
        response, rejected = (
            0 if text is None else 1 + self._count("text", text, lambda text=text: len(tokenizer.encode(text)))
            for text in texts
        )
        template, frame = self._template, 0
        if template is not None:
            empty = lambda: encode_judge_row(tokenizer, template, prompt, "", "", max_length=_ANY_LENGTH)  # noqa: E731
            frame = self._count("frame", prompt, lambda: len(empty().ids))
        return asked, response, rejected, frame

    def _count(self, what: str, text: str | Prompt, count: Callable[[], int]) -> int:
        key = (what, text)
        if key not in self._known:
            size = len(text) if isinstance(text, str) else sum(len(turn.content) for turn in text)
            number, self._room = count(), self._room - size
            if self._room < 0:
                return number
            self._known[key] = number
        return self._known[key]


def measure(
    records: Records,
    tokenizer: Tokenizer,
    *,
    template: JudgeTemplate | None = None,
    train_on: str = "last",
    shown: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Reads all records and measures them.

    Args:
      records: of one source; a malformed one raises `UserError` when it is asked for.
      tokenizer: of the model that reads them.
      template: of a generative judge, for the column `frame`.
      train_on: see `encode_sft`; "all" also renders the earlier turns of the assistant as responses.
      shown: told how many records are done.
    """
    measurer = Measurer(tokenizer, template, train_on)
    lengths, problems = np.zeros((len(records), len(COLUMNS)), np.int32), {}
    for i in range(len(records)):
        try:
            record = records[i]  # a malformed one names its place
            with naming(records.place(i)):
                lengths[i] = measurer(record)
        except UserError as error:
            problems[i] = str(error)
        shown(i + 1)
    return Measured({name: lengths[:, i] for i, name in enumerate(COLUMNS)}, problems)


def _responses(record: Record) -> tuple[str | None, str | None]:
    if isinstance(record, PreferenceRecord):
        return record.chosen, record.rejected
    if isinstance(record, PromptRecord):
        return record.reference, None
    return record.response, None
