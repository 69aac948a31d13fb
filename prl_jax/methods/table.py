"""The table of the field: each published method is a row of pieces."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from prl_jax.methods.baselines import Batch, Constant, Critic, Difference, GroupMean, LeaveOneOut, Standardised
from prl_jax.methods.baselines import Greedy as GreedyBaseline
from prl_jax.methods.method import Method
from prl_jax.methods.opponents import (
    Anchors,
    Circular,
    Greedy,
    Group,
    NoOpponent,
    Peer,
    RandomPeer,
)
from prl_jax.methods.opponents import Mixture as MixtureOpponent
from prl_jax.methods.regularisers import InsideKL, LossKL, Mixture, RewardKL
from prl_jax.methods.rewards import WinProbability
from prl_jax.methods.scores import LSC, PAR, Score, Several
from prl_jax.methods.surrogates import (
    CISPO,
    PairClip,
    PairRegression,
    PairTokenClip,
    Reinforce,
    SingleRegression,
    TokenClip,
)


class Preset(NamedTuple):
    """A published method.

    Attributes:
      method: its pieces.
      group_size: responses to a prompt, at least; its paper may take more.
      title: what its paper calls it.
      source: the paper, or the repository that it is in.
      evidence: "confirmed" where the paper or its code was read, "reconstructed" where a piece had to be inferred.
      remark: what is known of the choice of pieces.
      values: keys of the stage, beside the pieces, that the method sets.
      judge: what its judge has to be, as keys of a section of `judges`; {} for any that fits the reward.
    """

    method: Method
    group_size: int
    title: str
    source: str
    evidence: str
    remark: str
    values: Mapping[str, Any] = MappingProxyType({})
    judge: Mapping[str, Any] = MappingProxyType({})


_SEQUENCES = TokenClip(reduce="seq_mean_token_mean")
_FREE = LossKL(coefficient=0.0)  # no divergence at all
_ONE_UPDATE = MappingProxyType(dict(epochs=1, minibatches=1))

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
        "lsc": Preset(
            Method(Anchors(), LSC(), Critic(), TokenClip(), RewardKL()),
            1,
            "LSC",
            "arXiv 2402.00742",
            "reconstructed",
            "The log-probability of being better than a high quantile of reference responses; with the reward "
            "'several' and the shape 'lsc', on all of several judges.",
        ),
        "uwo": Preset(
            Method(NoOpponent(), Score(), Critic(), TokenClip(), RewardKL()),
            1,
            "UWO",
            "arXiv 2310.02743",
            "confirmed",
            "PPO on an ensemble: the mean of the scores less a share of their variance, here that of the population.",
            judge=MappingProxyType(dict(kind="ensemble", combine="uwo", coefficient=0.1)),
        ),
        "wco": Preset(
            Method(NoOpponent(), Score(), Critic(), TokenClip(), RewardKL()),
            1,
            "WCO",
            "arXiv 2310.02743",
            "confirmed",
            "PPO on an ensemble: the smallest of the scores.",
            judge=MappingProxyType(dict(kind="ensemble", combine="min")),
        ),
        "gram": Preset(
            Method(Greedy(), WinProbability(), Critic(), TokenClip(), RewardKL()),
            1,
            "GRAM",
            "arXiv 2506.14175",
            "reconstructed",
            "PPO on the probability that the response beats the policy's own greedy one.",
        ),
        "grpo": Preset(
            Method(NoOpponent(), Score(), Standardised(), _SEQUENCES, LossKL(coefficient=0.04)),
            4,
            "GRPO",
            "arXiv 2402.03300",
            "confirmed",
            "The paper has 64 responses to a prompt.",
        ),
        "dr_grpo": Preset(
            Method(NoOpponent(), Score(), GroupMean(), TokenClip(reduce="seq_mean_room_mean"), _FREE),
            4,
            "Dr. GRPO",
            "arXiv 2503.20783",
            "confirmed",
            "GRPO without its two divisions, by the deviation of the group and by the length of the response.",
        ),
        "dapo": Preset(
            Method(NoOpponent(), Score(), Standardised(), TokenClip(high=0.28), _FREE),
            4,
            "DAPO",
            "arXiv 2503.14476",
            "confirmed",
            "The mean over all tokens, a wider bound above, no divergence; groups that all earn the same are drawn "
            "again. Its penalty of long responses is the stage's `overlong`, whose numbers depend on the room.",
            values=MappingProxyType(dict(flat_groups="redraw")),
        ),
        "gspo": Preset(
            Method(
                NoOpponent(),
                Score(),
                Standardised(),
                TokenClip(low=3e-4, high=4e-4, reduce="seq_mean_token_mean", ratio="sequence"),
                _FREE,
            ),
            4,
            "GSPO",
            "arXiv 2507.18071",
            "confirmed",
            "One ratio a response, the geometric mean of those of its tokens, which moves much less than theirs: hence "
            "the narrow bounds.",
        ),
        "cispo": Preset(
            Method(NoOpponent(), Score(), Standardised(), CISPO(), _FREE),
            4,
            "CISPO",
            "arXiv 2506.13585",
            "confirmed",
            "The paper says that its upper bound was tuned, and not to what.",
        ),
        "rloo": Preset(
            Method(NoOpponent(), Score(), LeaveOneOut(), TokenClip(), RewardKL()),
            4,
            "RLOO",
            "arXiv 2402.14740",
            "confirmed",
            "With PPO's clip, which does nothing on the first minibatch.",
        ),
        "reinforce_pp": Preset(
            Method(NoOpponent(), Score(), Batch(), TokenClip(), RewardKL(coefficient=0.01)),
            1,
            "REINFORCE++",
            "arXiv 2501.03262",
            "confirmed",
            "Returns of tokens, the divergence among them, whitened over the batch.",
        ),
        "remax": Preset(
            Method(NoOpponent(), Score(), GreedyBaseline(), Reinforce("seq_mean_token_sum"), RewardKL()),
            1,
            "ReMax",
            "arXiv 2310.10505",
            "confirmed",
            "One update a batch. The greedy response is a judgement and a sample more a prompt.",
            values=_ONE_UPDATE,
        ),
        "p3o_v1": Preset(
            Method(NoOpponent(), Score(), Constant(), PairTokenClip(), InsideKL()),
            2,
            "P3O, separate form",
            "arXiv 2310.00212",
            "confirmed",
            "On the scores of a reward model; each token is clipped by itself.",
        ),
        "p3o_v2": Preset(
            Method(NoOpponent(), Score(), Constant(), PairClip(), InsideKL()),
            2,
            "P3O, joint form",
            "arXiv 2310.00212",
            "confirmed",
            "On the scores of a reward model; the gap of the two log-ratios is clipped.",
        ),
        "p3o": Preset(
            Method(Peer(), WinProbability(), Constant(), PairClip(), InsideKL()),
            2,
            "Pairwise P3O",
            "arXiv 2310.00212",
            "confirmed",
            "Its joint form, with win probabilities for rewards.",
        ),
        "pref_grpo": Preset(
            Method(Group(), WinProbability(), Standardised(eps=1e-8, limit=5.0), _SEQUENCES, LossKL(coefficient=0.04)),
            4,
            "Pref-GRPO",
            "arXiv 2508.20751",
            "confirmed",
            "Win rates within the group; probabilities in place of the paper's votes, which the map 'hard' has.",
        ),
        "paco_grpo": Preset(
            Method(
                Anchors(),
                Several(shapes=("par",), aggregate="log_tame"),
                Standardised(scale="batch", eps=1e-6),
                _SEQUENCES,
                LossKL(coefficient=0.04),
            ),
            4,
            "PaCo-GRPO",
            "arXiv 2512.04784",
            "reconstructed",
            "Several judges, those that vary the most tamed by a logarithm, and the deviation of the whole batch. The "
            "paper compares pictures with their siblings; here responses meet anchors.",
        ),
        "brpo": Preset(
            Method(RandomPeer(), WinProbability(map="signed", tie=0.0), Constant(), _SEQUENCES, _FREE),
            4,
            "BRPO",
            "arXiv 2506.00103",
            "reconstructed",
            "1 for beating a member of the group that was drawn as its reference, -1 for not beating it; the reference "
            "itself learns nothing.",
        ),
        "rubric_arm": Preset(
            Method(Greedy(), WinProbability(map="verdicts"), Standardised(), _SEQUENCES, LossKL(coefficient=0.04)),
            4,
            "Rubric-ARM, its policy",
            "arXiv 2602.01511",
            "confirmed",
            "The mean of two hard verdicts, one in each order, against the policy's greedy response.",
        ),
        "think_rm": Preset(
            Method(
                Group(orders="one"), WinProbability(map="signed"), Difference(), _SEQUENCES, LossKL(coefficient=1e-4)
            ),
            4,
            "Think-RM, its policy",
            "arXiv 2505.16265",
            "confirmed",
            "Each pair of the group judged once, in one order; signs in place of the grades that its judge writes.",
        ),
        "genrm_compare": Preset(
            Method(Circular(), WinProbability(), LeaveOneOut(), TokenClip(), LossKL(coefficient=0.01)),
            4,
            "GenRM comparison",
            "github.com/NVIDIA-NeMo/Gym",
            "reconstructed",
            "Each response against the next in a ring, once in each slot; win probabilities in place of grades from 1 "
            "to 5. Which update follows is left to the trainer there; its length terms, 0 unless they are"
            "set there too, are the stage's `length_weight`.",
        ),
        "tournament": Preset(
            Method(Group(), WinProbability(map="verdicts"), GroupMean(), Reinforce(), _FREE),
            4,
            "Tournament",
            "github.com/thinking-machines-lab/tinker-cookbook",
            "reconstructed",
            "Half of the wins less the losses of a round robin, over its matches, less the mean of the group; each "
            "order of a pair is a match.",
            values=_ONE_UPDATE,
        ),
        "spo": Preset(
            Method(Group(), WinProbability(), GroupMean(), TokenClip(), RewardKL()),
            4,
            "SPO",
            "arXiv 2401.04056",
            "reconstructed",
            "Self-play by win rates within the group; the paper leaves the policy gradient open.",
        ),
        "sppo": Preset(
            Method(Group(), WinProbability(), Constant(0.5), SingleRegression(), Mixture(coefficient=0.1)),
            4,
            "SPPO",
            "arXiv 2405.00675",
            "reconstructed",
            "Log-ratios to the policy that sampled, fitted to win rates. The paper has rounds of fixed pairs and a "
            "coefficient of 0.001.",
        ),
        "nash_md": Preset(
            Method(MixtureOpponent(), WinProbability(), Constant(0.5), Reinforce("seq_mean_token_sum"), RewardKL()),
            1,
            "Nash-MD",
            "arXiv 2312.00886",
            "confirmed",
            "Against the geometric mixture of the policy and its reference, token by token.",
            values=_ONE_UPDATE,
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
        "online_ipo": Preset(
            Method(Peer(), WinProbability(), Constant(), PairRegression(link="squared"), InsideKL(coefficient=0.1)),
            2,
            "Online IPO",
            "arXiv 2403.08635",
            "confirmed",
            "Pairs of the policy's own responses; the gap of their log-ratios fitted to the judge's probability.",
        ),
    }
)
