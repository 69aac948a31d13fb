"""Measures judges and policies from their numbers; trains nothing."""

from prl_jax.evaluation.judging import (
    expected_calibration_error,
    judge_faults,
    judge_metrics,
    longer_first,
    order_consistency,
    position_bias,
    reliability_bins,
    symmetric_probability,
    wilson_interval,
)
from prl_jax.evaluation.on_policy import against_truth, saturation
from prl_jax.evaluation.significance import holm, paired_test
from prl_jax.evaluation.watching import Watch
from prl_jax.evaluation.win_rate import bootstrap_interval, paired_interval, win_rate_summary

__all__ = [
    "Watch",
    "against_truth",
    "bootstrap_interval",
    "expected_calibration_error",
    "holm",
    "judge_faults",
    "judge_metrics",
    "longer_first",
    "order_consistency",
    "paired_interval",
    "paired_test",
    "position_bias",
    "reliability_bins",
    "saturation",
    "symmetric_probability",
    "wilson_interval",
    "win_rate_summary",
]
