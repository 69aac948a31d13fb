"""`config.json` of a Hugging Face checkpoint as a `DecoderConfig`. What the file says counts, or is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prl_jax.errors import UserError
from prl_jax.files import read_object
from prl_jax.models.config import LARGEST, DecoderConfig
from prl_jax.models.hf.families import ACTIVATIONS, BOOKKEEPING, FAMILIES, FIELDS, FIXED, FULL, INERT, SLIDING, Family
from prl_jax.models.hf.rope import read_rope
from prl_jax.models.hf.values import KINDS, is_a, short

CONFIG_FILE = "config.json"
QUANTISED = (
    "the checkpoint is quantised, which is not read: save it dequantised (in transformers: model.dequantize(), then "
    "save_pretrained)"
)
_MOST = 2**31  # of numbers that are no size of an array, such as positions

# Keys that say a value a second time, as some checkpoints do.
_ALIASES = {
    "hidden_act": "hidden_activation",
    "sliding_window_size": "sliding_window",
    "_sliding_window_pattern": "sliding_window_pattern",
}
# Keys that may be null, and what they are otherwise.
_NULLABLE = {
    "num_key_value_heads": int,
    "head_dim": int,
    "sliding_window": int,
    "layer_types": list,
    "rope_scaling": dict,
    "rope_parameters": dict,
    "attn_logit_softcapping": float,
    "final_logit_softcapping": float,
}


def read_config(directory: Path | str) -> dict[str, Any]:
    """The `config.json` of a checkpoint directory. A missing or broken one is a `UserError`."""
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{directory}: no {CONFIG_FILE}; give a directory with a Hugging Face checkpoint")
    return read_object(path)


def family_of(hf: Mapping[str, Any], where: str) -> Family:
    """The family that `model_type` names. Any other is a `UserError`."""
    name = hf.get("model_type")
    if name == "gemma3":
        raise UserError(
            f'{where}: model_type="gemma3" has a vision model too, which is not supported; save its language model '
            'alone (model_type="gemma3_text") with transformers.Gemma3ForCausalLM'
        )
    if name not in FAMILIES:
        raise UserError(f"{where}: model_type={name!r} is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def is_reward_model(hf: Mapping[str, Any], where: str) -> bool:
    """Whether the checkpoint gives one number in place of logits; other heads are a `UserError`."""
    family = family_of(hf, where)
    names = hf.get("architectures") or [family.language_model]
    if names == [family.language_model]:
        return False
    if names != [family.reward_model]:
        raise UserError(
            f"{where}: architectures={short(names)} is not supported with model_type={hf['model_type']!r}; supported: "
            f"{family.language_model}, {family.reward_model}"
        )
    labels = len(hf["id2label"]) if hf.get("id2label") else hf.get("num_labels", 2)
    if labels != 1:
        raise UserError(f"{where}: {family.reward_model} with {labels} labels (id2label, by default 2), expected 1")
    return True


def decoder_config(hf: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder that a `config.json` describes, in float32.

    Args:
      hf: content of the file.
      where: the file, for messages.

    Raises:
      UserError: names the keys that are not supported, or whose values are not.
    """
    family = family_of(hf, where)
    if hf.get("quantization_config") or hf.get("compression_config"):
        raise UserError(f"{where}: {QUANTISED}")
    values = _values(hf, family, where)
    heads, width = values["num_attention_heads"], values["hidden_size"]
    if family.whole_heads and width % heads:
        raise UserError(f"{where}: hidden_size={width} has to be a multiple of num_attention_heads={heads}")
    values["num_key_value_heads"] = values["num_key_value_heads"] or heads
    values["head_dim"] = values["head_dim"] or max(width // heads, 1)
    window, windowed = _windows(values, family, where)
    fields = {field: values[key] for key, field in FIELDS.items()}
    if "attention_bias" in family.defaults:
        fields.update(qkv_bias=values["attention_bias"], o_bias=values["attention_bias"])
    if "query_pre_attn_scalar" in family.defaults:
        fields.update(query_scale=values["query_pre_attn_scalar"] ** -0.5)
    activation = values[family.activation_key]
    if activation not in ACTIVATIONS:
        raise UserError(
            f"{where}: {family.activation_key}={activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    return DecoderConfig(
        **fields,
        **family.features,
        **read_rope(hf, values, family, where),
        activation=ACTIVATIONS[activation],
        mlp_bias=values.get("mlp_bias", False),
        attention_softcap=values.get("attn_logit_softcapping") or 0.0,
        logit_softcap=values.get("final_logit_softcapping") or 0.0,
        window=window,
        windowed=windowed,
    )


def context_length(hf: Mapping[str, Any], where: str) -> int:
    """Tokens that the model can read: the positions that `config.json` names, as many times as RoPE is stretched.

    Llama 3 and Gemma 3 name the positions after stretching; yarn stretches those of pre-training, where it names them.
    """
    family = family_of(hf, where)
    values = _values(hf, family, where)
    positions, scaling = values["max_position_embeddings"], read_rope(hf, values, family, where)["rope_scaling"]
    if scaling is None or scaling.kind == "llama3" or "rope_local_base_freq" in family.defaults:
        return positions
    return max(positions, int((scaling.original_positions or positions) * scaling.factor))


def _values(hf: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    """The keys that describe the model, missing ones filled in. All that cannot be taken is named at once."""
    renamed = {_ALIASES.get(key, key): value for key, value in hf.items()}
    renamed |= {key: value for key, value in hf.items() if key in family.defaults}
    values = {key: renamed.get(key, default) for key, default in family.defaults.items()}
    wrong = []
    for key, value in values.items():
        kind = _NULLABLE.get(key, type(family.defaults[key]))
        zero = key == "max_window_layers" and value == 0  # all layers have the window
        largest = LARGEST.get(FIELDS.get(key, ""), _MOST)
        if kind is int and is_a(int, value) and value > largest:
            wrong.append(f"{key}={short(value)} (expected at most {largest})")
        elif is_a(kind, value):
            values[key] = kind(value)
        elif not zero and (value is not None or key not in _NULLABLE):
            wrong.append(f"{key}={short(value)} (expected {KINDS[kind]})")
    for key, value in hf.items():
        alias = _ALIASES.get(key)
        if value is None or key in family.defaults or key in INERT or key.startswith(BOOKKEEPING):
            continue
        if alias in family.defaults:
            if value != values[alias]:
                wrong.append(f"{key}={short(value)} (but {alias}={short(values[alias])})")
        elif key not in FIXED:
            wrong.append(f"{key}={short(value)} (unknown; take it out if it does not change the model)")
        elif value not in FIXED[key]:
            wrong.append(f"{key}={short(value)} (supported: {' or '.join(map(json.dumps, FIXED[key]))})")
    if wrong:
        raise UserError(f"{where}: not supported with model_type={hf['model_type']!r}: {'; '.join(wrong)}")
    return values


def _windows(values: Mapping[str, Any], family: Family, where: str) -> tuple[int, tuple[bool, ...]]:
    """`window` and `windowed` of a `DecoderConfig`. Where there are `layer_types`, no other key names the layers."""
    layers, window = range(values["num_hidden_layers"]), values.get("sliding_window")
    if not values.get("use_sliding_window", True):
        window = None
    types = values.get("layer_types")
    if types is not None:
        if len(types) != len(layers) or any(kind not in (SLIDING, FULL) for kind in types):
            raise UserError(
                f"{where}: layer_types={short(types)}, expected {SLIDING!r} or {FULL!r} for each of the "
                f"{len(layers)} layers"
            )
        windowed = [kind == SLIDING for kind in types]
    elif family.pattern == "alternating":
        windowed = [i % 2 == 0 for i in layers]
    elif family.pattern == "every":
        windowed = [(i + 1) % values["sliding_window_pattern"] > 0 for i in layers]
    else:
        first = {"none": len(layers), "all": 0}.get(family.pattern, values.get("max_window_layers", 0))
        windowed = [window is not None and i >= first for i in layers]
    if window is None and (any(windowed) or family.pattern in ("alternating", "every")):
        raise UserError(f"{where}: layers with a sliding window, but sliding_window or use_sliding_window is off")
    if window is None or not any(windowed):
        return 0, ()
    return window, () if all(windowed) else tuple(windowed)
