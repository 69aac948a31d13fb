"""Configs and presets of decoders."""

import jax
import pytest
from fakes import decoder_config

from prl_jax.errors import UserError
from prl_jax.models import PRESETS, Decoder, DecoderConfig, preset


@pytest.mark.parametrize(
    "wrong",
    [
        {"vocab_size": 0},
        {"width": 0},
        {"layers": -1},
        {"heads": 0},
        {"kv_heads": 0},
        {"mlp_width": 0},
        {"kv_heads": 3},
        {"head_dim": 5},
        {"dtype": "float16"},
    ],
    ids=str,
)
def test_a_wrong_field_is_named(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=f"{name}") as error:
        decoder_config(**wrong)
    assert str(wrong[name]) in str(error.value) and "\n" not in str(error.value)


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(UserError, match=r"unknown fields \['n_layers'\]"):
        decoder_config(n_layers=2)
    with pytest.raises(UserError, match=r"missing fields \['heads', 'width'\]"):
        DecoderConfig.from_dict(dict(vocab_size=8, layers=1, kv_heads=1, head_dim=2, mlp_width=2))


def test_overrides_win():
    assert decoder_config(width=48).width == 48 and decoder_config(layers=1, remat=True).remat


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name):
    config = DecoderConfig.from_dict(preset(name), vocab_size=272)
    model = jax.eval_shape(lambda: Decoder(config, key=jax.random.key(0)))
    assert model.embedding.shape == (272, config.width)
    assert model.blocks.mlp.up.weight.shape == (config.layers, config.width, config.mlp_width)


def test_a_preset_is_a_copy_and_an_unknown_one_is_refused():
    preset("tiny")["width"] = 1
    assert preset("tiny")["width"] > 1
    with pytest.raises(KeyError, match="gigantic"):
        preset("gigantic")
