"""The table of the field: each published method is a row of pieces."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from prl_jax.methods.baselines import Constant, Critic, GroupMean, LeaveOneOut, Standardised
from prl_jax.methods.method import Method
from prl_jax.methods.opponents import Anchors, Group, NoOpponent, Peer
from prl_jax.methods.regularisers import InsideKL, LossKL, RewardKL
from prl_jax.methods.rewards import PAR, Score, WinProbability
from prl_jax.methods.surrogates import PairClip, PairRegression, TokenClip


class Preset(NamedTuple):
    """A published method.

    Attributes:
      method: its pieces.
      group_size: responses to a prompt, at least; its paper may take more.
      title: what its paper calls it.
      source: the paper.
      evidence: "confirmed" where the paper or its code was read, "reconstructed" where a piece had to be inferred.
      remark: what is known of the choice of pieces.
    """

    method: Method
    group_size: int
    title: str
    source: str
    evidence: str
    remark: str


_SEQUENCES = TokenClip(reduce="seq_mean_token_mean")

METHODS: Mapping[str, Preset] = MappingProxyType(
    {
        "ppo": Preset(
            Method(NoOpponent(), Score(), Critic(), TokenClip(), RewardKL()),
            1,
            "PPO",
            "arXiv 1707.06347",
            "confirmed",
            "On the scores of a reward model; the divergence is a reward of tokens, as in arXiv 1909.08593.",
        ),
        "pairwise_rl": Preset(
            Method(Anchors(), WinProbability(), Critic(), TokenClip(), RewardKL()),
            1,
            "Pairwise-RL",
            "arXiv 2504.04950",
            "reconstructed",
            "Its objective is not published: PPO on the probability that the response beats the prompt's anchor, both "
            "orders.",
        ),
        "par": Preset(
            Method(Anchors(), PAR(), Critic(), TokenClip(), RewardKL(coefficient=0.005)),
            1,
            "PAR",
            "arXiv 2502.18770",
            "confirmed",
            "Scores of a reward model against those of reference responses, through a sigmoid.",
        ),
        "grpo": Preset(
            Method(NoOpponent(), Score(), Standardised(), _SEQUENCES, LossKL(coefficient=0.04)),
            4,
            "GRPO",
            "arXiv 2402.03300",
            "confirmed",
            "The paper has 64 responses to a prompt.",
        ),
        "rloo": Preset(
            Method(NoOpponent(), Score(), LeaveOneOut(), TokenClip(), RewardKL()),
            4,
            "RLOO",
            "arXiv 2402.14740",
            "confirmed",
            "With PPO's clip, which does nothing on the first minibatch of a step.",
        ),
        "pref_grpo": Preset(
            Method(Group(), WinProbability(), Standardised(eps=1e-8), _SEQUENCES, LossKL(coefficient=0.04)),
            4,
            "Pref-GRPO",
            "arXiv 2508.20751",
            "confirmed",
            "Win rates within the group; probabilities in place of the paper's votes.",
        ),
        "spo": Preset(
            Method(Group(), WinProbability(), GroupMean(), TokenClip(), RewardKL()),
            4,
            "SPO",
            "arXiv 2401.04056",
            "reconstructed",
            "Self-play by win rates within the group; the paper leaves the policy gradient open.",
        ),
        "p3o": Preset(
            Method(Peer(), WinProbability(), Constant(), PairClip(), InsideKL()),
            2,
            "P3O",
            "arXiv 2310.00212",
            "confirmed",
            "Its joint form, with win probabilities for rewards.",
        ),
        "online_dpo": Preset(
            Method(Peer(), WinProbability(), Constant(), PairRegression(), InsideKL(coefficient=0.1)),
            2,
            "Online DPO",
            "arXiv 2402.04792",
            "confirmed",
            "Pairs of the policy's own responses, labelled with the judge's probability; with its verdict where "
            "reward.map is 'hard'.",
        ),
    }
)
