"""A Bradley-Terry model as a judge: `P = sigmoid(r_1 - r_2)`, free of any order."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from prl_jax.errors import UserError
from prl_jax.judges.base import Judged, check_lengths, in_batches
from prl_jax.models import ScalarModel
from prl_jax.text.chat import Prompt, encode_prompt, encode_response, fit_prompt
from prl_jax.text.padding import pad_rows
from prl_jax.text.tokenizer import Tokenizer
from prl_jax.types import TokenRows


class ScalarJudge:
    """Scores each response on its own.

    Args:
      model: a decoder with a scalar head.
      tokenizer: of the model.
      max_length: static length of a row.
      batch_size: rows of one forward pass.
      on_long: "truncate" (the prompt of a row that is too long loses the beginning of its contents) or "error".
      mesh: cuts the rows of a forward pass over its devices.
    """

    merge = "probability"  # the orders agree exactly

    def __init__(
        self,
        model: ScalarModel,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        batch_size: int = 256,
        on_long: str = "truncate",
        mesh: Mesh | None = None,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.max_length, self.batch_size, self.on_long, self.mesh = max_length, batch_size, on_long, mesh

    def scores(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[np.ndarray, "N"]:
        """`[N]` float32 rewards."""
        check_lengths(prompts, responses)

        def encode(index: Int[np.ndarray, "n"]) -> TokenRows:
            ids = [self._row(prompts[i], responses[i]) for i in index]
            return pad_rows(ids, self.max_length, pad_id=self.tokenizer.pad_id)

        forward = functools.partial(score_rows, self.model)
        return in_batches(forward, encode, len(prompts), self.batch_size, self.mesh)

    def check_fits(self, prompt: Prompt, first: str, second: str) -> None:
        """Raises `UserError` for a pair that is too long, with `on_long="error"`."""
        for response in (first, second):
            self._row(prompt, response)

    def _row(self, prompt: Prompt, response: str) -> list[int]:
        question, answer = encode_prompt(self.tokenizer, prompt), encode_response(self.tokenizer, response)
        needed = len(question) + len(answer)
        if needed > self.max_length and self.on_long == "error":
            raise UserError(
                f"prompt and response take {needed} tokens, but the judge's context holds {self.max_length}: "
                "shorten them or use a judge with a longer context"
            )
        if needed <= self.max_length:
            return question + answer
        # The score is read at the end-of-response token, of a cut response too. The prompt keeps its frame.
        bare = len(encode_prompt(self.tokenizer, tuple(turn._replace(content="") for turn in prompt[-1:])))
        answer = [*answer[:-1][: max(self.max_length - bare - 1, 0)], answer[-1]]
        return fit_prompt(self.tokenizer, prompt, self.max_length - len(answer))[0] + answer

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        scores = self.scores([*prompts, *prompts], [*first, *second])
        gap = scores[: len(prompts)] - scores[len(prompts) :]
        return Judged(gap, -gap)


@jax.jit
def score_rows(model: ScalarModel, rows: TokenRows) -> Float[Array, "B"]:
    return model.score(rows)
