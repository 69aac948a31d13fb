"""The section of a stage that trains a policy on pairs directly: its keys, and what follows from them alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from prl_jax.config.declare import filled
from prl_jax.data.records import PreferenceRecord
from prl_jax.errors import UserError
from prl_jax.methods import piece_of, section_of
from prl_jax.methods.direct import DirectLoss
from prl_jax.methods.direct_table import DIRECT
from prl_jax.stages import supervised

Pair = tuple[float, float]


class Label(NamedTuple):
    """The part of a record that a loss learns from.

    Attributes:
      needs: values that the record has to carry (`missing_value`).
      probability: record -> the probability that its chosen response is better; None where it says none.
      targets: record -> a number of each response; None where it has none.
    """

    needs: tuple[str, ...]
    probability: Callable[[PreferenceRecord], float] | None = None
    targets: Callable[[PreferenceRecord], Pair] | None = None


def _win_gap(record: PreferenceRecord) -> float:
    assert record.wins is not None
    return 1.0 / (1.0 + math.exp(record.wins[1] - record.wins[0]))


LABELS: Mapping[str, Label] = MappingProxyType(
    {
        "hard": Label((), lambda r: r.label, lambda r: (r.label, 1.0 - r.label)),
        "soft": Label((), lambda r: r.soft_label),
        "win_gap": Label(("wins",), _win_gap, lambda r: r.wins),  # type: ignore[return-value]
        "win_rate": Label(("wins",), None, lambda r: r.wins),  # type: ignore[return-value]
        "score": Label(("scores",), None, lambda r: r.scores),  # type: ignore[return-value]
    }
)
# What a loss reads -> the labels that say it.
_FITTING: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "label": ("hard", "soft", "win_gap"),
        "targets": ("hard", "win_rate", "score"),
        "gap": ("hard", "soft", "win_gap", "score"),
    }
)


def declare(method: str = "dpo", **values: Any) -> dict[str, Any]:
    """Returns the section of a stage that trains a policy on pairs directly.

    Args:
      method: a row of `prl_jax.methods.DIRECT`, whose loss and further keys are the defaults.
      values: what is to be otherwise. `loss` is a section: with another `kind` than that of the method it replaces the
        loss, without one it changes the fields that it names. `references` is `init_from` where the method has any, and
        nothing else is given.

    Raises:
      UserError: there is no such method, key, loss or field.
    """
    if method not in DIRECT:
        raise UserError(f"method={method!r}, expected one of {', '.join(DIRECT)}")
    preset, given = DIRECT[method], dict(values.pop("loss", {}))
    same = given.get("kind", preset.loss.kind) == preset.loss.kind
    loss = piece_of("loss", {**section_of(preset.loss), **given} if same else given)
    start = values.get("init_from", "sft")
    defaults = dict(
        kind="direct",
        init_from="sft",  # a policy: a stage, or a model directory
        references=() if loss.reference_free else (start,),  # policies that log-ratios are taken to; () for none
        reference_weights=(),  # of their log-probs, which sum to 1; () for equal ones
        precomputed="",  # the folder of a stage that has asked such references about the same rows: not asked again
        max_prompt=32,
        max_response=32,
        loss=section_of(loss),  # a direct loss (`prl_jax.methods.direct`): its kind, and the fields of that kind
        length="sum",  # what the loss sees of a response's log-probs: their sum over tokens, or their "mean"
        label="hard",  # what it sees of a record: who is "hard" better, "soft" p_chosen, "win_gap", "win_rate", "score"
        certainty="",  # key of the records' meta: a number in [0, 1], the probability that the label is right
        sft_weight=0.0,  # of the negative log-likelihood of the better response
        sft_length="mean",  # that likelihood of a response: "sum" over its tokens, or "mean"
        value_weight=0.0,  # of the mean implicit reward of the better response
        beta_scale=0.0,  # beta grows by up to this share with the gap of the scores
        beta_scale_rate=0.5,  # how fast it does
    )
    return filled({**supervised.shared_section(), **defaults, **preset.values}, values, "direct")


def loss_in(section: ConfigDict) -> DirectLoss:
    """The loss whose fields a section holds."""
    return piece_of("loss", section.loss.to_dict())


def weights_in(section: ConfigDict) -> tuple[float, ...]:
    """The weight of each reference."""
    count = len(section.references)
    return tuple(map(float, section.reference_weights)) or (1.0 / max(count, 1),) * count


def needs_of(section: ConfigDict) -> tuple[str, ...]:
    """The values that records have to carry."""
    scaled = ("scores",) if section.beta_scale else ()
    certain = (f"meta.{section.certainty}",) if section.certainty else ()
    return tuple(dict.fromkeys((*LABELS[section.label].needs, *scaled, *certain)))


def check_section(section: ConfigDict) -> DirectLoss:
    """Returns the loss. Raises `UserError`, which begins with the key, for what does not go together."""
    loss = loss_in(section)
    fitting = _FITTING[loss.reads]
    if section.label not in fitting:
        raise UserError(
            f"label={section.label!r}: the loss {loss.kind!r} reads another one; expected one of "
            f"{', '.join(map(repr, fitting))}"
        )
    if loss.reference_free and section.references:
        raise UserError(f"references={tuple(section.references)}: the loss {loss.kind!r} reads none; set ()")
    if loss.length and section.length != loss.length:
        raise UserError(
            f"length={section.length!r}: the loss {loss.kind!r} is one of tokens' means; set {loss.length!r}"
        )
    if section.precomputed and not section.references:
        raise UserError(f"precomputed={section.precomputed!r}: there are no references; leave it out")
    if section.certainty and loss.reads != "label":
        raise UserError(f"certainty={section.certainty!r}: the loss {loss.kind!r} reads no label; leave it out")
    if section.beta_scale and not loss.scales:
        raise UserError(f"beta_scale={section.beta_scale}: the loss {loss.kind!r} has no beta; set 0")
    unread = {"beta_scale_rate": "beta_scale", "sft_length": "sft_weight"}
    defaults = dict(beta_scale_rate=0.5, sft_length="mean")
    for key, asked in unread.items():
        if section[key] != defaults[key] and not section[asked]:
            raise UserError(f"{key}={section[key]!r}: nothing reads it without {asked}; leave it out")
    _check_weights(section)
    return loss


def _check_weights(section: ConfigDict) -> None:
    names, given = tuple(section.references), tuple(section.reference_weights)
    if not all(isinstance(name, str) and name for name in names):
        raise UserError(f"references={names}, expected the names of policies, such as ('sft',)")
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"references={names}: {twice!r} is named twice; give it a larger weight instead")
    if not given:
        return
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in given)
    if len(given) != len(names) or not numbers or abs(sum(given) - 1.0) > 1e-6:
        raise UserError(f"reference_weights={given}, expected {len(names)} numbers, one a reference, that sum to 1")
