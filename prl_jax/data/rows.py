"""Records as numpy rows of one static length.

Each encoder gives one row (no batch axis) of a type in `prl_jax.types` and tells whether something was cut off;
`stack_rows` makes the batch. Masks and segments come from lengths, never from comparing tokens with the pad token.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from prl_jax.data.records import PreferenceRecord, SFTRecord
from prl_jax.text.chat import Prompt, Turn, encode_conversation, encode_prompt, encode_response, fit_prompt, fit_turns
from prl_jax.text.judging import JudgeRow, JudgeTemplate, encode_judge_row
from prl_jax.text.padding import pad_rows
from prl_jax.text.tokenizer import Tokenizer
from prl_jax.types import ComparedPairs, ScoredPairs, SFTBatch, TokenRows

TRAIN_ON = ("last", "all")  # the response alone, or every turn of the assistant


def token_row(
    ids: Sequence[int], length: int, *, pad_id: int, positions: Sequence[int] | None = None, side: str = "right"
) -> TokenRows:
    """One padded row: `[length]` int32 arrays; `side` ("right" or "left") is where the padding goes.

    Raises:
      ValueError: when the ids do not fit.
    """
    rows = pad_rows([ids], length, pad_id=pad_id, positions=None if positions is None else [positions], side=side)
    return TokenRows(*(array[0] for array in rows))


def encode_sft(
    tokenizer: Tokenizer, record: SFTRecord, *, max_prompt: int, max_response: int, train_on: str = "last"
) -> tuple[SFTBatch, bool]:
    """A demonstration as one row of `max_prompt + max_response` tokens, and whether anything was cut.

    The contents of a long prompt lose their beginning (`fit_turns`); a long response loses its right end,
    end-of-response token included, so that nothing teaches the model to stop there. The mask marks targets that are
    response tokens, that token included; with `train_on="all"` those of the assistant's turns in the prompt as well
    (`encode_conversation` says which), but for turns that were cut.
    """
    if train_on not in TRAIN_ON:
        raise ValueError(f"train_on={train_on!r}, expected one of {TRAIN_ON}")
    response = encode_response(tokenizer, record.response)
    prompt, cut = fit_turns(tokenizer, record.prompt, max_prompt)
    if train_on == "all":
        ids, taught = encode_conversation(tokenizer, (*prompt, Turn("assistant", record.response)), context=cut)
    else:
        ids = encode_prompt(tokenizer, prompt) + response
        taught = [False] * (len(ids) - len(response)) + [True] * len(response)
    truncated = cut > 0 or len(response) > max_response
    kept = len(ids) - len(response) + max_response
    ids, taught = ids[:kept], taught[:kept]
    length = max_prompt + max_response
    targets = np.full((length,), tokenizer.pad_id, np.int32)
    targets[: len(ids) - 1] = ids[1:]
    mask = np.zeros((length,), bool)
    mask[: len(ids) - 1] = taught[1:]
    return SFTBatch(token_row(ids, length, pad_id=tokenizer.pad_id), targets, mask), truncated


def encode_responses(
    tokenizer: Tokenizer, prompt: Prompt, responses: Sequence[str], *, max_prompt: int, max_response: int
) -> tuple[list[SFTBatch], bool]:
    """Responses behind one prompt, each as a row of `encode_sft`, and whether anything was cut."""
    room = dict(max_prompt=max_prompt, max_response=max_response)
    rows = [encode_sft(tokenizer, SFTRecord("", prompt, text), **room) for text in responses]
    return [row for row, _ in rows], any(cut for _, cut in rows)


def encode_scalar_pair(
    tokenizer: Tokenizer, record: PreferenceRecord, *, max_prompt: int, max_response: int
) -> tuple[ScoredPairs, bool]:
    """A pair for a scalar reward model: one row a response, right-padded to `max_prompt + max_response`, and whether
    anything was cut.

    The last valid token of each row is the end-of-response token, of a cut response too: the score is read there.
    """
    prompt, truncated = fit_prompt(tokenizer, record.prompt, max_prompt)
    rows = []
    for text in (record.chosen, record.rejected):
        content = tokenizer.encode(text)
        truncated = truncated or len(content) > max_response - 1
        ids = [*prompt, *content[: max_response - 1], tokenizer.eos_id]
        rows.append(token_row(ids, max_prompt + max_response, pad_id=tokenizer.pad_id))
    return ScoredPairs(*rows, *_label(record)), truncated


def encode_generative_pair(
    tokenizer: Tokenizer, template: JudgeTemplate, record: PreferenceRecord, *, max_length: int
) -> tuple[ComparedPairs, bool]:
    """A pair for a generative judge: both orders, the chosen response in the first slot and in the second one,
    right-padded to `max_length`, and whether anything was cut."""

    def order(one: str, two: str) -> JudgeRow:
        return encode_judge_row(tokenizer, template, record.prompt, one, two, max_length=max_length)

    judged = (order(record.chosen, record.rejected), order(record.rejected, record.chosen))
    rows = [token_row(row.ids, max_length, pad_id=tokenizer.pad_id, positions=row.positions) for row in judged]
    return ComparedPairs(*rows, *_label(record)), any(row.truncated for row in judged)


def stack_rows(rows: Sequence[Any]) -> Any:
    """Rows of one structure (any pytree of arrays) as one batch with a leading axis.

    Raises:
      ValueError: for no rows at all, or rows of different structures or shapes.
    """
    if not rows:
        raise ValueError("no rows to stack")
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def _label(record: PreferenceRecord) -> tuple[np.ndarray, np.ndarray]:
    """Returns label and weight of a pair whose response 1 is the chosen one."""
    return np.asarray(record.label, np.float32), np.asarray(1.0, np.float32)
