"""Pairs, or demonstrations, out of several judged responses to one prompt.

A selection is a frozen dataclass whose fields are keys of a config, as a piece is. All selections of pairs pass one
gate, `_Pairs.__call__`: a pair has two different texts, its first response is ahead of its second by more than
`min_gap`, and no two pairs have the same texts. So every selection of pairs has the key `min_gap`, with 0 it still
refuses ties, and those that can return any number of pairs have `keep` beside it. A limit outside of the selections
would be a key that means nothing to a demonstration, or to the one pair of best and worst.

Left out: which responses may be selected at all. A stage passes the usable ones (whole, not empty) as the group.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from prl_jax.methods.checks import check_range, check_word

RANKINGS = ("first_round", "tournament")
_DIGITS = 12  # of win rates: those that differ by less are equal but for rounding


def wins_of(scores: Float[np.ndarray, "K *rest"]) -> Float[np.ndarray, "K K *rest"]:
    """Probabilities that the row's response beats the column's, by scores: the sigmoid of the gap."""
    return 0.5 * (1.0 + np.tanh(0.5 * (scores[:, None] - scores[None])))


class JudgedGroup(NamedTuple):
    """`K` responses to one prompt, and what judges say of them.

    Attributes:
      responses: `K` texts.
      wins: `[K, K]` probabilities that the row's response beats the column's, from both orders; 0.5 on the diagonal.
      scores: `[K]` scores of a judge that scores single responses, or None.
    """

    responses: tuple[str, ...]
    wins: Float[np.ndarray, "K K"]
    scores: Float[np.ndarray, "K"] | None = None

    @classmethod
    def scored(cls, responses: Sequence[str], scores: Float[np.ndarray, "K"]) -> JudgedGroup:
        """The group of a judge that only scores: a response wins with the sigmoid of the gap of two scores."""
        return cls(tuple(responses), wins_of(scores), scores)

    @property
    def different(self) -> Bool[np.ndarray, "K K"]:
        """The pairs whose texts differ."""
        texts = np.array(self.responses, object)
        return texts[:, None] != texts[None, :]

    def win_rates(self, include_self: bool = False) -> Float[np.ndarray, "K"]:
        """`[K]` mean probabilities to win against the other responses; 0.5 where there is no other.

        They sum to `K / 2` where `wins[i, j] + wins[j, i] = 1`.

        Args:
          include_self: whether each response is among its own opponents, as an even match. The released code of SPPO
            (arXiv 2405.00675) has it so: distances from 0.5 shrink by `(K - 1) / K`.
        """
        wins = np.asarray(self.wins, np.float64)
        own = np.full(len(wins), 0.5)
        others = wins.sum(axis=1) - wins.diagonal()
        rates = (others + own) / len(wins) if include_self else others / (len(wins) - 1) if len(wins) > 1 else own
        return np.round(rates, _DIGITS)

    @property
    def standings(self) -> Float[np.ndarray, "K"]:
        """`[K]` the larger the better: the scores where there are scores, else the win rates."""
        return self.win_rates() if self.scores is None else self.scores

    @property
    def standing_gaps(self) -> Float[np.ndarray, "K K"]:
        """By how much the row's response stands above the column's."""
        return self.standings[:, None] - self.standings[None, :]

    @property
    def margins(self) -> Float[np.ndarray, "K K"]:
        """By how much the row's response beats the column's when the two meet: the gap of their scores where there are
        scores, else P(the row's wins) - P(the column's wins)."""
        return self.wins - self.wins.T if self.scores is None else self.standing_gaps

    @property
    def ranked(self) -> Int[np.ndarray, "K"]:
        """The responses from the best to the worst standing; equal ones keep their order."""
        return np.argsort(-self.standings, kind="stable")


class Selected(NamedTuple):
    """Two responses of a group by their index, or one.

    Attributes:
      better: the preferred response, or the demonstration.
      worse: the other response of a pair; None where `better` is a demonstration.
    """

    better: int
    worse: int | None = None


@runtime_checkable
class Selection(Protocol):
    """Chooses pairs, or demonstrations, among the responses of a group.

    Attributes:
      kind: its name in configs.
      needs: the judges that it has to have: `("any",)`, or `("pairs", "scores")` for one that compares two responses,
        whose answers are `wins`, and another one that scores, whose answers are `scores`.
      output: "pairs" or "demonstrations".
      least_group: how many responses to a prompt it is meant for at least. Of fewer it selects what it can.
    """

    kind: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    output: ClassVar[str]
    least_group: ClassVar[int]

    def __call__(self, group: JudgedGroup, rng: np.random.Generator) -> list[Selected]:
        """The selected ones, most wanted first; none is possible. The same generator gives the same ones."""
        ...


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Selections of pairs: the gate that all pass."""

    needs: ClassVar[tuple[str, ...]] = ("any",)
    output: ClassVar[str] = "pairs"
    least_group: ClassVar[int] = 2
    min_gap: float = 0.0

    def __post_init__(self) -> None:
        check_range(self, ("min_gap",), 0.0, math.inf)

    def candidates(self, group: JudgedGroup, rng: np.random.Generator) -> Int[np.ndarray, "P 2"]:
        """Pairs, the better response first, in the order in which they are wanted; the gate drops some."""
        raise NotImplementedError

    def gaps(self, group: JudgedGroup) -> Float[np.ndarray, "K K"]:
        """By how much the row's response is better than the column's, as this selection sees it."""
        return group.standing_gaps

    def __call__(self, group: JudgedGroup, rng: np.random.Generator) -> list[Selected]:
        if len(group.responses) < 2:
            return []
        pairs = self.candidates(group, rng)
        better, worse = pairs.T
        fit = group.different[better, worse] & (self.gaps(group)[better, worse] > self.min_gap)
        found: dict[frozenset[str], Selected] = {}  # each pair of texts once, however often its texts were sampled
        for i, j in pairs[fit].tolist():
            found.setdefault(frozenset((group.responses[i], group.responses[j])), Selected(i, j))
        return list(found.values())


@dataclasses.dataclass(frozen=True)
class _SeveralPairs(_Pairs):
    """Selections that can return any number of pairs."""

    keep: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, ("keep",), 0, math.inf)

    def __call__(self, group: JudgedGroup, rng: np.random.Generator) -> list[Selected]:
        return super().__call__(group, rng)[: self.keep or None]


def _widest_first(pairs: Int[np.ndarray, "P 2"], gaps: Float[np.ndarray, "K K"]) -> Int[np.ndarray, "P 2"]:
    """The pairs by falling gap; equal ones keep their order."""
    return pairs[np.argsort(-gaps[pairs[:, 0], pairs[:, 1]], kind="stable")]


@dataclasses.dataclass(frozen=True)
class BestWorst(_Pairs):
    """The best response and the worst one: by scores where the judge scores, else by win rates.

    Attributes:
      min_gap: the two scores or win rates differ by more than this.
    """

    kind: ClassVar[str] = "best_worst"

    def candidates(self, group, rng):
        return np.array([[group.standings.argmax(), group.standings.argmin()]])


@dataclasses.dataclass(frozen=True)
class All(_SeveralPairs):
    """Every pair of different responses, the likely winner of the two first and the clearest pairs first.

    Each pair is judged by itself: where the judge is not transitive, a cycle gives all of its pairs. Even matches
    (P exactly 0.5) have no winner and are dropped.

    Attributes:
      min_gap: the two scores differ by more than this or, where the judge compares, the two probabilities to win, which
        is `2 P - 1`.
      keep: pairs of a prompt at most, those with the widest gap; 0 for all.
    """

    kind: ClassVar[str] = "all"

    def gaps(self, group):
        return group.margins

    def candidates(self, group, rng):
        return _widest_first(np.argwhere(group.margins > 0), group.margins)


@dataclasses.dataclass(frozen=True)
class Adjacent(_SeveralPairs):
    """Neighbours in rank, by scores where the judge scores, else by win rates.

    Attributes:
      min_gap: the two scores or win rates differ by more than this.
      keep: pairs of a prompt at most, those with the widest gap; 0 for all.
    """

    kind: ClassVar[str] = "adjacent"

    def candidates(self, group, rng):
        return _widest_first(np.stack([group.ranked[:-1], group.ranked[1:]], axis=1), group.standing_gaps)


@dataclasses.dataclass(frozen=True)
class Halves(_SeveralPairs):
    """A winner of the upper half of the ranking and a loser of the lower half, drawn uniformly, without replacement.

    Of an odd number of responses the middle one is in neither half.

    Attributes:
      min_gap: the two scores or win rates differ by more than this.
      keep: pairs of a prompt at most; 0 for all.

    Source: UPO, arXiv 2409.11212, which samples at least 4 responses.
    """

    kind: ClassVar[str] = "halves"
    least_group: ClassVar[int] = 4
    keep: int = 1

    def candidates(self, group, rng):
        half = len(group.responses) // 2
        upper, lower = group.ranked[:half], group.ranked[-half:]
        return rng.permutation(np.stack([np.repeat(upper, half), np.tile(lower, half)], axis=1))


@dataclasses.dataclass(frozen=True)
class Rejection(_Pairs):
    """Matches between responses that stand for the optimal policy: statistical rejection sampling, then a ranking.

    The accepted responses (see `accept`) are paired at random. The optimum is that of the scores where the judge
    scores, else that of the win rates against the group.

    Attributes:
      min_gap: the two scores differ by more than this or, where the judge compares, the two probabilities to win.
      beta: the coefficient of the KL divergence in the objective whose optimum is meant.
      accepted: responses that are accepted; all, where there are fewer.
      ranking: "first_round", in which everybody plays once, or "tournament", in which winners play on until one is
        left: one pair fewer than there are responses. Even matches make no pair; the lower index plays on.

    Source: RSO, arXiv 2309.06657, which samples 64 responses; the released sweep depends on their order.
    """

    kind: ClassVar[str] = "rejection"
    beta: float = 0.5
    accepted: int = 8
    ranking: str = "first_round"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, ("beta",), 0.0, math.inf, above=True)
        check_range(self, ("accepted",), 2, math.inf)
        check_word(self, "ranking", RANKINGS)

    def gaps(self, group):
        return group.margins

    def accept(self, rewards: Float[np.ndarray, "K"], rng: np.random.Generator) -> Int[np.ndarray, "A"]:
        """The responses that stand for `policy * exp(reward / beta)`, in the order in which they are accepted.

        A pass goes over the shuffled responses and accepts each with probability `exp((r - r_max) / beta)`, where
        `r_max` is the largest reward of those in the pass, which is accepted for sure. The next pass goes over the
        remainder, until there are enough.
        """
        remainder, chosen = rng.permutation(len(rewards)), np.zeros(0, int)
        while len(chosen) < self.accepted and len(remainder):
            behind = rewards[remainder] - rewards[remainder].max()
            taken = rng.random(len(remainder)) < np.exp(behind / self.beta)
            chosen, remainder = np.append(chosen, remainder[taken]), remainder[~taken]
        return chosen[: self.accepted]

    def candidates(self, group, rng):
        players, rounds = rng.permutation(self.accept(group.standings, rng)), []
        while len(players) > 1 and (self.ranking == "tournament" or not rounds):
            first, second = players[:-1:2], players[1::2]
            margin = group.margins[first, second]
            ahead = (margin > 0) | ((margin == 0) & (first < second))
            winners = np.where(ahead, first, second)
            rounds.append(np.stack([winners, np.where(ahead, second, first)], axis=1))
            players = np.append(players[2 * len(first) :], winners)  # who was left over plays in the next round
        return np.concatenate(rounds)


@dataclasses.dataclass(frozen=True)
class RankThenScore(_Pairs):
    """The best and the worst response as the judge of pairs ranks them, if the judge that scores agrees.

    Attributes:
      min_gap: the best response's score is above the worst one's by more than this.

    Source: UnifiedReward, arXiv 2503.05236.
    """

    kind: ClassVar[str] = "rank_then_score"
    needs: ClassVar[tuple[str, ...]] = ("pairs", "scores")

    def gaps(self, group):
        if group.scores is None:
            raise ValueError("rank_then_score: the group has no scores")
        return group.standing_gaps

    def candidates(self, group, rng):
        rates = group.win_rates()
        return np.array([[rates.argmax(), rates.argmin()]])


@dataclasses.dataclass(frozen=True)
class Softmax:
    """One response as a demonstration, drawn with probability `softmax(r / temperature)` over the group.

    `r` are the scores where the judge scores, else the win rates. With K responses of a policy p, demonstrations follow
    `p'(y) = p(y) E[K e^r(y) / (e^r(y) + sum of e^r over the K - 1 others)]`; with K = 1 they follow p.

    Attributes:
      temperature: what rewards are divided by; 0 takes the best response (RAFT, arXiv 2304.06767).

    Source: self-consuming generative models with curated data, arXiv 2407.09499.
    """

    kind: ClassVar[str] = "softmax"
    needs: ClassVar[tuple[str, ...]] = ("any",)
    output: ClassVar[str] = "demonstrations"
    least_group: ClassVar[int] = 1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, ("temperature",), 0.0, math.inf)

    def probabilities(self, group: JudgedGroup) -> Float[np.ndarray, "K"]:
        """The probability of each response to be the demonstration."""
        behind = group.standings - group.standings.max()
        if self.temperature == 0:
            return np.eye(len(behind))[behind.argmax()]
        weights = np.exp(behind / self.temperature)
        return weights / weights.sum()

    def __call__(self, group: JudgedGroup, rng: np.random.Generator) -> list[Selected]:
        if not group.responses:
            return []
        return [Selected(rng.choice(len(group.responses), p=self.probabilities(group)))]


# Kind -> class. A new selection is one more class here.
SELECTIONS: Mapping[str, type[Selection]] = MappingProxyType(
    {cls.kind: cls for cls in (BestWorst, All, Adjacent, Halves, Rejection, RankThenScore, Softmax)}
)
