"""Packed rows are the same rows: no objective can tell them from padded ones, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_decoder, make_scalar_model, random_tokens, token_rows
from running import unoptimised

from prl_jax.methods.direct import Sigmoid
from prl_jax.models.packing import _first_fit, pack, rows_needed
from prl_jax.training.direct import direct_objective
from prl_jax.training.reward_model import bradley_terry_objective, generative_objective
from prl_jax.training.sft import sft_objective
from prl_jax.training.step import gradients
from prl_jax.tree import flatten
from prl_jax.types import ComparedPairs, DirectPairs, ScoredPairs, SFTBatch, TokenRows

LENGTH = 12
LENGTHS = np.array([[3, 12, 1, 5], [4, 2, 7, 6]])  # of the first and of the second rows of pairs
COUNT = rows_needed(LENGTHS.reshape(1, -1), LENGTH)


def rows_of(lengths, seed: int = 0) -> TokenRows:
    ids = random_tokens(seed, len(lengths), LENGTH)
    return token_rows([list(row[:n]) for row, n in zip(ids, lengths, strict=True)], LENGTH)


def demonstrations(lengths, seed: int = 0) -> SFTBatch:
    """Some tokens of each row count, in the middle too."""
    rows = rows_of(lengths, seed)
    mask = (np.arange(LENGTH) % 3 != 1) & (np.arange(LENGTH) < np.asarray(lengths)[:, None])
    return SFTBatch(rows, random_tokens(seed + 7, len(lengths), LENGTH), mask)


def pairs() -> tuple[np.ndarray, np.ndarray]:
    return np.float32([1.0, 0.3, 0.5, 1.0]), np.float32([1.0, 1.0, 0.0, 1.0])


def direct_pairs() -> DirectPairs:
    label, weight = pairs()
    reference, zeros = np.float32(np.random.default_rng(0).normal(-20, 3, (4, 2))), np.zeros(4, np.float32)
    one, two = (demonstrations(lengths, seed) for seed, lengths in enumerate(LENGTHS))
    return DirectPairs(one, two, reference, label, np.stack([zeros, zeros], axis=1), zeros, weight)


def shared_positions() -> tuple[TokenRows, TokenRows]:
    """Positions that start anew in the middle, as a template may ask."""
    rows = (rows_of(lengths, seed) for seed, lengths in enumerate(LENGTHS))
    return tuple(row._replace(positions=row.positions % 4) for row in rows)


MODELS = {"sft": make_decoder, "bradley_terry": make_scalar_model, "generative": make_decoder, "direct": make_decoder}
BATCHES = {
    "sft": lambda: demonstrations(LENGTHS.reshape(-1)),
    "bradley_terry": lambda: ScoredPairs(*(rows_of(lengths, seed) for seed, lengths in enumerate(LENGTHS)), *pairs()),
    "generative": lambda: ComparedPairs(*shared_positions(), *pairs()),
    "direct": direct_pairs,
}
OBJECTIVES = {
    "sft": sft_objective,
    "bradley_terry": lambda packed=0: bradley_terry_objective(center=0.1, packed=packed),
    "generative": lambda packed=0: generative_objective((3, 5), w_cons=0.1, packed=packed),
    "direct": lambda packed=0: direct_objective(Sigmoid(), sft_weight=0.2, packed=packed),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_objective_can_tell_packed_rows_from_padded_ones(name):
    """Of a model with and without a window, as SFT has it; with a row to spare, as direct losses have it."""
    assert COUNT < LENGTHS.size - 2
    shape = dict(layers=2, window=3, windowed=(True, False), attention_softcap=5.0) if name == "sft" else dict(layers=1)
    model, batch = MODELS[name](**shape), jax.tree.map(jnp.asarray, BATCHES[name]())

    def run(packed):
        with unoptimised():
            return jax.jit(lambda m, b: gradients(OBJECTIVES[name](packed=packed), m, b))(model, batch)

    found = [run(packed) for packed in (0, COUNT + (name == "direct"))]
    expected, metrics = found[0]
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert largest > 1e-4 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    for grads, others in found[1:]:
        for key, value in metrics.items():
            np.testing.assert_allclose(others[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
        for path, leaf in flatten(grads).items():
            np.testing.assert_allclose(leaf, flatten(expected)[path], atol=2e-5 * largest, err_msg=path)


def test_every_token_stands_at_one_place_behind_its_neighbour_and_rows_do_not_mix():
    lengths = LENGTHS.reshape(-1)
    rows = rows_of(lengths)
    packed = jax.device_get(pack(jax.tree.map(jnp.asarray, rows), COUNT))
    assert packed.rows.tokens.shape == (COUNT, LENGTH)
    for number, length in enumerate(lengths, 1):
        row, place = np.nonzero(packed.rows.segments == number)
        assert len(set(row)) == 1 and list(place) == list(range(place[0], place[0] + length))
        np.testing.assert_array_equal(packed.rows.tokens[row, place], rows.tokens[number - 1, :length])
        np.testing.assert_array_equal(packed.rows.positions[row, place], np.arange(length))
    assert (packed.rows.segments > 0).sum() == lengths.sum()
    values = jnp.asarray(packed.rows.tokens, jnp.float32) * (packed.rows.segments > 0)
    np.testing.assert_array_equal(pack(rows, COUNT).of_rows(values), (rows.tokens * (rows.segments > 0)).sum(-1))


def test_as_many_rows_as_the_fullest_batch_needs_and_not_one_more():
    draw = np.random.default_rng(1)
    lengths = draw.integers(0, 33, (300, 16))
    count = rows_needed(lengths, 32)
    used = []
    for batch in lengths:  # by hand
        free: list[int] = []
        for length in sorted(batch, reverse=True):
            fits = [i for i, room in enumerate(free) if room >= length]
            if not length:
                continue
            if not fits:
                free.append(32)
                fits = [len(free) - 1]
            free[fits[0]] -= length
        used.append(len(free))
    assert count == max(used) < 16
    least = -(-lengths.sum(1) // 32)
    assert np.mean(np.array(used) / least) < 1.15  # first-fit decreasing wastes little
    row, start, _ = _first_fit(jnp.asarray(lengths[0]), count, 32)
    for i in range(count):
        taken = [t for r, s, n in zip(row, start, lengths[0], strict=True) if r == i for t in range(s, s + n)]
        assert len(set(taken)) == len(taken) and max(taken, default=0) < 32


def test_rows_of_padding_alone_take_no_room():
    assert rows_needed(np.zeros((1, 5), np.int64), 8) == 1
    rows = TokenRows(*(jnp.zeros((4, 8), jnp.int32) for _ in range(3)))
    assert not np.any(pack(rows, 1).rows.segments)
