"""A Bradley-Terry model as a judge: `P = sigmoid(r_1 - r_2)`, free of any order."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from prl_jax.errors import UserError
from prl_jax.judges.base import Judged, Scored, check_lengths, in_batches, text_sizes
from prl_jax.models import ScalarModel
from prl_jax.text.chat import Prompt, encode_prompt, encode_response, fit_prompt
from prl_jax.text.padding import pad_rows
from prl_jax.text.tokenizer import Tokenizer
from prl_jax.types import TokenRows


class ScalarJudge:
    """Scores each response on its own.

    A row is cut as in training (`encode_scalar_pair`): prompt and response each to the room of its own.

    Args:
      model: a decoder with a scalar head.
      tokenizer: of the model.
      max_prompt, max_response: tokens that the model reads of either; 0 for as many as fit into the row.
      max_length: static length of a row; 0 for those two together.
      batch_size: rows of one forward pass.
      on_long: "truncate" (a long prompt loses the beginning of its contents, a response its end) or "error".
      mesh: cuts the rows of a forward pass over its devices.
    """

    merge = "probability"  # the orders agree exactly

    def __init__(
        self,
        model: ScalarModel,
        tokenizer: Tokenizer,
        *,
        max_prompt: int = 0,
        max_response: int = 0,
        max_length: int = 0,
        batch_size: int = 256,
        on_long: str = "truncate",
        mesh: Mesh | None = None,
    ):
        if not (max_length or (max_prompt and max_response)):
            raise ValueError(f"max_prompt={max_prompt}, max_response={max_response}: expected both, or max_length")
        self.model, self.tokenizer = model, tokenizer
        self.max_length = max_length or max_prompt + max_response
        self.max_prompt, self.max_response = max_prompt or self.max_length, max_response or self.max_length
        self.batch_size, self.on_long, self.mesh = batch_size, on_long, mesh

    def scores(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[np.ndarray, "N"]:
        """`[N]` float32 rewards."""
        return self.scored(prompts, responses).scores

    def scored(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Scored:
        """Rewards, and which rows were cut for them."""
        check_lengths(prompts, responses)

        def encode(index: Int[np.ndarray, "n"]) -> tuple[TokenRows, Bool[np.ndarray, "n 1"]]:
            rows = [self._row(prompts[i], responses[i]) for i in index]
            cut = np.array([[was] for _, was in rows], bool)
            return pad_rows([ids for ids, _ in rows], self.max_length, pad_id=self.tokenizer.pad_id), cut

        forward = functools.partial(score_rows, self.model)
        sizes = text_sizes(prompts, responses)
        scores, cut = in_batches(forward, encode, len(prompts), self.batch_size, self.mesh, sizes)
        return Scored(scores, cut[:, 0])

    def _row(self, prompt: Prompt, response: str) -> tuple[list[int], bool]:
        """The tokens of a row, and whether anything was cut."""
        question, answer = encode_prompt(self.tokenizer, prompt), encode_response(self.tokenizer, response)
        needed = len(question) + len(answer)
        fits = len(question) <= self.max_prompt and len(answer) <= self.max_response and needed <= self.max_length
        if fits:
            return question + answer, False
        if self.on_long == "error":
            raise UserError(
                f"prompt and response take {needed} tokens ({len(question)} and {len(answer)}), but the judge's "
                f"context holds {self.max_length} ({self.max_prompt} and {self.max_response}): shorten them or use a "
                "judge with a longer context"
            )
        # The score is read at the end-of-response token, of a cut response too. The prompt keeps its frame.
        bare = len(encode_prompt(self.tokenizer, tuple(turn._replace(content="") for turn in prompt[-1:])))
        room = min(self.max_response, max(self.max_length - bare, 1))
        answer = [*answer[:-1][: room - 1], answer[-1]]
        return fit_prompt(self.tokenizer, prompt, min(self.max_prompt, self.max_length - len(answer)))[0] + answer, True

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        scores, cut, _ = self.scored([*prompts, *prompts], [*first, *second])
        count = len(prompts)
        either = cut[:count] | cut[count:]
        # What differs only behind the cut has the same row twice, whose scores agree but for the order of additions.
        pairs = zip(either, prompts, first, second, strict=True)
        same = [bool(was) and self._row(prompt, a)[0] == self._row(prompt, b)[0] for was, prompt, a, b in pairs]
        gap = np.where(same, 0.0, scores[:count] - scores[count:]).astype(np.float32)
        return Judged(gap, -gap, self.merge, either)


@jax.jit
def score_rows(model: ScalarModel, rows: TokenRows) -> Float[Array, "B"]:
    return model.score(rows)
