"""Two policies as a judge: how much likelier one of them finds a response than the other does.

Source: Dr. SoW, the density ratio of strong over weak, and CDR, the customised one, which puts criteria before the
prompt of the strong model (arXiv 2411.02481). With a policy of DPO over its reference, and DPO's beta, the score is
DPO's implicit reward (arXiv 2305.18290, equation 5 without the term of the prompt), by which CREAM (arXiv 2410.12735)
ranks a policy's own samples. Nothing is trained. The paper's choice of criteria by the domain of a prompt, and its
examples, are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from prl_jax.errors import UserError
from prl_jax.judges.base import Judged, Scored, check_lengths, in_batches, text_sizes
from prl_jax.judges.likelihood import frozen_log_probs
from prl_jax.models import Decoder
from prl_jax.text.chat import Prompt, Turn, encode_prompt, encode_response, fit_turns
from prl_jax.text.padding import pad_rows
from prl_jax.text.tokenizer import Tokenizer
from prl_jax.types import SFTBatch

LENGTHS = ("sum", "mean")  # what counts of a response's log-probabilities: their sum over its tokens, or their mean


class LogProbs(NamedTuple):
    """Log-probabilities that a policy gives to `N` responses.

    Attributes:
      sums: `[N]` float32, in nats, each over the tokens of a response.
      tokens: `[N]` float32, how many these are, the one that ends the response included.
      cut: `[N]` bool, responses that, or whose prompts, were cut.
    """

    sums: Float[np.ndarray, "N"]
    tokens: Float[np.ndarray, "N"]
    cut: Bool[np.ndarray, "N"]


class _Row(NamedTuple):
    """The tokens of a row, how many of them are the prompt's, and whether anything was cut."""

    ids: list[int]
    start: int
    cut: bool


class PolicyReader:
    """A policy that reads responses and tells how likely it finds them.

    A row is cut as SFT cuts it (`encode_sft`): the contents of a long prompt lose their beginning, a long response its
    right end, with the token that ends it.

    Args:
      model: the policy.
      tokenizer: of the policy.
      max_prompt, max_response: tokens that it reads of either.
      batch_size: rows of one forward pass.
      mesh: cuts the rows of a forward pass over its devices.
      criteria: a text that stands before each prompt, and is never cut: a turn of the system, or the beginning of the
        one that a prompt has. Where the chat template has no such turn, it opens the user's first one.

    Raises:
      UserError: the criteria leave no room for a prompt.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        max_prompt: int,
        max_response: int,
        batch_size: int = 256,
        mesh: Mesh | None = None,
        criteria: str = "",
    ):
        self.model, self.tokenizer = model, tokenizer
        self.max_prompt, self.max_response = max_prompt, max_response
        self.batch_size, self.mesh = batch_size, mesh
        self._with_criteria = _putting(criteria, tokenizer)
        if criteria and (needed := len(self._encode((Turn("user", ""),)))) >= max_prompt:
            raise UserError(
                f"criteria: take {needed} tokens with the chat template, which leaves no room for a prompt in "
                f"max_prompt={max_prompt} of the strong model; give fewer words, or a model with longer prompts"
            )

    def log_probs(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> LogProbs:
        """Returns the log-probabilities of responses behind their prompts."""
        check_lengths(prompts, responses)

        def encode(index: Int[np.ndarray, "n"]) -> tuple[SFTBatch, Int[np.ndarray, "n 2"]]:
            rows = [self.row(prompts[i], responses[i]) for i in index]
            return self._batch(rows), np.array([[row.cut, len(row.ids) - row.start] for row in rows], np.int32)

        forward = functools.partial(frozen_log_probs, self.model)
        sizes = text_sizes(prompts, responses)
        sums, known = in_batches(forward, encode, len(prompts), self.batch_size, self.mesh, sizes)
        return LogProbs(sums, known[:, 1].astype(np.float32), known[:, 0].astype(bool))

    def row(self, prompt: Prompt, response: str) -> _Row:
        """The tokens that are read of a response behind its prompt."""
        turns, cut = fit_turns(self.tokenizer, prompt, self.max_prompt, encode=self._encode)
        question, answer = self._encode(turns), encode_response(self.tokenizer, response)
        return _Row(question + answer[: self.max_response], len(question), cut > 0 or len(answer) > self.max_response)

    def _encode(self, prompt: Prompt) -> list[int]:
        return encode_prompt(self.tokenizer, self._with_criteria(prompt))

    def _batch(self, rows: Sequence[_Row]) -> SFTBatch:
        length, pad_id = self.max_prompt + self.max_response, self.tokenizer.pad_id
        tokens = pad_rows([row.ids for row in rows], length, pad_id=pad_id)
        targets = pad_rows([row.ids[1:] for row in rows], length, pad_id=pad_id).tokens
        place = np.arange(length)
        mask: Any = np.stack([(row.start - 1 <= place) & (place < len(row.ids) - 1) for row in rows])
        return SFTBatch(tokens, targets, mask)


class DensityRatioJudge:
    """Scores a response by `beta (log strong(y | x) - log weak(y | x))`; `P = sigmoid(s_1 - s_2)`, free of any order.

    Each policy reads the text with its own tokenizer, chat template and lengths. The tokens of the two need not be the
    same: both sums are log-probabilities of the same text, but for what a model cuts and for other ways to spell it in
    tokens, which are left out. Means are over each model's own tokens.

    Args:
      strong, weak: the policies; the strong one may have criteria. Without a weak one the score is that of the strong
        one alone, by which a policy of which nothing is known but itself ranks its own samples.
      beta: multiplies the scores.
      length: of `LENGTHS`.
    """

    merge = "probability"  # the orders agree exactly

    def __init__(self, strong: PolicyReader, weak: PolicyReader | None, *, beta: float = 1.0, length: str = "sum"):
        if length not in LENGTHS:
            raise ValueError(f"length={length!r}, expected one of {LENGTHS}")
        self.strong, self.weak = strong, weak
        self.beta, self.length = beta, length

    def scored(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Scored:
        """The scores, and which responses were cut for one of the policies."""
        strong, *weak = (policy.log_probs(prompts, responses) for policy in self._policies)
        scores, cut = self._whole(strong), strong.cut
        for one in weak:
            scores, cut = scores - self._whole(one), cut | one.cut
        return Scored((self.beta * scores).astype(np.float32), cut)

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        check_lengths(prompts, first, second)
        scores, cut, _ = self.scored([*prompts, *prompts], [*first, *second])
        count = len(prompts)
        either = cut[:count] | cut[count:]
        # What differs only behind the cut has the same rows twice, whose scores agree but for the order of additions.
        pairs = zip(either, prompts, first, second, strict=True)
        same = [bool(was) and self._same(prompt, a, b) for was, prompt, a, b in pairs]
        gap = np.where(same, 0.0, scores[:count] - scores[count:]).astype(np.float32)
        return Judged(gap, -gap, self.merge, either)

    @property
    def _policies(self) -> list[PolicyReader]:
        return [policy for policy in (self.strong, self.weak) if policy is not None]

    def _whole(self, found: LogProbs) -> Float[np.ndarray, "N"]:
        sums = found.sums.astype(np.float64)
        return sums / found.tokens if self.length == "mean" else sums

    def _same(self, prompt: Prompt, first: str, second: str) -> bool:
        return all(policy.row(prompt, first).ids == policy.row(prompt, second).ids for policy in self._policies)


def _putting(text: str, tokenizer: Tokenizer) -> Callable[[Prompt], Prompt]:
    """Returns a function that puts a text before a prompt, in the way that the chat template allows."""
    if not text:
        return lambda prompt: prompt
    try:
        encode_prompt(tokenizer, (Turn("system", text), Turn("user", "")))
    except UserError:  # the template refuses the system's turn, or leaves it out
        return functools.partial(_opened, role="user", text=text)

    def put(prompt: Prompt) -> Prompt:
        if prompt[0].role == "system":
            return _opened(prompt, role="system", text=text)
        return (Turn("system", text), *prompt)

    return put


def _opened(prompt: Prompt, *, role: str, text: str) -> Prompt:
    """A prompt whose first turn of a role opens with a text."""
    i = [turn.role for turn in prompt].index(role)
    turn = prompt[i]._replace(content=f"{text}\n\n{prompt[i].content}")
    return (*prompt[:i], turn, *prompt[i + 1 :])
