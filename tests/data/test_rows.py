"""Encoders: shapes, masks from lengths, what is cut and what is never cut."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from chat_families import FAMILIES, write_tokenizer

from prl_jax.data.records import PreferenceRecord, SFTRecord
from prl_jax.data.rows import (
    encode_generative_pair,
    encode_scalar_pair,
    encode_sft,
    stack_rows,
    token_row,
)
from prl_jax.text.chat import Turn, encode_conversation, encode_prompt, encode_response, fit_turns
from prl_jax.text.huggingface import HFTokenizer
from prl_jax.text.judging import JudgeTemplate, encode_judge_row
from prl_jax.text.tokenizer import ByteTokenizer
from prl_jax.types import TokenRows

PROMPT = (Turn("user", "sort cab"),)  # <user> 8 bytes <eos> <assistant>: 11 tokens
DEMO = SFTRecord("1", PROMPT, "abc")
PAIR = PreferenceRecord("1", PROMPT, "abc", "cbazz")


class PadIsEos(ByteTokenizer):
    """Like many real tokenizers: one id fills rows and ends responses."""

    def __init__(self) -> None:
        super().__init__()
        self.pad_id = self.eos_id


TOKENIZERS = [ByteTokenizer(), PadIsEos()]


def valid(row: TokenRows) -> list[int]:
    return [int(t) for t, s in zip(row.tokens, row.segments, strict=True) if s]


def test_token_row_on_either_side() -> None:
    right = token_row([7, 8, 9], 5, pad_id=0)
    assert (right.tokens.tolist(), right.positions.tolist(), right.segments.tolist()) == (
        [7, 8, 9, 0, 0],
        [0, 1, 2, 0, 0],
        [1, 1, 1, 0, 0],
    )
    left = token_row([7, 8, 9], 5, pad_id=0, side="left")
    assert (left.tokens.tolist(), left.positions.tolist(), left.segments.tolist()) == (
        [0, 0, 7, 8, 9],
        [0, 0, 0, 1, 2],
        [0, 0, 1, 1, 1],
    )
    assert token_row([7, 8], 2, pad_id=0, positions=[4, 4]).positions.tolist() == [4, 4]
    assert {array.dtype for array in right} == {np.dtype(np.int32)}
    with pytest.raises(ValueError, match="3 tokens, expected at most 2"):
        token_row([7, 8, 9], 2, pad_id=0)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_sft_targets_are_the_next_tokens_of_the_response_with_its_end(tokenizer: ByteTokenizer) -> None:
    row, truncated = encode_sft(tokenizer, DEMO, max_prompt=16, max_response=8)
    prompt = encode_prompt(tokenizer, PROMPT)
    assert not truncated
    assert row.rows.tokens.shape == row.targets.shape == row.mask.shape == (24,)
    assert valid(row.rows) == [*prompt, *b"abc", tokenizer.eos_id]
    # the end-of-response token counts, although it may be the pad token as well; nothing else of it does
    assert row.targets[row.mask].tolist() == [*b"abc", tokenizer.eos_id]
    assert np.flatnonzero(row.mask).tolist() == [10, 11, 12, 13]
    assert (row.targets[:23][row.rows.segments[1:] == 1] == row.rows.tokens[1:][row.rows.segments[1:] == 1]).all()
    assert row.mask.dtype == bool and row.targets.dtype == np.int32
    assert row.rows.positions[:15].tolist() == list(range(15))


def test_sft_row_that_fits_exactly() -> None:
    row, truncated = encode_sft(ByteTokenizer(), DEMO, max_prompt=11, max_response=4)
    assert not truncated and row.rows.segments.all()
    assert row.mask.tolist() == [False] * 10 + [True] * 4 + [False]  # the last token has no target


def test_sft_cut_response_does_not_end() -> None:
    tokenizer = ByteTokenizer()
    row, truncated = encode_sft(tokenizer, DEMO, max_prompt=11, max_response=3)
    assert truncated
    assert row.targets[row.mask].tolist() == [*b"abc"]
    row, truncated = encode_sft(tokenizer, DEMO, max_prompt=11, max_response=2)
    assert truncated and row.targets[row.mask].tolist() == [*b"ab"]


def test_sft_prompt_is_cut_on_the_left() -> None:
    tokenizer = ByteTokenizer()
    row, truncated = encode_sft(tokenizer, DEMO, max_prompt=5, max_response=8)
    assert truncated and row.rows.tokens.shape == (13,)
    opening, *content, end, answer = encode_prompt(tokenizer, PROMPT)
    assert valid(row.rows) == [opening, *content[-2:], end, answer, *b"abc", tokenizer.eos_id]
    assert row.targets[row.mask].tolist() == [*b"abc", tokenizer.eos_id]


TALK = SFTRecord("1", (*PROMPT, Turn("assistant", "abc"), Turn("user", "and ed")), "de")


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_sft_on_every_turn_of_the_assistant(tokenizer: ByteTokenizer) -> None:
    row, truncated = encode_sft(tokenizer, TALK, max_prompt=30, max_response=8, train_on="all")
    last, _ = encode_sft(tokenizer, TALK, max_prompt=30, max_response=8)
    eos = tokenizer.eos_id
    assert not truncated and row.targets[row.mask].tolist() == [*b"abc", eos, *b"de", eos]
    # the same row; its first targets are predicted from the end of the first prompt on
    jax.tree.map(np.testing.assert_array_equal, (row.rows, row.targets), (last.rows, last.targets))
    assert last.targets[last.mask].tolist() == [*b"de", eos]
    assert np.flatnonzero(row.mask & ~last.mask).tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_sft_with_one_answer_is_the_same_on_every_turn(tokenizer: ByteTokenizer) -> None:
    every, last = (encode_sft(tokenizer, DEMO, max_prompt=9, max_response=3, train_on=on) for on in ("all", "last"))
    jax.tree.map(np.testing.assert_array_equal, every, last)
    with pytest.raises(ValueError, match="train_on='first', expected one of"):
        encode_sft(tokenizer, DEMO, max_prompt=9, max_response=3, train_on="first")


@pytest.mark.parametrize("tokenizer", [*TOKENIZERS, "mistral", "qwen3"])
def test_sft_masks_under_truncation(tokenizer: ByteTokenizer | str, tmp_path: Path) -> None:
    """However much is cut, a target is what it was in the whole row."""
    if isinstance(tokenizer, str):
        tokenizer = HFTokenizer(write_tokenizer(tmp_path, FAMILIES[tokenizer]))
    response = encode_response(tokenizer, TALK.response)
    whole = len(encode_prompt(tokenizer, TALK.prompt))
    for room in (whole + 1, whole, whole - 1, whole - 3, len(encode_prompt(tokenizer, (Turn("user", ""),)))):
        prompt, cut = fit_turns(tokenizer, TALK.prompt, room)
        ids, taught = encode_conversation(tokenizer, (*prompt, Turn("assistant", TALK.response)), context=cut)
        for most in range(1, len(response) + 2):
            row, truncated = encode_sft(tokenizer, TALK, max_prompt=room, max_response=most, train_on="all")
            n = min(len(ids), len(ids) - len(response) + most)
            assert valid(row.rows) == ids[:n] and row.mask.shape == (room + most,)
            assert truncated == (room < whole or most < len(response))
            assert row.mask.tolist() == [*taught[1:n], *[False] * (room + most - n + 1)]
            assert row.targets[: n - 1].tolist() == ids[1:n]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_scalar_pair_ends_in_the_end_of_response(tokenizer: ByteTokenizer) -> None:
    prompt = encode_prompt(tokenizer, PROMPT)
    batch, truncated = encode_scalar_pair(tokenizer, PAIR, max_prompt=16, max_response=8)
    assert not truncated
    assert valid(batch.response_1) == [*prompt, *b"abc", tokenizer.eos_id]
    assert valid(batch.response_2) == [*prompt, *b"cbazz", tokenizer.eos_id]
    assert batch.response_1.tokens.shape == batch.response_2.tokens.shape == (24,)
    assert (batch.label, batch.weight) == (1.0, 1.0)
    assert batch.label.dtype == batch.weight.dtype == np.float32 and batch.label.shape == ()

    batch, truncated = encode_scalar_pair(tokenizer, PAIR, max_prompt=5, max_response=4)
    assert truncated
    prompt = [prompt[0], *prompt[-4:]]
    assert valid(batch.response_1) == [*prompt, *b"abc", tokenizer.eos_id]
    assert valid(batch.response_2) == [*prompt, *b"cba", tokenizer.eos_id]
    assert not encode_scalar_pair(tokenizer, PAIR, max_prompt=11, max_response=6)[1]
    assert encode_scalar_pair(tokenizer, PAIR, max_prompt=11, max_response=5)[1]
    assert encode_scalar_pair(tokenizer, PAIR, max_prompt=10, max_response=6)[1]


def test_scalar_rows_depend_on_their_own_response_alone() -> None:
    tokenizer = ByteTokenizer()
    first = encode_scalar_pair(tokenizer, PAIR, max_prompt=16, max_response=8)[0]
    other = encode_scalar_pair(tokenizer, replace(PAIR, rejected="q"), max_prompt=16, max_response=8)[0]
    np.testing.assert_array_equal(first.response_1.tokens, other.response_1.tokens)
    longer = encode_scalar_pair(tokenizer, PAIR, max_prompt=16, max_response=32)[0]
    assert valid(longer.response_1) == valid(first.response_1)


def test_labels_of_ties() -> None:
    tie = replace(PAIR, tie=True, p_chosen=0.6)
    assert encode_scalar_pair(ByteTokenizer(), tie, max_prompt=16, max_response=8)[0].label == 0.5
    assert encode_generative_pair(ByteTokenizer(), JudgeTemplate(), tie, max_length=32)[0].label == 0.5


@pytest.mark.parametrize("shared", [False, True])
def test_generative_pair_holds_both_orders(shared: bool) -> None:
    tokenizer, template = ByteTokenizer(), JudgeTemplate(shared_positions=shared)
    batch, truncated = encode_generative_pair(tokenizer, template, PAIR, max_length=32)
    assert not truncated
    for row, (one, two) in ((batch.order_12, ("abc", "cbazz")), (batch.order_21, ("cbazz", "abc"))):
        expected = encode_judge_row(tokenizer, template, PROMPT, one, two, max_length=32)
        assert valid(row) == expected.ids
        assert row.positions[: len(expected.ids)].tolist() == expected.positions
        assert row.tokens.shape == (32,)
    swapped = replace(PAIR, chosen=PAIR.rejected, rejected=PAIR.chosen)
    other, _ = encode_generative_pair(tokenizer, template, swapped, max_length=32)
    np.testing.assert_array_equal(other.order_12.tokens, batch.order_21.tokens)
    np.testing.assert_array_equal(other.order_21.tokens, batch.order_12.tokens)


def test_generative_pair_that_is_too_long() -> None:
    tokenizer = ByteTokenizer()
    batch, truncated = encode_generative_pair(tokenizer, JudgeTemplate(), PAIR, max_length=16)
    assert truncated and batch.order_12.segments.all() and batch.order_21.segments.all()
    assert batch.order_12.tokens[-1] == batch.order_21.tokens[-1] == tokenizer.special("verdict")


def test_stack_rows() -> None:
    tokenizer = ByteTokenizer()
    rows = [encode_scalar_pair(tokenizer, PAIR, max_prompt=16, max_response=8)[0]] * 3
    batch = stack_rows(rows)
    assert type(batch) is type(rows[0]) and type(batch.response_1) is TokenRows
    assert batch.label.shape == (3,) and batch.response_1.tokens.shape == (3, 24)
    for stacked, single in zip(jax.tree.leaves(batch), jax.tree.leaves(rows[0]), strict=True):
        assert isinstance(stacked, np.ndarray) and stacked.dtype == single.dtype
        np.testing.assert_array_equal(stacked[1], single)
    with pytest.raises(ValueError, match="no rows"):
        stack_rows([])
    with pytest.raises(ValueError):
        stack_rows([token_row([1], 2, pad_id=0), token_row([1], 3, pad_id=0)])
