"""Judges: whatever tells which of two responses is better, in both orders."""

from prl_jax.judges.annotator import AnnotatorJudge
from prl_jax.judges.base import CountingJudge, Judge, Judged, OneOrderJudge, Scored, ScoringJudge, judge_pairs
from prl_jax.judges.density_ratio import DensityRatioJudge, PolicyReader
from prl_jax.judges.ensemble import Combination, EnsembleJudge, ScoringEnsembleJudge, ensemble
from prl_jax.judges.generative import GenerativeJudge
from prl_jax.judges.gold import GoldJudge
from prl_jax.judges.python import PythonJudge, ScoredPythonJudge, load_function
from prl_jax.judges.remote import RemoteJudge
from prl_jax.judges.scalar import ScalarJudge
from prl_jax.judges.verifier import Check, Constraints, Exact, Grade, Number, Pattern, VerifierJudge

__all__ = [
    "AnnotatorJudge",
    "Check",
    "Combination",
    "Constraints",
    "CountingJudge",
    "DensityRatioJudge",
    "EnsembleJudge",
    "Exact",
    "GenerativeJudge",
    "GoldJudge",
    "Grade",
    "Judge",
    "Judged",
    "Number",
    "OneOrderJudge",
    "Pattern",
    "PolicyReader",
    "PythonJudge",
    "RemoteJudge",
    "ScalarJudge",
    "Scored",
    "ScoredPythonJudge",
    "ScoringEnsembleJudge",
    "ScoringJudge",
    "VerifierJudge",
    "ensemble",
    "judge_pairs",
    "load_function",
]
