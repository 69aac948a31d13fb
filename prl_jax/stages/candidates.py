"""Several responses to each prompt of a stage: sampled from policies, and judged among each other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from prl_jax.artifacts.cards import sampling_config
from prl_jax.errors import naming
from prl_jax.judges import Judge, Judged, ScoringJudge, judge_pairs
from prl_jax.runs.context import StageContext, sampling_of
from prl_jax.runs.models import Policy
from prl_jax.runs.pieces import Pieces, check_finite
from prl_jax.sampling import respond
from prl_jax.streams import candidate_key
from prl_jax.text.chat import Prompt


@dataclasses.dataclass(frozen=True)
class Candidates:
    """`K` sampled responses to each of `N` prompts.

    Attributes:
      texts: `texts[k][n]`.
      truncated: `[K, N]` bool, responses that ran out of room before a stop token.
    """

    texts: Sequence[Sequence[str]]
    truncated: Bool[np.ndarray, "K N"]

    @functools.cached_property
    def empty(self) -> Bool[np.ndarray, "K N"]:
        """Responses that say nothing."""
        return np.array([[not text.strip() for text in column] for column in self.texts], bool)

    @functools.cached_property
    def repeated(self) -> Bool[np.ndarray, "K N"]:
        """Responses that an earlier sample of their prompt has said already, and whole where they are whole."""
        out = np.zeros(self.truncated.shape, bool)
        for n in range(out.shape[1]):
            said: set[tuple[str, bool]] = set()
            for k, column in enumerate(self.texts):
                one = (column[n], bool(self.truncated[k, n]))
                out[k, n] = one in said
                said.add(one)
        return out

    @functools.cached_property
    def usable(self) -> Bool[np.ndarray, "K N"]:
        """Responses that can be anchors: whole, not empty, and each text once."""
        return ~(self.empty | self.truncated | self.repeated)


def sampled(context: StageContext, policies: Sequence[Policy], prompts: Sequence[Prompt], piece: Pieces) -> Candidates:
    """The section's number of samples of each policy to each prompt, those of the first policy first.

    Each sample is one piece a batch, and has random numbers of its own.
    """
    section, columns = context.section, []

    def sample(policy: Policy, number: int, first: int, part: Sequence[Prompt]) -> list[tuple[str, bool]]:
        assert policy.tokenizer is not None
        with naming(context.name):
            how = sampling_config(policy.card, policy.tokenizer, **sampling_of(section))
        texts, rollout = respond(
            policy.model,
            policy.tokenizer,
            part,
            config=how,
            key=candidate_key(context.key, number),
            max_prompt=policy.card.max_prompt,
            batch_size=section.batch_size,
            mesh=context.mesh,
            first_row=first,
        )
        check_finite(np.sum(rollout.logp, axis=1), f"{context.name}: log-probabilities of responses")
        return list(zip(texts, rollout.truncated.tolist(), strict=True))

    for policy in policies:
        for _ in range(section.samples):
            number = len(columns)
            make = functools.partial(sample, policy, number)
            columns.append(piece.each(f"sample_{number}", prompts, section.batch_size, make))
    return Candidates(
        [[text for text, _ in column] for column in columns],
        np.array([[cut for _, cut in column] for column in columns], bool),
    )


class Met(NamedTuple):
    """Comparisons of `K` responses to each of `N` prompts with each other.

    Attributes:
      z_12: `[K, K, N]` float32 logits of "slot 1 wins", the row's response in slot 1 and the column's in slot 2; the
        same pair with the slots exchanged stands on the other side of the diagonal, which holds 0.
      wins: `[K, K, N]` float64 probabilities that the row's response beats the column's, from both orders; 0 on the
        diagonal.
      cuts: how often the judge did not see all of prompt and responses.
    """

    z_12: Float[np.ndarray, "K K N"]
    wins: Float[np.ndarray, "K K N"]
    cuts: int


def rankings(count: int, *, scores: bool) -> int:
    """How often `scored` or `compared` ask for all prompts, of a judge that scores responses or compares them."""
    return count if scores else count * (count - 1) // 2


def scored(
    judge: ScoringJudge, prompts: Sequence[Prompt], candidates: Candidates, size: int, piece: Pieces, prefix: str = ""
) -> tuple[Float[np.ndarray, "K N"], int]:
    """`[K, N]` scores, `size` prompts at a time, and how often the judge did not see all of prompt and response.

    `prefix` tells the pieces of this judge from those of another one.
    """
    rows = list(zip(prompts, *candidates.texts, strict=True))

    def score(i: int, _: int, part: Sequence[tuple]) -> list[tuple[float, bool]]:
        scores, cut, _ = judge.scored([row[0] for row in part], [row[1 + i] for row in part])
        check_finite(scores, "the judge's scores")
        return list(zip(scores.tolist(), cut.tolist(), strict=True))

    found = [
        piece.each(f"{prefix}score_{i}", rows, size, functools.partial(score, i)) for i in range(len(candidates.texts))
    ]
    scores, cut = np.moveaxis(np.array(found, np.float64), -1, 0)
    return scores, int(cut.sum())


def compared(
    judge: Judge, prompts: Sequence[Prompt], candidates: Candidates, size: int, piece: Pieces, prefix: str = ""
) -> Met:
    """Every two responses to a prompt in both orders, `size` prompts at a time; `prefix` as of `scored`."""
    rows, count = list(zip(prompts, *candidates.texts, strict=True)), len(candidates.texts)

    def compare(i: int, j: int, _: int, part: Sequence[tuple]) -> list[tuple[float, float, bool]]:
        judged = judge_pairs(judge, *([row[k] for row in part] for k in (0, 1 + i, 1 + j)))
        check_finite(judged.p_first, "the judge's probabilities")
        cut = np.zeros(len(part), bool) if judged.cut is None else judged.cut
        return list(zip(judged.z_12.tolist(), judged.z_21.tolist(), cut.tolist(), strict=True))

    z_12, wins, cuts = np.zeros((count, count, len(prompts)), np.float32), np.zeros((count, count, len(prompts))), 0
    for i in range(count):
        for j in range(i):
            found = np.array(
                piece.each(f"{prefix}wins_{i}_{j}", rows, size, functools.partial(compare, i, j)), np.float64
            )
            z_12[i, j], z_12[j, i] = found[:, 0], found[:, 1]
            p = Judged(z_12[i, j], z_12[j, i], judge.merge).p_first
            wins[i, j], wins[j, i] = p, 1.0 - p
            cuts += int(found[:, 2].sum())
    return Met(z_12, wins, cuts)
