"""The generative pairwise reward model as a judge: reads both responses, answers with a verdict token."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from prl_jax.errors import UserError
from prl_jax.judges.base import Judged, check_lengths, in_batches, text_sizes
from prl_jax.judges.trees import joined, tree_rows, trees
from prl_jax.losses.preference import SPACES
from prl_jax.models import Decoder, branch_log_probs, verdict_log_probs
from prl_jax.models.attention import choose
from prl_jax.text.chat import Prompt
from prl_jax.text.judging import JudgeRow, JudgeTemplate, encode_judge_row, verdict_ids
from prl_jax.text.padding import pad_rows, static_length
from prl_jax.text.tokenizer import Tokenizer
from prl_jax.types import TokenRows

# Trees have fewer tokens than their rows, but attention over longer rows takes more time. So rows share one where a
# judge's row has so many tokens at least, and where no more than this share of all tokens is left.
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
      batch_size: rows of one forward pass; fewer, by how many share one, where several do (`trees`).
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
        check_lengths(prompts, first, second)
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

    def _log_probs(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> tuple[Float[np.ndarray, "N 2"], Bool[np.ndarray, "N 2"]]:
        """Log-probabilities of the two verdicts; and whether a row was cut, and its responses are then the same."""
        check_lengths(prompts, first, second)
        sizes = text_sizes(prompts, first, second)
        if (grown := self._grown(prompts, first, second, sizes)) is not None:
            return self._branches(prompts, first, second, grown)

        def encode(index: Int[np.ndarray, "n"]) -> tuple[TokenRows, Bool[np.ndarray, "n 2"]]:
            encoded = [self._encode(prompts[i], first[i], second[i]) for i in index]
            ids, positions = [row.ids for row in encoded], [row.positions for row in encoded]
            rows = pad_rows(ids, self.max_length, pad_id=self.tokenizer.pad_id, positions=positions)
            return rows, np.array([(row.truncated, row.even) for row in encoded], bool)

        forward = functools.partial(judge_rows, self.model, verdicts=self.verdicts)
        return in_batches(forward, encode, len(prompts), self.batch_size, self.mesh, sizes)

    def _grown(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str], sizes: Sequence[int]
    ) -> list[list[int]] | None:
        """The trees that the rows make, where it pays to read them so, else None: told by the longest of each batch."""
        # How far a window looks back is counted in places of the row, where a branch stands behind the others. The
        # kernels of accelerators know no branches.
        decoder = self.model.config
        fused = choose(decoder.attention, decoder.attending(self.max_length))[0] in ("cudnn", "splash")
        if self.max_length < _SHORTEST or any(decoder.local_layers) or fused:
            return None
        grown = trees(prompts, first)
        most = max(map(len, grown))
        if most == 1:
            return None
        encode = lambda i: self._encode(prompts[i], first[i], second[i])  # noqa: E731
        of_tree = [sum(sizes[i] for i in tree) for tree in grown]
        try:
            alone = _tokens(sizes, lambda i: len(encode(i).ids), self.batch_size, self.max_length)
            together = _tokens(
                of_tree,
                lambda tree: len(joined([encode(i) for i in grown[tree]])[0]),
                max(self.batch_size // most, 1),
                most * self.max_length,
            )
        except UserError:  # a row that is too long; who reads them all names the first one
            return None
        return grown if together <= _SHARED * alone else None

    def _branches(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str], grown: Sequence[Sequence[int]]
    ) -> tuple[Float[np.ndarray, "N 2"], Bool[np.ndarray, "N 2"]]:
        """As `_log_probs`, of rows in trees."""
        most = max(map(len, grown))

        def encode(index: Int[np.ndarray, "n"]) -> tuple[TokenRows, Bool[np.ndarray, "n K"]]:
            rows = [[self._encode(prompts[i], first[i], second[i]) for i in grown[tree]] for tree in index]
            known = np.zeros((len(rows), most, 2), bool)
            for of_tree, tree in zip(known, rows, strict=True):
                of_tree[: len(tree)] = [(row.truncated, row.even) for row in tree]
            together = tree_rows(rows, most * self.max_length, pad_id=self.tokenizer.pad_id)
            return together, known.reshape(len(rows), -1)

        forward = functools.partial(judge_trees, self.model, verdicts=self.verdicts, branches=most)
        sizes = text_sizes(prompts, first, second)
        of_tree, rows = [sum(sizes[i] for i in tree) for tree in grown], max(self.batch_size // most, 1)
        found, known = in_batches(forward, encode, len(grown), rows, self.mesh, of_tree)
        known = known.reshape(found.shape)
        values, flags = np.zeros((len(prompts), 2), np.float32), np.zeros((len(prompts), 2), bool)
        for tree, of_branches, known_of in zip(grown, found, known, strict=True):
            values[tree], flags[tree] = of_branches[: len(tree)], known_of[: len(tree)]
        return values, flags

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


def _tokens(sizes: Sequence[int], length: Callable[[int], int], batch_size: int, most: int) -> int:
    """Tokens, padding included, of rows in batches of about the same length, by the longest row of each."""
    order = np.argsort(sizes, kind="stable")
    ends = [min(end, len(order)) for end in range(batch_size, len(order) + batch_size, batch_size)]
    rows = np.diff([0, *ends]).tolist()
    return sum(count * static_length(length(int(order[end - 1])), most) for count, end in zip(rows, ends, strict=True))


def _logits(
    log_probs: Float[np.ndarray, "N 2"], known: Bool[np.ndarray, "N 2"]
) -> tuple[Float[np.ndarray, "N"], Bool[np.ndarray, "N"]]:
    """`[N]` float32 logits of "slot 1 wins", 0 where a row shows the same response twice; and which rows were cut."""
    cut, even = known.T
    return np.where(even, 0.0, log_probs[:, 0] - log_probs[:, 1]).astype(np.float32), cut


@functools.partial(jax.jit, static_argnames="verdicts")
def judge_rows(model: Decoder, rows: TokenRows, verdicts: tuple[int, int]) -> Float[Array, "B 2"]:
    return verdict_log_probs(model, rows, verdicts)


@functools.partial(jax.jit, static_argnames=("verdicts", "branches"))
def judge_trees(model: Decoder, rows: TokenRows, verdicts: tuple[int, int], branches: int) -> Float[Array, "B M 2"]:
    return branch_log_probs(model, rows, verdicts, branches)
