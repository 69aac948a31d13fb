"""The table of direct losses: each published method is a loss, and keys of its stage."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from prl_jax.methods.direct import (
    APO,
    BCO,
    EXO,
    IPO,
    KTO,
    NCA,
    ORPO,
    RWR,
    SPPO,
    DirectLoss,
    Hinge,
    Linear,
    Robust,
    Sigmoid,
    WeightedSigmoid,
)


class DirectPreset(NamedTuple):
    """A published method.

    Attributes:
      loss: its loss.
      values: keys of the stage, beside the loss, that the method sets: `references` (() for none),
        `length` (how log-probs of tokens become one number, "sum" or "mean"), `label` (what is read of a record:
        "hard", "soft", "win_rate", "score" or "win_gap"), `sft_weight` and `sft_length` (likelihood of the better
        response), `value_weight` (of its implicit reward), `beta_scale` and `beta_scale_rate` (amount and rate of
        `losses.margin_scale`).
      title: what its paper calls it.
      source: the paper.
      evidence: "confirmed" where the paper or its code was read, "reconstructed" where a part had to be inferred.
      remark: what is known of the choice.
    """

    loss: DirectLoss
    values: Mapping[str, Any]
    title: str
    source: str
    evidence: str
    remark: str


def _values(**values: Any) -> Mapping[str, Any]:
    return MappingProxyType(values)


DIRECT: Mapping[str, DirectPreset] = MappingProxyType(
    {
        "dpo": DirectPreset(
            Sigmoid(),
            _values(),
            "DPO",
            "arXiv 2305.18290",
            "confirmed",
            "The gap of log-ratios as the logit of the label.",
        ),
        "cdpo": DirectPreset(
            Sigmoid(label_smoothing=0.1),
            _values(),
            "cDPO",
            "ericmitchell.ai/cdpo.pdf",
            "confirmed",
            "DPO on labels a tenth of which are assumed to be flipped.",
        ),
        "robust": DirectPreset(
            Robust(),
            _values(),
            "Robust DPO",
            "arXiv 2403.00409",
            "confirmed",
            "Unbiased where a tenth of the labels is flipped; on labels that never vary it has no minimum.",
        ),
        "ipo": DirectPreset(
            IPO(),
            _values(length="mean"),
            "IPO",
            "arXiv 2310.12036",
            "confirmed",
            "Log-ratios are means over tokens, as its authors ran it; the theory is that of sums.",
        ),
        "slic": DirectPreset(
            Hinge(beta=1.0),
            _values(references=(), sft_weight=0.1, sft_length="sum"),
            "SLiC-HF",
            "arXiv 2305.10425",
            "reconstructed",
            "A hinge on log-probs, held by the likelihood of the better response; the weight of that is a choice.",
        ),
        "rso": DirectPreset(
            Hinge(beta=0.05),
            _values(),
            "RSO",
            "arXiv 2309.06657",
            "confirmed",
            "The hinge on log-ratios; its pairs come of rejection sampling, which is another stage.",
        ),
        "rpo": DirectPreset(
            Sigmoid(beta=0.5),
            _values(sft_weight=0.2, sft_length="mean"),
            "RPO",
            "arXiv 2405.16436",
            "confirmed",
            "The released form with the mean log-prob of a token; the other one takes sums, with a beta of 0.01 and a "
            "weight of 0.00005.",
        ),
        "simpo": DirectPreset(
            Sigmoid(beta=2.0, margin=1.0),
            _values(references=(), length="mean"),
            "SimPO",
            "arXiv 2405.14734",
            "confirmed",
            "Mean log-probs without a reference, and a margin; its authors tune beta from 2 to 10 and the margin from "
            "0.1 to 0.8 of beta.",
        ),
        "orpo": DirectPreset(
            ORPO(),
            _values(references=(), length="mean", sft_weight=1.0, sft_length="mean"),
            "ORPO",
            "arXiv 2403.07691",
            "confirmed",
            "Supervised training on the better response, and the odds ratio of both.",
        ),
        "cpo": DirectPreset(
            Sigmoid(),
            _values(references=(), sft_weight=1.0, sft_length="mean"),
            "CPO",
            "arXiv 2401.08417",
            "confirmed",
            "DPO without a reference, and the likelihood of the better response.",
        ),
        "kto": DirectPreset(
            KTO(),
            _values(),
            "KTO",
            "arXiv 2402.01306",
            "confirmed",
            "The two responses of a pair count as one desirable and one undesirable.",
        ),
        "apo": DirectPreset(
            APO(),
            _values(),
            "APO-zero",
            "arXiv 2408.06266",
            "confirmed",
            "For responses that are better than the policy's; with the form 'down' it is APO-down.",
        ),
        "nca": DirectPreset(
            NCA(),
            _values(),
            "NCA",
            "arXiv 2402.05369",
            "confirmed",
            "Its form for pairs, which holds the likelihood of the better response up.",
        ),
        "bco": DirectPreset(
            BCO(),
            _values(),
            "BCO",
            "arXiv 2404.04656",
            "confirmed",
            "The reward shift is the mean of the batch; the released code has a running mean.",
        ),
        "exo": DirectPreset(
            EXO(),
            _values(),
            "EXO",
            "arXiv 2402.00856",
            "confirmed",
            "The reverse divergence, for pairs; a certain label is smoothed by a thousandth.",
        ),
        "vpo": DirectPreset(
            Sigmoid(),
            _values(value_weight=-0.005),
            "VPO",
            "arXiv 2405.19320",
            "reconstructed",
            "Its offline form, pessimistic and calibrated on the better responses: the gradient of RPO on sums. The "
            "paper's alpha was not found; RPO's 0.005 stands in, negative.",
        ),
        "smpo": DirectPreset(
            WeightedSigmoid(),
            _values(label="soft"),
            "SmPO",
            "arXiv 2506.02698",
            "reconstructed",
            "Its pairwise core, for text; soft labels say how fast a gap grows, and nothing says how far.",
        ),
        "dro": DirectPreset(
            Linear(),
            _values(),
            "DRO, the loss of DSO",
            "arXiv 2503.22677",
            "reconstructed",
            "Log-ratios in place of losses of denoising; their bound is a choice.",
        ),
        "rwr": DirectPreset(
            RWR(),
            _values(references=(), label="score"),
            "RWR",
            "arXiv 2501.13918",
            "reconstructed",
            "Supervised training on both responses, weighed by their scores; the core of Flow-RWR, for text.",
        ),
        "mm_dpo": DirectPreset(
            Sigmoid(),
            _values(beta_scale=0.1, beta_scale_rate=0.5),
            "MM-DPO",
            "arXiv 2502.10391",
            "reconstructed",
            "Beta grows with the gap of a reward model's scores, by the paper's formula, which is in no code within "
            "reach.",
        ),
        "sppo": DirectPreset(
            SPPO(),
            _values(label="win_rate"),
            "SPPO",
            "arXiv 2405.00675",
            "confirmed",
            "One round, on win rates among the responses of the policy that is its reference.",
        ),
    }
)
