"""What the workloads of `peer_workloads.py` are made of, without prl_jax: sizes, counts of arithmetic, inputs.

Both checkouts of a comparison import this file, so that they compute the same on the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Step = Callable[[], dict[str, float]]
"""One repetition of a workload: returns a few numbers of its result, once all of it is there."""


class Size(NamedTuple):
    """The decoder and the batches of a size.

    Attributes:
      layers, width, heads, kv_heads, mlp_width, vocab: of the decoder, whose embedding and output matrix are two.
      rows, length: of a batch of SFT; half as many pairs train a judge.
      batch, prompt, response: rows that are sampled, and their tokens.
      update_rows: rows of one PPO update; an iteration does `batch / update_rows` of them.
      logprob_rows, logprob_length, logprob_width, logprob_vocab: of the log-probabilities in chunks.
      loop_steps: steps of the SFT loop that count as one repetition.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    vocab: int
    rows: int = 16
    length: int = 256
    batch: int = 32
    prompt: int = 64
    response: int = 128
    update_rows: int = 16
    logprob_rows: int = 8
    logprob_length: int = 512
    logprob_width: int = 512
    logprob_vocab: int = 32_000
    loop_steps: int = 4

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def judge_length(self) -> int:
        """Room for a prompt, two responses and what the judge's template adds."""
        return self.prompt + 2 * self.response + 4


SIZES = {
    "S": Size(layers=4, width=256, heads=4, kv_heads=2, mlp_width=688, vocab=4096),
    "M": Size(layers=8, width=512, heads=8, kv_heads=4, mlp_width=1376, vocab=8192),
    # About what the quickstart trains: steps are so short that the host's part of them counts.
    "quickstart": Size(
        layers=3, width=64, heads=4, kv_heads=2, mlp_width=192, vocab=272, rows=128, length=24, batch=256, prompt=14,
        response=10, update_rows=128, loop_steps=20,
    ),
    # Runs in a moment: for the test that the script still runs.
    "micro": Size(
        layers=1, width=16, heads=2, kv_heads=1, mlp_width=32, vocab=64, rows=4, length=12, batch=4, prompt=6,
        response=4, update_rows=4, logprob_rows=2, logprob_length=8, logprob_width=8, logprob_vocab=128, loop_steps=2,
    ),
}  # fmt: skip

# The same for all sizes: AdamW at a constant rate, and one pass of PPO over what was sampled.
OPTIMIZER = dict(learning_rate=1e-4, total_steps=10**6, weight_decay=0.01, clip_norm=1.0, b1=0.9, b2=0.999, eps=1e-8)
ROPE_THETA, NORM_EPS = 1e6, 1e-5
PPO = dict(epochs=1, gamma=1.0, lam_actor=0.95, lam_critic=0.95, value_weight=0.1, kl_coef=0.05)

FIRST_WORD = 12  # lower ids are structural


def units(name: str, size: Size) -> tuple[str, int]:
    """Returns the unit of a workload, and how many of it one repetition makes."""
    generated = size.batch * size.response
    return {
        "W1": ("tokens/s", size.rows * size.length),
        "L1": ("tokens/s", size.loop_steps * size.rows * size.length),
        "W2": ("pairs/s", size.rows // 2),
        "W2p": ("pairs/s", size.rows // 2),
        "W3": ("new tokens/s", generated),
        "W4": ("rollouts/s", size.update_rows),
        "W5": ("generated tokens/s", generated),
        "W5p": ("generated tokens/s", generated),
        "W6": ("tokens/s", size.logprob_rows * size.logprob_length),
    }[name]


def body_parameters(size: Size) -> int:
    """Parameters of the layers' matrices."""
    attention = 2 * size.width * size.heads * size.head_dim + 2 * size.width * size.kv_heads * size.head_dim
    return size.layers * (attention + 3 * size.width * size.mlp_width)


def forward_flops(size: Size, rows: int, length: int, *, heads: int | None = None, past: int = 0) -> int:
    """Floating-point operations of a forward pass.

    Args:
      size: of the decoder.
      rows, length: of the batch.
      heads: positions of a row that the output matrix is applied to; None for all of them.
      past: positions before the row that its attention reads too.

    Counts `2 * parameters * tokens`, attention without a discount for the causal mask (as the PaLM paper does,
    arXiv:2204.02311, appendix B), and the output matrix.
    """
    body = 2 * body_parameters(size) * rows * length
    attention = 4 * size.layers * size.width * rows * length * (past + length)
    head = 2 * size.width * size.vocab * rows * (length if heads is None else heads)
    return body + attention + head


def workload_flops(name: str, size: Size) -> int | None:
    """Floating-point operations that one repetition needs; a backward pass counts twice. None where nobody counts."""
    pairs, judged = size.rows, size.length  # rows of both responses
    whole = size.prompt + size.response
    generation = forward_flops(size, size.batch, size.prompt, heads=1) + sum(
        forward_flops(size, size.batch, 1, past=size.prompt + i) for i in range(size.response - 1)
    )

    def update(rows: int) -> int:
        """Old and reference log-probabilities, values, then one epoch of both models."""
        policy = forward_flops(size, rows, whole, heads=size.response)
        values = forward_flops(size, rows, whole, heads=0)
        return 2 * policy + values + 3 * (policy + values)

    iteration = generation + update(size.batch)
    return {
        "W1": 3 * forward_flops(size, size.rows, size.length),
        "L1": 3 * forward_flops(size, size.rows, size.length) * size.loop_steps,
        "W2": 3 * forward_flops(size, pairs, judged, heads=0),
        "W2p": 3 * forward_flops(size, pairs, judged, heads=1),
        "W3": generation,
        "W4": update(size.update_rows),
        "W5": iteration + forward_flops(size, size.batch, whole, heads=0),
        "W5p": iteration + forward_flops(size, 2 * size.batch, size.judge_length, heads=1),
        "W6": None,
    }[name]


class Inputs:
    """Random tokens, texts and numbers for a size, the same in each process."""

    def __init__(self, size: Size):
        self._size, self._rng = size, np.random.default_rng(0)

    def tokens(self, rows: int, length: int) -> np.ndarray:
        """`[rows, length]` int32 ids of words."""
        return self._rng.integers(FIRST_WORD, self._size.vocab, (rows, length)).astype(np.int32)

    def token_rows(self, rows: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, positions and segments of rows without padding, int32."""
        positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
        return self.tokens(rows, length), positions, np.ones((rows, length), np.int32)

    def text(self, words: int) -> str:
        """A text of so many words, each of which `Words` makes one token of."""
        return " ".join(f"t{i}" for i in self._rng.integers(FIRST_WORD, self._size.vocab, words))

    def normal(self, count: int) -> np.ndarray:
        """`[count]` float32."""
        return self._rng.standard_normal(count).astype(np.float32)


class Words:
    """A tokenizer whose words are ids (`t17` is 17), so that texts come back as the tokens that they were made of."""

    pad_id, eos_id = 0, 2
    special_ids = dict(pad=0, eos=2, system=3, user=4, assistant=5, first=6, second=7, verdict=8, reference=9)
    verdicts = {"Y": 10, "N": 11}

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self._texts = [f"t{i}" for i in range(vocab_size)]
        self._ids = {text: i for i, text in enumerate(self._texts)} | self.verdicts

    def encode(self, text: str) -> list[int]:
        return [self._ids[word] for word in text.split()]

    def decode(self, ids: Any) -> str:
        return " ".join(self._texts[i] for i in ids if i >= FIRST_WORD)

    def special(self, name: str) -> int | None:
        return self.special_ids.get(name)

    def save(self, directory: Any) -> None:
        raise NotImplementedError("a tokenizer of benchmarks is never kept")
