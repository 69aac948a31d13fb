"""Rounds: stages that repeat, each policy sampled for the pairs that train the next one; and the table of methods that
work so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from prl_jax.stages import config as c

Section = dict[str, Any]


class Round(NamedTuple):
    """Where a round of several stands.

    Attributes:
      number: from 1 on.
      policies: the policies so far, the newest first; it is sampled, and the next one starts from it. The last of them
        is the one that the rounds started from.
      pairs: the stages of pairs so far, that of this round first.
    """

    number: int
    policies: tuple[str, ...]
    pairs: tuple[str, ...]

    @property
    def policy(self) -> str:
        return self.policies[0]

    @property
    def start(self) -> str:
        return self.policies[-1]

    @property
    def made(self) -> Section:
        """The source of the pairs of this round."""
        return c.source(kind="stage", path=self.pairs[0])


def rounds(
    count: int,
    pairs: Callable[[Round], Section],
    train: Callable[[Round], Section],
    *,
    start: str = "sft",
    replay: float = 0.0,
) -> dict[str, Section]:
    """The stages `pairs_1, direct_1, pairs_2, direct_2, ...`.

    A run of them needs no outer loop: what is finished is skipped, what was interrupted continues.

    Args:
      count: of rounds.
      pairs: a round -> the section of its stage of pairs.
      train: a round -> the section of the stage that trains on them.
      start: the policy that the first round samples.
      replay: the share of the pairs of a round, from the second one on, that are of earlier rounds.
    """
    stages: dict[str, Section] = {}
    policies: tuple[str, ...] = (start,)
    made: tuple[str, ...] = ()
    for number in range(1, count + 1):
        made = (f"pairs_{number}", *made)
        here = Round(number, policies, made)
        replayed = dict(replay=made[1:], replay_share=replay) if replay and made[1:] else {}
        stages[made[0]] = {**pairs(here), **replayed}
        stages[f"direct_{number}"] = train(here)
        policies = (f"direct_{number}", *policies)
    return stages


class Iterative(NamedTuple):
    """A published method that works in rounds.

    Attributes:
      pairs: a round -> keys of its stage of pairs that the method sets.
      train: a round -> the row of `prl_jax.methods.DIRECT` that trains ("" for supervised training on demonstrations),
        and further keys of that stage.
      judge: whom it asks by default: "genrm" (pairs), "bt" (scores), or "own" for the log-ratios of its own policies.
      rounds: how many by default.
      replay: see `rounds`.
      title, source, evidence, remark: as of `prl_jax.methods.Preset`.
      agrees: whether a pair carries how far the policy before agrees with the ranking.
      misses: the part that it needs and that is not there yet; "" where it runs.
    """

    pairs: Callable[[Round], Section]
    train: Callable[[Round], tuple[str, Section]]
    judge: str
    title: str
    source: str
    evidence: str
    remark: str
    rounds: int = 2
    replay: float = 0.0
    agrees: bool = False
    misses: str = ""


def _keys(**values: Any) -> Callable[[Round], Section]:
    """The same keys in each round."""
    return lambda here: dict(values)


def _against_previous(method: str, **values: Any) -> Callable[[Round], tuple[str, Section]]:
    return lambda here: (method, dict(references=(here.policy,), **values))


def _supervised(here: Round) -> tuple[str, Section]:
    """Supervised training."""
    return "", {}


def _inpo(here: Round) -> tuple[str, Section]:
    """The reference with `tau / eta` of the weight, the policy that sampled with the remainder."""
    if here.policy == here.start:
        return "ipo", dict(length="sum", references=(here.start,))
    return "ipo", dict(length="sum", references=(here.start, here.policy), reference_weights=(1 / 3, 2 / 3))


def _mnpo(here: Round) -> tuple[str, Section]:
    """The reference with a third of the weight, up to two earlier policies with the remainder."""
    history = here.policies[:-1][:2]
    if not history:
        return "ipo", dict(length="sum", references=(here.start,))
    share = 2 / 3 / len(history)
    return "ipo", dict(
        length="sum", references=(here.start, *history), reference_weights=(1 / 3, *[share] * len(history))
    )


ITERATIVE: Mapping[str, Iterative] = MappingProxyType(
    {
        "sppo": Iterative(
            _keys(samples=5),
            _against_previous("sppo", loss=dict(beta=0.1)),
            "genrm",
            "SPPO",
            "arXiv 2405.00675",
            "confirmed",
            "Log-ratios to the policy that sampled, fitted to win rates in its group; the paper's beta is 0.001, for "
            "responses of hundreds of tokens.",
        ),
        "gpo": Iterative(
            _keys(samples=5),
            _against_previous("sppo", label="score", loss=dict(even=0.0)),
            "genrm",
            "GPO",
            "arXiv 2410.02197",
            "confirmed",
            "SPPO on skew scores instead of win rates.",
            misses="skew scores of a preference embedding (GPM), which no kind of judge gives yet",
        ),
        "dno": Iterative(
            _keys(samples=4, select=dict(kind="all")),
            _against_previous("dpo", label="win_gap"),
            "genrm",
            "DNO",
            "arXiv 2404.03715",
            "confirmed",
            "Every pair, with the sigmoid of the difference of win rates as its label.",
        ),
        "dno_prct": Iterative(
            _keys(samples=5, include_reference=True, select=dict(kind="best_worst", min_gap=0.1)),
            _against_previous("dpo"),
            "genrm",
            "DNO-Prct",
            "arXiv 2404.03715",
            "confirmed",
            "The reference answer competes; pairs with a large margin, a part of them of earlier rounds.",
            replay=0.3,
        ),
        "inpo": Iterative(
            _keys(samples=4),
            _inpo,
            "genrm",
            "INPO",
            "arXiv 2407.00617",
            "confirmed",
            "Squared loss against a mixture of the reference and the policy that sampled; tau is a third of eta here.",
        ),
        "mnpo": Iterative(
            _keys(samples=4),
            _mnpo,
            "genrm",
            "MNPO",
            "arXiv 2509.23102",
            "confirmed",
            "The mixture holds earlier policies besides; a third of the weight is the reference's, as released.",
            rounds=3,
        ),
        "irepo": Iterative(
            _keys(samples=4),
            _against_previous("dpo", label="soft", loss=dict(kind="squared", beta=0.1)),
            "genrm",
            "iREPO",
            "arXiv 2405.15230",
            "reconstructed",
            "The gap of log-ratios fitted to the logit of the judge's probability; a judge stands for the annotators.",
        ),
        "cream": Iterative(
            _keys(),
            _against_previous("dpo", certainty="certainty"),
            "own",
            "CREAM",
            "arXiv 2410.12735",
            "confirmed",
            "The policy's own implicit reward ranks; how far the policy before agrees becomes the label's certainty.",
            agrees=True,
        ),
        "upo": Iterative(
            _keys(samples=4, select=dict(kind="halves")),
            _against_previous("dpo"),
            "bt",
            "UPO",
            "arXiv 2409.11212",
            "reconstructed",
            "Winners of the upper half, losers of the lower one, labels as uncertain as their estimator is.",
            misses="an estimator with dropout, whose disagreement says how certain a label is; none is there yet",
        ),
        "rso": Iterative(
            _keys(samples=16, select=dict(kind="rejection", beta=0.5, accepted=8)),
            lambda here: ("rso", dict(references=(here.start,))),
            "bt",
            "RSO",
            "arXiv 2309.06657",
            "confirmed",
            "Samples that stand for the optimal policy, by statistical rejection; the paper draws 64 of them.",
            rounds=1,
        ),
        "vpo": Iterative(
            _keys(samples=2),
            lambda here: ("dpo", dict(references=(here.start,), value_weight=0.005)),
            "genrm",
            "VPO, online",
            "arXiv 2405.19320",
            "reconstructed",
            "DPO on fresh pairs with an optimistic value term. The paper's alpha was not found.",
        ),
        "curated": Iterative(
            _keys(samples=4, select=dict(kind="softmax")),
            _supervised,
            "bt",
            "Self-consuming with curation",
            "arXiv 2407.09499",
            "confirmed",
            "Supervised training on one of four samples, drawn with the softmax of their scores.",
        ),
        "raft": Iterative(
            _keys(samples=4, select=dict(kind="softmax", temperature=0.0)),
            _supervised,
            "bt",
            "RAFT",
            "arXiv 2304.06767",
            "confirmed",
            "Supervised training on the best of four samples.",
        ),
        "self_rewarding": Iterative(
            _keys(),
            _against_previous("dpo"),
            "own",
            "Self-rewarding",
            "arXiv 2401.10020",
            "reconstructed",
            "The policy's own implicit reward ranks its samples; the paper has it judge in words.",
        ),
    }
)
