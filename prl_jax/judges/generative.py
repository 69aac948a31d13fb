"""The generative pairwise reward model as a judge: reads both responses, answers with a verdict token."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from prl_jax.errors import UserError
from prl_jax.judges.base import Judged, check_lengths, in_batches, text_sizes
from prl_jax.losses.preference import SPACES
from prl_jax.models import Decoder, branch_log_probs, verdict_log_probs
from prl_jax.models.attention import BRANCHES, choose
from prl_jax.text.chat import Prompt
from prl_jax.text.judging import JudgeRow, JudgeTemplate, encode_judge_row, verdict_ids
from prl_jax.text.padding import pad_rows, static_length
from prl_jax.text.tokenizer import Tokenizer
from prl_jax.types import TokenRows

# Rows that both orders share have fewer tokens, but attention over longer rows takes more time. So they are shared
# where a judge's row has so many tokens at least, and where no more than this share of all tokens is left.
_SHORTEST, _SHARED = 128, 0.8


def trained_merge(form: str) -> str:
    """How a judge that was trained in this form merges its two orders: the antisymmetric form fits the mean of their
    logits, and "both_orders" a probability for each."""
    return "logit" if form == "antisymmetric" else "probability"


class GenerativeJudge:
    """Asks a language model, in both orders.

    The logit of a verdict is restricted to the two verdict tokens; what probability they leave to other tokens is
    reported by `verdict_mass`. Responses that are the same as far as a row holds them are even, whatever it would say.

    Args:
      model: a language model.
      tokenizer: of the model.
      template: how a pair is put to it; its verdict words must be single tokens, or a `UserError` says so here.
      merge: how the two orders become one answer, see `Judged`; a judge is asked as it was trained (`trained_merge`).
      max_length: static length of a row.
      batch_size: rows of one forward pass; half as many where both orders share one.
      on_long: "truncate" (a row that is too long loses the beginning of its prompt) or "error".
      mesh: cuts the rows of a forward pass over its devices.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        template: JudgeTemplate,
        *,
        max_length: int,
        merge: str = "probability",
        batch_size: int = 256,
        on_long: str = "truncate",
        mesh: Mesh | None = None,
    ):
        if merge not in SPACES:
            raise UserError(f"a judge's merge is {merge!r}, expected one of {', '.join(SPACES)}")
        self.model, self.tokenizer, self.template, self.merge = model, tokenizer, template, merge
        self.max_length, self.batch_size, self.on_long, self.mesh = max_length, batch_size, on_long, mesh
        self.verdicts = verdict_ids(tokenizer, template)

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        if self._shares(prompts, first, second):
            (z_12, cut_12), (z_21, cut_21) = (_logits(*order) for order in self._branches(prompts, first, second))
            return Judged(z_12, z_21, self.merge, cut_12 | cut_21)
        count = len(prompts)
        z, cut = _logits(*self._log_probs([*prompts, *prompts], [*first, *second], [*second, *first]))
        return Judged(z[:count], z[count:], self.merge, cut[:count] | cut[count:])

    def one_order(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        """As `OneOrderJudge` has it."""
        z, cut = _logits(*self._log_probs(prompts, first, second))
        return Judged(z, -z, self.merge, cut)

    def verdict_mass(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> Float[np.ndarray, "N"]:
        """`[N]` probability of the two verdict tokens together, in the order given."""
        return np.exp(self._log_probs(prompts, first, second)[0]).sum(-1)

    def _shares(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> bool:
        """Whether it pays to read what both orders begin with once: told by the longest row of each batch."""
        check_lengths(prompts, first, second)
        # How far a window looks back is counted in places of the row, where the second order stands behind the first.
        # The kernels of accelerators know no branches.
        decoder = self.model.config
        fused = choose(decoder.attention, decoder.attending(self.max_length))[0] in ("cudnn", "splash")
        if self.max_length < _SHORTEST or any(decoder.local_layers) or fused:
            return False
        order, half = np.argsort(text_sizes(prompts, first, second), kind="stable"), max(self.batch_size // 2, 1)
        alone = together = 0
        for end in range(half, len(order) + half, half):
            i = order[min(end, len(order)) - 1]
            try:
                one, other = self._both(prompts[i], first[i], second[i])
            except UserError:  # a row that is too long; who reads them all names the first one
                return False
            alone += 2 * static_length(max(len(one.ids), len(other.ids)), self.max_length)
            both = len(one.ids) + len(other.ids) - _common(one, other)
            together += static_length(both, 2 * self.max_length)
        return together <= _SHARED * alone

    def _branches(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> list[tuple[Float[np.ndarray, "N 2"], Bool[np.ndarray, "N 2"]]]:
        """As `_log_probs` for each of both orders, which share a row."""

        def encode(index: Int[np.ndarray, "n"]) -> tuple[TokenRows, Bool[np.ndarray, "n 4"]]:
            pairs = [self._both(prompts[i], first[i], second[i]) for i in index]
            rows = both_orders(pairs, 2 * self.max_length, pad_id=self.tokenizer.pad_id)
            return rows, np.array([(a.truncated, a.even, b.truncated, b.even) for a, b in pairs], bool)

        forward = functools.partial(judge_both_orders, self.model, verdicts=self.verdicts)
        sizes, rows = text_sizes(prompts, first, second), max(self.batch_size // 2, 1)
        found, known = in_batches(forward, encode, len(prompts), rows, self.mesh, sizes)
        return [(found[:, order], known[:, 2 * order : 2 * order + 2]) for order in range(2)]

    def _both(self, prompt: Prompt, first: str, second: str) -> tuple[JudgeRow, JudgeRow]:
        return self._encode(prompt, first, second), self._encode(prompt, second, first)

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

    def _log_probs(self, prompts, first, second) -> tuple[Float[np.ndarray, "N 2"], Bool[np.ndarray, "N 2"]]:
        """Log-probabilities of the two verdicts; and whether a row was cut, and its responses are then the same."""
        check_lengths(prompts, first, second)

        def encode(index: Int[np.ndarray, "n"]) -> tuple[TokenRows, Bool[np.ndarray, "n 2"]]:
            encoded = [self._encode(prompts[i], first[i], second[i]) for i in index]
            ids, positions = [row.ids for row in encoded], [row.positions for row in encoded]
            rows = pad_rows(ids, self.max_length, pad_id=self.tokenizer.pad_id, positions=positions)
            return rows, np.array([(row.truncated, row.even) for row in encoded], bool)

        forward = functools.partial(judge_rows, self.model, verdicts=self.verdicts)
        sizes = text_sizes(prompts, first, second)
        return in_batches(forward, encode, len(prompts), self.batch_size, self.mesh, sizes)


def both_orders(pairs: Sequence[tuple[JudgeRow, JudgeRow]], length: int, *, pad_id: int) -> TokenRows:
    """Rows of both orders: what they begin with as a stem, and the rest of each as a branch (`attention.BRANCHES`).

    Args:
      pairs: of each comparison the rows of its two orders.
      length: static length, twice that of one order.
      pad_id: fills the padding.

    Returns:
      `[N, length]` numpy arrays, right-padded; every token has the position that it has in its own row.
    """
    stems = [_common(one, other) for one, other in pairs]
    joined = [(one.ids + other.ids[stem:], one.positions + other.positions[stem:])
              for stem, (one, other) in zip(stems, pairs, strict=True)]  # fmt: skip
    rows = pad_rows([ids for ids, _ in joined], length, pad_id=pad_id, positions=[places for _, places in joined])
    place, end = np.arange(length)[None], np.array([len(one.ids) for one, _ in pairs])[:, None]
    branch = (place >= np.array(stems)[:, None]).astype(np.int32) + (place >= end)
    segments: Any = np.where(rows.segments > 0, BRANCHES + branch, 0).astype(np.int32)
    return rows._replace(segments=segments)


def _common(one: JudgeRow, other: JudgeRow) -> int:
    """Tokens that two rows begin with, in the same positions; at least the last one of each is its own."""
    count = min(len(one.ids), len(other.ids)) - 1
    rows = [np.array([row.ids[:count], row.positions[:count]]) for row in (one, other)]
    differ = np.any(rows[0] != rows[1], axis=0)
    return int(np.argmax(differ)) if differ.any() else count


def _logits(
    log_probs: Float[np.ndarray, "N 2"], known: Bool[np.ndarray, "N 2"]
) -> tuple[Float[np.ndarray, "N"], Bool[np.ndarray, "N"]]:
    """`[N]` float32 logits of "slot 1 wins", 0 where a row shows the same response twice; and which rows were cut."""
    cut, even = known.T
    return np.where(even, 0.0, log_probs[:, 0] - log_probs[:, 1]).astype(np.float32), cut


@functools.partial(jax.jit, static_argnames="verdicts")
def judge_rows(model: Decoder, rows: TokenRows, verdicts: tuple[int, int]) -> Float[Array, "B 2"]:
    return verdict_log_probs(model, rows, verdicts)


@functools.partial(jax.jit, static_argnames="verdicts")
def judge_both_orders(model: Decoder, rows: TokenRows, verdicts: tuple[int, int]) -> Float[Array, "B 2 2"]:
    return branch_log_probs(model, rows, verdicts, branches=2)
