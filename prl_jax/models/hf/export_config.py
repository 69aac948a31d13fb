"""`DecoderConfig` as a `config.json`, of the family that has its features."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from prl_jax.errors import UserError
from prl_jax.models.config import DecoderConfig
from prl_jax.models.hf.config import decoder_config, family_of
from prl_jax.models.hf.families import ACTIVATIONS, FAMILIES, FIELDS, FULL, SLIDING, Family
from prl_jax.models.hf.rope import write_rope

_NOT_OF_THE_MODEL = ("dtype", "param_dtype", "remat", "attention", "lora", "unused", "unsampled")


def export_config(
    config: DecoderConfig, *, reward_model: bool, source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The `config.json` of a model.

    Args:
      config: what the decoder looks like.
      reward_model: whether it gives one number in place of logits.
      source: the `config.json` that the model came from, whose keys are kept; by default the family is chosen by the
        features of the decoder.

    Raises:
      UserError: no family has these features, or `source` describes another decoder.
    """
    if source is None:
        values = _chosen(config, reward_model)
    else:
        differing = differences(config, decoder_config(source, "source"), reward_model)
        if differing:
            raise UserError(f"source: describes another decoder than the model's: {', '.join(differing)}")
        values = dict(source)
    family = family_of(values, "source")
    keys = [key for key in ("torch_dtype", "dtype") if key in values] or ["torch_dtype"]
    values.update({key: config.param_dtype for key in keys})
    values["architectures"] = [family.reward_model if reward_model else family.language_model]
    if reward_model:
        values.pop("num_labels", None)
        if len(values.get("id2label") or ()) != 1:
            values.update(id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    return values


def _chosen(config: DecoderConfig, reward_model: bool) -> dict[str, Any]:
    """Keys of the first family that can express the decoder."""
    nearest: tuple[list[str], str] | None = None
    for name, family in FAMILIES.items():
        values = {"model_type": name, **_written(config, family)}
        try:
            differing = differences(config, decoder_config(values, name), reward_model)
        except UserError as error:
            differing = [str(error)]
        if not differing:
            return values
        if nearest is None or len(differing) < len(nearest[0]):
            nearest = differing, name
    assert nearest is not None
    raise UserError(
        f"no family of Hugging Face checkpoints ({', '.join(FAMILIES)}) has the features of this decoder; {nearest[1]} "
        f"differs in {', '.join(nearest[0])}"
    )


def _written(config: DecoderConfig, family: Family) -> dict[str, Any]:
    """The keys of a family, filled from the config as well as they can be."""
    fields = dataclasses.asdict(config)
    local = config.local_layers
    activation = next(name for name, ours in ACTIVATIONS.items() if ours == config.activation)
    known = {
        **{key: fields[field] for key, field in FIELDS.items()},
        **write_rope(config.rope_theta, config.rope_scaling),
        "rope_local_base_freq": config.local_rope_theta or config.rope_theta,
        "hidden_act": activation,
        "hidden_activation": activation,
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "query_pre_attn_scalar": round(_query_scale(config) ** -2),
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
        "use_sliding_window": any(local),
        "layer_types": [SLIDING if windowed else FULL for windowed in local],
    }
    known["sliding_window"] = config.window if any(local) else None
    if config.rope_scaling is not None and config.rope_scaling.original_positions:
        known["max_position_embeddings"] = round(config.rope_scaling.original_positions * config.rope_scaling.factor)
    if known["sliding_window"] is None and family.pattern in ("alternating", "every"):
        del known["sliding_window"]  # these families want a number even where no layer uses it
    return {key: value for key, value in known.items() if key in family.defaults}


def differences(config: DecoderConfig, other: DecoderConfig, reward_model: bool) -> list[str]:
    """The fields that make the first decoder another one than the second, each with both values."""
    one, two = _comparable(config), _comparable(other)
    if reward_model:  # has no output embedding
        one.pop("tied_embeddings"), one.pop("logit_softcap")
    return [f"{name}={value!r} (not {two[name]!r})" for name, value in one.items() if value != two[name]]


def _comparable(config: DecoderConfig) -> dict[str, Any]:
    """The fields that change what a decoder computes, each meaning written in one way."""
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NOT_OF_THE_MODEL}
    local = config.local_layers
    fields.update(windowed=local, window=config.window if any(local) else 0, query_scale=_query_scale(config))
    if not any(local) or (config.rope_scaling is None and config.local_rope_theta == config.rope_theta):
        fields.update(local_rope_theta=0.0)
    return fields


def _query_scale(config: DecoderConfig) -> float:
    return config.query_scale or config.head_dim**-0.5
