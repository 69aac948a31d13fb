"""The generative pairwise reward model as a judge: reads both responses, answers with a verdict token."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float

from prl_jax.judges.base import Judged, check_lengths, in_batches
from prl_jax.models import Decoder, verdict_log_probs
from prl_jax.text.chat import Prompt
from prl_jax.text.judging import JudgeRow, JudgeTemplate, encode_judge_row, verdict_ids
from prl_jax.text.padding import pad_rows
from prl_jax.text.tokenizer import Tokenizer
from prl_jax.types import TokenRows


class GenerativeJudge:
    """Asks a language model, in both orders.

    The logit of a verdict is restricted to the two verdict tokens; what probability they leave to other tokens is
    reported by `verdict_mass`.

    Args:
      model: a language model.
      tokenizer: of the model.
      template: how a pair is put to it; its verdict words must be single tokens, or a `UserError` says so here.
      max_length: static length of a row.
      batch_size: rows of one forward pass.
      on_long: "truncate" (a row that is too long loses the beginning of its prompt) or "error".
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        template: JudgeTemplate,
        *,
        max_length: int,
        batch_size: int = 256,
        on_long: str = "truncate",
    ):
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.max_length, self.batch_size, self.on_long = max_length, batch_size, on_long
        self.verdicts = verdict_ids(tokenizer, template)

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        log_probs = self._log_probs([*prompts, *prompts], [*first, *second], [*second, *first])
        z = log_probs[:, 0] - log_probs[:, 1]
        return Judged(z[: len(prompts)], z[len(prompts) :])

    def check_fits(self, prompt: Prompt, first: str, second: str) -> None:
        """Raises `UserError` for a pair that is too long, with `on_long="error"`."""
        self._encode(prompt, first, second)

    def verdict_mass(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> Float[np.ndarray, "N"]:
        """`[N]` probability of the two verdict tokens together, in the order given."""
        return np.exp(self._log_probs(prompts, first, second)).sum(-1)

    def _encode(self, prompt: Prompt, first: str, second: str) -> JudgeRow:
        return encode_judge_row(
            self.tokenizer,
            self.template,
            prompt,
            first,
            second,
            max_length=self.max_length,
            on_long=self.on_long,
        )

    def _log_probs(self, prompts, first, second) -> Float[np.ndarray, "N 2"]:
        check_lengths(prompts, first, second)
        encoded = [self._encode(*row) for row in zip(prompts, first, second, strict=True)]
        rows = pad_rows(
            [row.ids for row in encoded],
            self.max_length,
            pad_id=self.tokenizer.pad_id,
            positions=[row.positions for row in encoded],
        )
        return in_batches(lambda batch: _verdicts(self.model, batch, self.verdicts), rows, self.batch_size)


@functools.partial(jax.jit, static_argnums=2)
def _verdicts(model: Decoder, rows: TokenRows, verdicts: tuple[int, int]) -> Float[Array, "B 2"]:
    return verdict_log_probs(model, rows, verdicts)
