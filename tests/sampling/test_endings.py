"""How responses end: texts that stop them, and the reasons that are counted."""

import random

import numpy as np
import pytest
from fakes import LetterTokenizer

from prl_jax.sampling import SamplingConfig, StopReason, read_responses, reason_shares, stop_reasons
from prl_jax.text.tokenizer import ByteTokenizer
from prl_jax.types import Rollout

LETTERS, BYTES = LetterTokenizer(), ByteTokenizer()


def rolled(tokenizer, rows: list[list[int]], room: int) -> Rollout:
    """Responses of these ids; those that do not end with the stop token are truncated."""
    mask = np.arange(room) < np.array(list(map(len, rows)))[:, None]
    response = np.full(mask.shape, tokenizer.pad_id, np.int32)
    response[mask] = np.concatenate(rows)
    logp = np.where(mask, -0.5 - np.arange(room), 0.0).astype(np.float32)
    empty = np.zeros((len(rows), 1), np.int32)
    return Rollout(empty, empty > 0, response, mask, logp, np.array([row[-1] != tokenizer.eos_id for row in rows]))


def config(tokenizer, room: int, **values) -> SamplingConfig:
    return SamplingConfig(room, (tokenizer.eos_id,), tokenizer.pad_id, **values)


def test_a_stop_string_ends_a_response_with_the_token_that_completes_it():
    """It spans two tokens. The prefix keeps its log-probs, what is behind is padding, and nothing was truncated."""
    rows = [LETTERS.encode("abcde"), LETTERS.encode("bcb"), [*LETTERS.encode("bd"), LETTERS.eos_id]]
    before = rolled(LETTERS, rows, 5)
    asks = config(LETTERS, 5, stop=("bc",))
    texts, after = read_responses(LETTERS, before, asks)
    assert texts == ["a", "", "bd"]
    assert after.mask.sum(1).tolist() == [3, 2, 3]
    assert after.truncated.tolist() == [False, False, False] and before.truncated.tolist() == [True, True, False]
    for name in ("response", "mask", "logp"):
        assert getattr(after, name).dtype == getattr(before, name).dtype
    np.testing.assert_array_equal(after.logp, np.where(after.mask, before.logp, 0))
    np.testing.assert_array_equal(after.response, np.where(after.mask, before.response, LETTERS.pad_id))
    stop, string, token = StopReason.STOP_STRING, StopReason.STOP_STRING, StopReason.STOP_TOKEN
    assert stop_reasons(after, asks.stop_ids).tolist() == [stop, string, token]


def test_a_stop_string_counts_once_its_last_byte_is_there():
    """Half a character is no character: the two bytes of "é" are two tokens."""
    rows = [[*"xé".encode(), *"yé".encode()]]
    texts, after = read_responses(BYTES, rolled(BYTES, rows, 8), config(BYTES, 8, stop=("é",)))
    assert texts == ["x"] and after.mask.sum() == 3
    texts, after = read_responses(BYTES, rolled(BYTES, rows, 8), config(BYTES, 8, stop=("é",), min_new_tokens=3))
    assert texts == ["xéy"] and after.mask.sum() == 6


def plainly(text: str, stop: tuple[str, ...], least: int) -> tuple[str, int]:
    """One token a letter: the text before the stop string that is complete first, and how many letters there are."""
    for end in range(least + 1, len(text) + 1):
        starts = [
            start for s in stop for start in range(end) if text[start:end].startswith(s) and start + len(s) > least
        ]
        if starts:
            return text[: min(starts)], end
    return text, len(text)


@pytest.mark.parametrize("least", [0, 3])
def test_the_string_that_is_complete_first_counts(least):
    draw, stop, room = random.Random(0), ("ab", "bab", "cc", "d"), 8
    texts = ["".join(draw.choices("abcde", (4, 4, 4, 1, 2), k=draw.randint(1, room))) for _ in range(200)]
    rollout = rolled(LETTERS, [LETTERS.encode(text) for text in texts], room)
    found, after = read_responses(LETTERS, rollout, config(LETTERS, room, stop=stop, min_new_tokens=least))
    expected = [plainly(text, stop, least) for text in texts]
    assert list(zip(found, after.mask.sum(1).tolist(), strict=True)) == expected
    assert 20 < sum(text != short for text, (short, _) in zip(texts, expected, strict=True)) < 180


def test_reasons_are_read_off_the_rollout_and_shares_add_up():
    eos = LETTERS.eos_id
    rollout = rolled(LETTERS, [[0, eos], [1, 2, 3], [1, 1], [0, 1, eos]], 3)
    reasons = stop_reasons(rollout, (eos,))
    assert reasons.tolist() == [
        StopReason.STOP_TOKEN, StopReason.ROOM, StopReason.REPETITION, StopReason.STOP_TOKEN,
    ]  # fmt: skip
    assert reason_shares(reasons) == {
        "stop_reasons/stop_token": 0.5,
        "stop_reasons/stop_string": 0.0,
        "stop_reasons/room": 0.25,
        "stop_reasons/repetition": 0.25,
    }
