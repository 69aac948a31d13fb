"""A change of any supported key of config.json changes the logits, or is an error."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_checkpoints import BASES, CASES, rows, write

from prl_jax.errors import UserError
from prl_jax.models import from_hf
from prl_jax.models.hf import FAMILIES

pytestmark = pytest.mark.slow

_YARN = BASES["llama"]["rope_scaling"]
PERTURBED = dict(
    vocab_size=41,
    hidden_size=36,
    intermediate_size=50,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=4,
    head_dim=8,
    hidden_act="gelu_pytorch_tanh",
    hidden_activation="silu",
    rms_norm_eps=0.3,
    tie_word_embeddings=None,  # the other value
    attention_bias=None,
    mlp_bias=None,
    max_position_embeddings=16,
    rope_theta=123.0,
    rope_scaling={"rope_type": "default"},
    rope_parameters={"rope_theta": 123.0},
    rope_local_base_freq=123.0,
    sliding_window=3,
    use_sliding_window=False,
    max_window_layers=2,
    sliding_window_pattern=2,
    layer_types=["full_attention"] * 3,
    query_pre_attn_scalar=4,
    final_logit_softcapping=0.7,
    attn_logit_softcapping=0.3,
)


def logits(folder):
    """Op by op: the ops of one config are those of the next, so that nothing is compiled anew."""
    model, tokens = from_hf(folder), jnp.asarray(rows(), jnp.int32)
    with jax.disable_jit():
        return np.asarray(model(tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_changes_the_logits_or_is_an_error(family, tmp_path):
    base = BASES[family]
    write(tmp_path, base)
    before, outcomes = logits(tmp_path), {}
    for key, default in FAMILIES[family].defaults.items():
        value = PERTURBED[key]
        changed = {**base, key: not base.get(key, default) if value is None else value}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        try:
            outcomes[key] = float(np.abs(logits(tmp_path) - before).max())
        except UserError:
            outcomes[key] = np.inf
    unmoved = {key: change for key, change in outcomes.items() if not change > 1e-3}
    assert not unmoved
    assert sum(np.isfinite(list(outcomes.values()))) >= 4


@pytest.mark.parametrize(
    "scaling, changes",
    [
        ({"rope_type": "linear", "factor": 3.0}, {"factor": 2.0}),
        (
            CASES["llama-llama3"]["rope_scaling"],
            dict(factor=8.0, low_freq_factor=2.0, high_freq_factor=3.0, original_max_position_embeddings=24),
        ),
        (
            {**_YARN, "original_max_position_embeddings": 200},
            dict(
                factor=2.0,
                beta_fast=3.0,
                beta_slow=1.0,
                truncate=True,
                original_max_position_embeddings=90,
                attention_factor=1.7,
            ),
        ),
        ({**_YARN, "mscale": 1.5, "mscale_all_dim": 0.5}, dict(mscale=1.0, mscale_all_dim=1.0)),
    ],
    ids=["linear", "llama3", "yarn", "mscale"],
)
def test_every_option_of_rope_changes_the_logits(scaling, changes, tmp_path):
    base = {**CASES["llama"], "head_dim": 16}
    write(tmp_path, {**base, "rope_scaling": scaling})
    before = logits(tmp_path)
    for key, value in changes.items():
        (tmp_path / "config.json").write_text(json.dumps({**base, "rope_scaling": {**scaling, key: value}}))
        assert np.abs(logits(tmp_path) - before).max() > 1e-3, key
