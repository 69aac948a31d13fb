"""Judges: whatever tells which of two responses is better, in both orders."""

from prl_jax.judges.base import Judge, Judged, Scored, ScoringJudge, judge_pairs
from prl_jax.judges.generative import GenerativeJudge
from prl_jax.judges.gold import GoldJudge
from prl_jax.judges.python import PythonJudge, ScoredPythonJudge, load_function
from prl_jax.judges.scalar import ScalarJudge

__all__ = [
    "GenerativeJudge",
    "GoldJudge",
    "Judge",
    "Judged",
    "PythonJudge",
    "ScalarJudge",
    "Scored",
    "ScoredPythonJudge",
    "ScoringJudge",
    "judge_pairs",
    "load_function",
]
