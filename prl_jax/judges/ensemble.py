"""Several judges as one: their mean, or a judgement that is the more careful the less they agree.

Source: Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization" (arXiv 2310.02743): the mean, the
worst case (`min`) and the mean less a share of the variance (`uwo`). Variances and deviations divide by the number of
members (ddof 0), so that one member alone has none.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from prl_jax.errors import UserError
from prl_jax.judges.base import CountingJudge, Judge, Judged, Scored, ScoringJudge, check_lengths, judge_pairs, logits
from prl_jax.text.chat import Prompt

Values = Float[np.ndarray, "K N"]
_CAREFUL = ("uwo", "lower_confidence")  # read the coefficient
_COMBINED: Mapping[str, Callable[[Combination, Values], Float[np.ndarray, "N"]]] = MappingProxyType(
    {
        "mean": lambda how, values: values.mean(0),
        "weighted": lambda how, values: np.asarray(how.weights) @ values / sum(how.weights),
        "min": lambda how, values: values.min(0),
        "uwo": lambda how, values: values.mean(0) - how.coefficient * values.var(0),
        "lower_confidence": lambda how, values: values.mean(0) - how.coefficient * values.std(0),
    }
)


@dataclasses.dataclass(frozen=True)
class Combination:
    """How the answers of several members become one.

    Attributes:
      kind: "mean", "weighted" (a mean), "min", "uwo" (the mean less `coefficient` variances) or "lower_confidence" (the
        mean less `coefficient` standard deviations).
      weights: one for each member, at least 0; of "weighted" alone. Their sum does not matter.
      coefficient: of "uwo" and "lower_confidence" alone.

    Raises:
      UserError: a value is none of these. The message begins with the key, `combine` for the kind.
    """

    kind: str = "mean"
    weights: tuple[float, ...] = ()
    coefficient: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _COMBINED:
            raise UserError(f"combine={self.kind!r}, expected one of {', '.join(map(repr, _COMBINED))}")
        if self.weights and self.kind != "weighted":
            raise UserError(f"weights={self.weights}: combine={self.kind!r} does not read them; leave them out")
        if self.kind == "weighted" and not (min(self.weights, default=-1) >= 0 and max(self.weights) > 0):
            raise UserError(f"weights={self.weights}, expected one for each member, at least 0, not all of them 0")
        if self.coefficient and self.kind not in _CAREFUL:
            raise UserError(f"coefficient={self.coefficient}: combine={self.kind!r} does not read it; leave it out")
        if self.kind in _CAREFUL and not self.coefficient > 0:
            raise UserError(f"coefficient={self.coefficient}, expected more than 0, such as 0.1")

    def __call__(self, values: Values) -> Float[np.ndarray, "N"]:
        """One value from those of all members."""
        return _COMBINED[self.kind](self, values)


class EnsembleJudge:
    """Judges that are asked together about pairs.

    A member's answer is its probability from both orders, merged as that member merges them; the ensemble itself has no
    order. The combination takes the members' margins `P - 1/2`, from the side of either response: what it leaves above
    0 for response 1, less what it leaves for response 2, is the margin of the ensemble. So the answer on exchanged
    responses is the opposite one, whatever the combination: a mean is the mean probability; the worst case is the
    margin that all members grant to the same response, and even where they name different winners; what is subtracted
    for disagreement brings an answer nearer to even, and never beyond.

    Args:
      members: at least one.
      combine: how their answers become one.
    """

    merge = "probability"  # the orders agree exactly

    def __init__(self, members: Sequence[Judge], combine: Combination):
        if combine.weights and len(combine.weights) != len(members):
            raise UserError(f"weights={combine.weights}, expected {len(members)}, one for each member")
        self.members, self.combine = members, combine

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        check_lengths(prompts, first, second)
        return self._combined([member(prompts, first, second) for member in self.members], len(prompts))

    def one_order(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
        """As `OneOrderJudge` has it, of each member."""
        return self._combined(
            [judge_pairs(member, prompts, first, second, one_order=True) for member in self.members], len(prompts)
        )

    def _combined(self, judged: Sequence[Judged], count: int) -> Judged:
        margins = np.stack([_margin(one) for one in judged])
        z = logits(0.5 + np.maximum(self.combine(margins), 0) - np.maximum(self.combine(-margins), 0))
        cut = np.any([one.cut for one in judged if one.cut is not None] or np.zeros((1, count), bool), axis=0)
        return Judged(z, -z, self.merge, cut, margins.std(0))

    def counters(self) -> Mapping[str, float]:
        """The sums of what its members count."""
        counts = [member.counters() for member in self.members if isinstance(member, CountingJudge)]
        return {
            name: float(sum(one.get(name, 0) for one in counts)) for name in dict.fromkeys(itertools.chain(*counts))
        }


class ScoringEnsembleJudge(EnsembleJudge):
    """Judges that all have scores. The scores are combined as they are, so the members should have one scale. Pairs are
    judged by the members' probabilities nevertheless, which always have.

    Args:
      members: at least one.
      combine: how their answers become one.
    """

    def __init__(self, members: Sequence[ScoringJudge], combine: Combination):
        super().__init__(members, combine)
        self.scoring = members

    def scored(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Scored:
        """The combined scores, and which responses were cut for a member."""
        scored = [member.scored(prompts, responses) for member in self.scoring]
        scores = np.stack([one.scores.astype(np.float64) for one in scored])
        cut = np.any([one.cut for one in scored], axis=0)
        return Scored(self.combine(scores).astype(np.float32), cut, scores.std(0))


def ensemble(members: Sequence[Judge], combine: Combination) -> EnsembleJudge:
    """The members as one judge, which has scores where all of them have."""
    scoring = [member for member in members if isinstance(member, ScoringJudge)]
    return ScoringEnsembleJudge(scoring, combine) if len(scoring) == len(members) else EnsembleJudge(members, combine)


def _margin(judged: Judged) -> Float[np.ndarray, "N"]:
    """`[N]` float64, `P(response 1 is better) - 1/2` as `Judged.p_first` has it, without the roundings of float32."""
    z_12, z_21 = judged.z_12.astype(np.float64), judged.z_21.astype(np.float64)
    if judged.merge == "logit":
        return 0.5 * np.tanh(0.25 * (z_12 - z_21))
    return 0.25 * (np.tanh(0.5 * z_12) - np.tanh(0.5 * z_21))
