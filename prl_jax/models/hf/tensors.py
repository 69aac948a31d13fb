"""Which tensors of a Hugging Face checkpoint hold which parameters of a model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from prl_jax.errors import UserError
from prl_jax.models.config import DecoderConfig
from prl_jax.models.decoder import Decoder
from prl_jax.models.heads import ScalarModel
from prl_jax.tree import flatten

EMBEDDING, LM_HEAD, SCORE = "model.embed_tokens.weight", "lm_head.weight", "score.weight"

_TOP: Mapping[str, str] = MappingProxyType(
    {"embedding": EMBEDDING, "norm.scale": "model.norm.weight", "head": LM_HEAD, "scalar.weight": SCORE}
)
LINEAR: Mapping[str, str] = MappingProxyType(
    {
        **{f"attention.{name}": f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")},
        **{f"mlp.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
    }
)
_NORMS: Mapping[str, str] = MappingProxyType(
    {
        "attention.q_norm": "self_attn.q_norm",
        "attention.k_norm": "self_attn.k_norm",
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    }
)
# With norms behind attention and feed-forward part, the same name means another one.
_POST_NORMS: Mapping[str, str] = MappingProxyType(
    {
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    }
)


class Parameter(NamedTuple):
    """Where one parameter is stored.

    Attributes:
      names: of its tensors: one a layer where it is stacked, else one.
      shape: of each tensor in the checkpoint.
      stacked: whether the parameter has a leading axis of layers.
      transposed: whether the checkpoint holds `[out, in]` and the model `[in, out]`.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool
    transposed: bool


def make_model(config: DecoderConfig, reward_model: bool) -> Decoder | ScalarModel:
    """A new model, to be traced for its structure."""
    decoder = Decoder(config, key=jax.random.key(0))
    return ScalarModel(decoder) if reward_model else decoder


def parameters(model: Any, config: DecoderConfig) -> dict[str, Parameter]:
    """Where the arrays of a model are stored, by their dotted name. The arrays may be abstract."""
    return {
        name: _parameter(name.removeprefix("decoder."), leaf.shape, config) for name, leaf in flatten(model).items()
    }


def _parameter(name: str, shape: tuple[int, ...], config: DecoderConfig) -> Parameter:
    layer, module = name.removeprefix("blocks."), name.removeprefix("blocks.").rpartition(".")[0]
    if layer == name:
        if name not in _TOP:
            raise UserError(f"Hugging Face checkpoints have no place for the parameter {name}")
        stored = (1, *shape) if name == "scalar.weight" else shape[::-1] if name == "head" else shape
        return Parameter((_TOP[name],), stored, False, name == "head")
    norms = {**_NORMS, **_POST_NORMS} if config.post_norms else _NORMS
    kind = layer.rpartition(".")[2]
    modules, suffix = (norms, "weight") if kind == "scale" else (LINEAR, kind)
    if module not in modules:
        raise UserError(f"Hugging Face checkpoints have no place for the parameter {name}")
    names = tuple(f"model.layers.{i}.{modules[module]}.{suffix}" for i in range(shape[0]))
    transposed = kind == "weight"
    return Parameter(names, shape[:0:-1] if transposed else shape[1:], True, transposed)
