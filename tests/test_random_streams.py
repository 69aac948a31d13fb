"""Random streams: each has a number of its own, and the numbers stay what runs were made with."""

import jax
import pytest

from prl_jax.streams import Stream, candidate_key, evaluation_key, order_seed, stage_key, stream_key


def numbers(key) -> tuple[int, ...]:
    return tuple(jax.random.key_data(key).tolist())


def test_no_two_streams_of_a_stage_share_a_number():
    assert len({stream.value[1] for stream in Stream}) == len(Stream)
    key, steps = stage_key(3, "ppo"), (1, 2, 3)
    keys = [numbers(key), *(numbers(stream_key(key, s)) for s in Stream if not s.value[0])]
    keys += [numbers(stream_key(key, stream, n)) for stream in Stream if stream.value[0] for n in steps]
    assert len(set(keys)) == len(keys) == 1 + 4 + 5 * len(steps)


def test_stages_seeds_and_samples_differ():
    keys = [stage_key(seed, name) for seed in (0, 1) for name in ("sft", "bt")]
    keys += [evaluation_key(0, opponent=side, sample=k) for side in (False, True) for k in (0, 1)]
    keys += [candidate_key(keys[0], k) for k in (0, 1)]
    assert len(set(map(numbers, keys))) == len(keys)
    assert len({order_seed(seed, name) for seed in (0, 1) for name in ("sft", "bt")}) == 4


def test_the_numbers_stay_those_of_earlier_runs():
    """Written out: results that were published depend on them."""
    fold, key = jax.random.fold_in, stage_key(7, "sft")
    assert numbers(key) == numbers(fold(jax.random.key(7), 3443095071))  # the CRC-32 of the name
    assert numbers(stream_key(key, Stream.RESPONSES, 5)) == numbers(fold(fold(key, 5), 0))
    assert numbers(stream_key(key, Stream.SHUFFLING, 5)) == numbers(fold(fold(key, 5), 1))
    assert numbers(stream_key(key, Stream.OPPONENTS, 5)) == numbers(fold(fold(key, 5), 2))
    assert numbers(stream_key(key, Stream.ADAPTERS)) == numbers(fold(key, 65536))
    assert numbers(stream_key(key, Stream.CRITIC_ADAPTERS)) == numbers(fold(key, 65537))
    assert numbers(stream_key(key, Stream.DROPOUT)) == numbers(fold(key, 131072))


def test_a_step_belongs_to_a_stream_that_draws_in_each():
    key = stage_key(0, "sft")
    with pytest.raises(ValueError, match="RESPONSES: a step is missing"):
        stream_key(key, Stream.RESPONSES)
    with pytest.raises(ValueError, match="DROPOUT: a step is given"):
        stream_key(key, Stream.DROPOUT, 1)
