"""The switches of sampling, and which tokens they leave."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from prl_jax.errors import UserError, quoted
from prl_jax.text.tokenizer import IdRanges, id_ranges

_COLDEST = 1e-30  # below it float32 loses the temperature itself


class Support(NamedTuple):
    """The tokens that can be sampled, beside what a model says of itself (`DecoderConfig.unsampled`).

    The log-probabilities that train a policy are those of the distribution that was sampled, so that the trainer asks
    here too.

    Attributes:
      stop_ids: tokens that end a response; they can be sampled, whatever the model says of them.
      suppressed_tokens: ids that are never sampled.
      min_new_tokens: tokens that a response has before one of `stop_ids` can be sampled.
    """

    stop_ids: tuple[int, ...] = ()
    suppressed_tokens: tuple[int, ...] = ()
    min_new_tokens: int = 0

    def absent(self, unsampled: IdRanges, *, early: bool = False) -> IdRanges:
        """Returns the ids that cannot be sampled, as ranges `(first, behind the last)`.

        Args:
          unsampled: the ranges of the model.
          early: whether the token is one of the first `min_new_tokens`.
        """
        if not (self.stop_ids or self.suppressed_tokens):
            return unsampled
        silent = {i for first, end in unsampled for i in range(first, end)} - set(self.stop_ids)
        return id_ranges(silent | set(self.suppressed_tokens) | set(self.stop_ids if early else ()))


WHOLE = Support()
"""The tokens that a model can sample, without any switch."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How responses are sampled.

    The switches come in the order of transformers: the repetition penalty, the tokens that are left out, temperature,
    top_k, top_p, min_p.

    Attributes:
      max_new_tokens: room of a response, the stop token included.
      stop_ids: tokens that end a response and belong to it.
      pad_id: fills a response behind its stop token.
      temperature: 0 is greedy; log-probabilities are then those of temperature 1.
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: keep the smallest likeliest set of this probability.
      min_p: keep the tokens that have this share of the likeliest one's probability, at least (arXiv 2407.01082).
      repetition_penalty: divides the positive logits of tokens that the prompt or the response has already, and
        multiplies the negative ones (arXiv 1909.05858); 1 changes nothing.
      stop: texts that end a response right before them. The tokens up to the one that completes the text belong to the
        response, as a stop token does: they ended it. What is read of the response is the text before.
      suppressed_tokens: ids that are never sampled.
      min_new_tokens: tokens that a response has before a stop token can be sampled, or a text of `stop` counts.
      repetition_ngram, repetition_times: a response ends, as one that ran out of room, once its last tokens are the
        same n-gram, of `repetition_ngram` tokens at most, `repetition_times` times in a row; both 0: never.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    pad_id: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    suppressed_tokens: tuple[int, ...] = ()
    min_new_tokens: int = 0
    repetition_ngram: int = 0
    repetition_times: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens}, expected at least 1")
        if not self.stop_ids:
            raise UserError("stop_ids is empty, expected the end-of-turn token at least")
        if not (self.temperature == 0 or _COLDEST <= self.temperature < math.inf):
            raise UserError(f"temperature={self.temperature}, expected 0, or a finite number of at least {_COLDEST}")
        in_range = {
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "more than 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "a finite number above 0"),
        }
        for name, (holds, expected) in in_range.items():
            if not holds:
                raise UserError(f"{name}={getattr(self, name)}, expected {expected}")
        cuts = {"top_k": self.top_k > 0, "top_p": self.top_p < 1, "min_p": self.min_p > 0}
        for name in (name for name, cut in cuts.items() if cut and self.temperature == 0):
            raise UserError(
                f"{name}={getattr(self, name)}: at temperature 0 the likeliest token is taken; leave it out"
            )
        self._check_endings()

    def _check_endings(self) -> None:
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise UserError(f"stop={self.stop!r}, expected texts that are not empty")
        check_ids("suppressed_tokens", self.suppressed_tokens)
        if both := sorted(set(self.suppressed_tokens) & set(self.stop_ids)):
            raise UserError(f"suppressed_tokens: {both[0]} ends a response, and has to be sampled; leave it out")
        if not 0 <= self.min_new_tokens < self.max_new_tokens:
            raise UserError(
                f"min_new_tokens={self.min_new_tokens}, expected from 0 to {self.max_new_tokens - 1}: a response has "
                f"room for {self.max_new_tokens} tokens, the stop token among them"
            )
        longest, times = self.repetition_ngram, self.repetition_times
        if (longest, times) != (0, 0) and (longest < 1 or times < 2):
            raise UserError(
                f"repetition_ngram={longest}, repetition_times={times}: expected at least 1 and 2, or 0 and 0 to let "
                "responses repeat themselves"
            )

    @property
    def support(self) -> Support:
        """The tokens that can be sampled."""
        return Support(self.stop_ids, self.suppressed_tokens, self.min_new_tokens)

    @property
    def unmatched(self) -> tuple[str, ...]:
        """The switches in use whose distribution the trainer's log-probabilities are not taken from."""
        neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
        return tuple(name for name, value in neutral.items() if getattr(self, name) != value)


def check_ids(key: str, ids: Sequence[int], vocab_size: int | None = None) -> None:
    """Raises `UserError`, which begins with the key, for what is no id of a token in a vocabulary of this size."""
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise UserError(f"{key}: {quoted(str(i))} is no id of a token, expected integers of at least 0")
        if vocab_size is not None and i >= vocab_size:
            raise UserError(f"{key}: {i} is no id of a token, the vocabulary has {vocab_size}; give one of these")
