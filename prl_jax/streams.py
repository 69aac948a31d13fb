"""Every random stream of a run by its name, so that no two share a number.

A key follows from the run's seed, the stage's name, the stream and, where a stream is drawn from again and again, the
step: the same run on any number of processes. Rows of a batch fold in their own number below that (`row_keys`). The
numbers are part of what makes a run repeatable: they stay what they are, and a new stream takes a new one.
"""

from __future__ import annotations

import enum
import zlib

import jax


class Stream(enum.Enum):
    """The purpose of random numbers: whether a stage draws anew in each step, and the number that is folded in.

    Where a stream without steps has its number, the others have the step, and below it their own: what begins at 2**16
    is out of the way of the steps that a stage has.
    """

    RESPONSES = (True, 0)  # sampled to learn from
    SHUFFLING = (True, 1)  # of the rows of an update
    OPPONENTS = (True, 2)  # drawn from a pool
    REDRAWS = (True, 3)  # responses and opponents of groups that are drawn again; each attempt folds in its number
    OPPONENT_SAMPLES = (True, 4)  # sampled to compare with
    ADAPTERS = (False, 2**16)  # of a policy or a judge, at their start
    CRITIC_ADAPTERS = (False, 2**16 + 1)
    DROPOUT = (False, 2**17)  # each step folds in its own number on the device
    SHOWN_SAMPLES = (False, 2**17 + 1)  # for people to read


def stage_key(seed: int, stage: str) -> jax.Array:
    """The key of a stage, of which all its streams are made; a new model's parameters are drawn from it itself."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stage.encode()))


def stream_key(key: jax.Array, stream: Stream, step: int | None = None) -> jax.Array:
    """The key of a stream.

    Args:
      key: of the stage (`stage_key`).
      stream: which one.
      step: the number of the step, for streams that draw anew in each.
    """
    stepwise, number = stream.value
    if stepwise != (step is not None):
        raise ValueError(f"{stream.name}: a step is {'missing' if stepwise else 'given'}")
    return jax.random.fold_in(key if step is None else jax.random.fold_in(key, step), number)


def candidate_key(key: jax.Array, number: int) -> jax.Array:
    """The key of the `number`-th response that a stage samples to each prompt in order to choose among them; such a
    stage draws nothing else from it."""
    return jax.random.fold_in(key, number)


def selection_seed(seed: int, stage: str, record: int) -> tuple[int, int, int]:
    """The seed of numpy's random numbers with which a stage chooses among the responses to one of its prompts."""
    return seed, zlib.crc32(f"selection {stage}".encode()), record


def evaluation_key(seed: int, *, opponent: bool, sample: int) -> jax.Array:
    """The key of the samples that an evaluation draws, to which row i of the data adds its number.

    It depends on the run's seed alone, not on the stage or the policy. The opponent's samples have another key than
    those of the policies, or a policy that equals the opponent would only tie with itself.

    Args:
      seed: of the run.
      opponent: whether the samples are those that policies are compared with.
      sample: number of the sample among those of one prompt.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"samples of evaluations"))
    return jax.random.fold_in(jax.random.fold_in(key, int(opponent)), sample)


def order_seed(seed: int, stage: str) -> int:
    """The seed of the order in which a stage goes over its data."""
    return (zlib.crc32(stage.encode()) + seed) % 2**31
