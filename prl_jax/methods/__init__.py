"""Methods of the field as six pieces.

Piece 1 is the judge. The other five are frozen dataclasses here: whom a response is compared with (opponents), how
judgements become a reward, what is subtracted from it (baseline), which loss moves the policy (surrogate), and what
holds the policy back (regulariser). `METHODS` is the table: a published method is a row of pieces. Pieces are classes
of the module that is called like their slot, rewards on scores of `scores`: `baselines.Greedy`, `opponents.Greedy`.
"""

from prl_jax.methods import baselines, direct, opponents, regularisers, rewards, scores, surrogates
from prl_jax.methods.baselines import Baseline, Constant, Critic, GroupMean, LeaveOneOut, Standardised, Values
from prl_jax.methods.direct import DIRECT_LOSSES, DirectLoss
from prl_jax.methods.direct_table import DIRECT, DirectPreset
from prl_jax.methods.method import Method
from prl_jax.methods.opponents import Anchors, Group, NoOpponent, Opponents, Peer, Pool
from prl_jax.methods.regularisers import InsideKL, LossKL, Regulariser, RewardKL
from prl_jax.methods.rewards import Judgements, Reward, WinProbability
from prl_jax.methods.scores import PAR, Score
from prl_jax.methods.sections import PIECES, SLOTS, method_of, piece_of, section_of
from prl_jax.methods.surrogates import PairClip, PairRegression, Surrogate, TokenClip
from prl_jax.methods.table import METHODS, Preset

__all__ = [
    "DIRECT",
    "DIRECT_LOSSES",
    "METHODS",
    "PAR",
    "PIECES",
    "SLOTS",
    "Anchors",
    "Baseline",
    "Constant",
    "Critic",
    "DirectLoss",
    "DirectPreset",
    "Group",
    "GroupMean",
    "InsideKL",
    "Judgements",
    "LeaveOneOut",
    "LossKL",
    "Method",
    "NoOpponent",
    "Opponents",
    "PairClip",
    "PairRegression",
    "Peer",
    "Pool",
    "Preset",
    "Regulariser",
    "Reward",
    "RewardKL",
    "Score",
    "Standardised",
    "Surrogate",
    "TokenClip",
    "Values",
    "WinProbability",
    "baselines",
    "direct",
    "method_of",
    "opponents",
    "piece_of",
    "regularisers",
    "rewards",
    "scores",
    "section_of",
    "surrogates",
]
