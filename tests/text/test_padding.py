"""Padding: masks from lengths, on either side."""

import numpy as np
import pytest

from prl_jax.text.padding import pad_rows, static_length

ROWS = [[5, 0, 7], [0], [3, 4, 5, 6]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_row_04_real_tokens_come_back_whatever_the_pad_token(side):
    """Pad token 0 stands inside the rows too, at their ends even."""
    padded = pad_rows(ROWS, 6, pad_id=0, side=side)
    assert all(x.shape == (3, 6) and x.dtype == np.int32 for x in padded)
    for ids, tokens, positions, segments in zip(ROWS, *padded, strict=True):
        valid = segments > 0
        assert tokens[valid].tolist() == ids and positions[valid].tolist() == list(range(len(ids)))
        edge = valid if side == "right" else valid[::-1]
        assert edge[: len(ids)].all() and (tokens[~valid] == 0).all()
    mirrored = pad_rows([row[::-1] for row in ROWS], 6, pad_id=0, side="left" if side == "right" else "right")
    np.testing.assert_array_equal(mirrored.tokens[:, ::-1], padded.tokens)


def test_row_16_positions_count_from_the_first_real_token_or_as_given():
    assert pad_rows([[8, 9]], 4, pad_id=1, side="left").positions[0, 2:].tolist() == [0, 1]
    given = pad_rows([[8, 9, 9]], 4, pad_id=1, positions=[[4, 2, 4]])
    assert given.positions[0, :3].tolist() == [4, 2, 4]


def test_full_rows_need_no_padding():
    padded = pad_rows([[1, 2]], 2, pad_id=9)
    assert padded.tokens.tolist() == [[1, 2]] and padded.segments.tolist() == [[1, 1]]


def test_misuse_is_named():
    with pytest.raises(ValueError, match="row 2 has 4 tokens, expected at most 3"):
        pad_rows(ROWS, 3, pad_id=0)
    with pytest.raises(ValueError, match="side='top'"):
        pad_rows(ROWS, 6, pad_id=0, side="top")


@pytest.mark.parametrize(
    ("longest", "most", "length"),
    [(5, 12, 12), (64, 72, 72), (64, 96, 64), (65, 96, 96), (1, 512, 64), (65, 512, 128), (129, 512, 256)]
    + [(257, 512, 512), (300, 1000, 512), (700, 1000, 1000), (3000, 3072, 3072), (0, 8, 8)],
)
def test_a_batch_is_as_long_as_it_needs_in_few_different_lengths(longest, most, length):
    assert static_length(longest, most) == length >= longest
    assert len({static_length(n, 4096) for n in range(1, 4097)}) == 7
