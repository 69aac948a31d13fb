"""config.json: every key counts or is refused by name, in both directions."""

import dataclasses
import json

import numpy as np
import pytest
from hf_checkpoints import BASES, CASES, reward_model

from prl_jax.errors import UserError
from prl_jax.models import DecoderConfig, LoraConfig, RopeScaling
from prl_jax.models.hf import FAMILIES, decoder_config, export_config, is_reward_model, read_config
from prl_jax.models.hf.families import FIXED, INERT

_YARN = dict(rope_type="yarn", factor=4.0, beta_fast=8.0, beta_slow=0.5, truncate=False)


def refuse(config, *words):
    with pytest.raises(UserError) as error:
        decoder_config(config, "somewhere/config.json")
    message = str(error.value)
    assert "\n" not in message and message.startswith("somewhere/config.json"), message
    assert not [word for word in words if word not in message], message


def test_both_forms_of_rope_say_the_same():
    base = {key: value for key, value in CASES["llama"].items() if key != "rope_theta"}
    part = CASES["llama-llama3"]["rope_scaling"]
    old = decoder_config({**base, "rope_theta": 5e5, "rope_scaling": part}, "old")
    typed = decoder_config({**base, "rope_theta": 5e5, "rope_scaling": {**part, "type": "llama3"}}, "old")
    new = decoder_config({**base, "rope_parameters": {**part, "rope_theta": 5e5}}, "new")
    assert old == typed == new
    assert (new.rope_theta, new.rope_scaling) == (5e5, RopeScaling("llama3", 4.0, 16, 1.0, 4.0))
    gemma = {key: value for key, value in CASES["gemma3"].items() if "rope" not in key}
    parts = {"full_attention": {"rope_theta": 3e5, "rope_type": "default"}, "sliding_attention": {"rope_theta": 7e3}}
    new = decoder_config({**gemma, "rope_parameters": parts}, "new")
    assert new == decoder_config({**gemma, "rope_theta": 3e5, "rope_local_base_freq": 7e3}, "old")
    assert (new.rope_theta, new.local_rope_theta) == (3e5, 7e3)


def test_yarn_computes_its_attention_factor():
    """0.1 ln(factor) + 1 (arXiv 2309.00071, equation 22); with two scales the quotient of theirs."""

    def factor(**keys):
        config = decoder_config({**CASES["llama"], "rope_scaling": {**_YARN, **keys}}, "test")
        return config.rope_scaling.attention_factor

    assert factor() == pytest.approx(0.1 * np.log(4.0) + 1.0)
    assert factor(mscale=2.0, mscale_all_dim=0.5) == pytest.approx((0.2 * np.log(4) + 1) / (0.05 * np.log(4) + 1))
    assert factor(attention_factor=1.25) == 1.25
    assert factor(factor=0.5) == 1.0


def test_windows_of_each_family():
    def windows(case, **keys):
        config = decoder_config({**CASES[case], "num_hidden_layers": 7, **keys}, "test")
        return "".join("x" if local else "." for local in config.local_layers)

    assert windows("llama") == windows("mistral", sliding_window=None) == windows("qwen2") == "." * 7
    assert windows("mistral") == windows("qwen2-window", max_window_layers=0) == "x" * 7
    assert windows("qwen2-window", max_window_layers=4) == "....xxx"
    assert windows("gemma2") == "x.x.x.x"
    assert windows("gemma3") == "xx.xx.x"
    gemma = {key: value for key, value in CASES["gemma3"].items() if key != "sliding_window_pattern"}
    assert decoder_config({**gemma, "num_hidden_layers": 7}, "test").local_layers == (True,) * 5 + (False, True)
    assert decoder_config({**gemma, "num_hidden_layers": 4, "_sliding_window_pattern": 2}, "test").windowed[1] is False
    types = ["full_attention"] * 3 + ["sliding_attention"] * 4
    assert windows("gemma3", layer_types=types) == windows("qwen2-window", layer_types=types) == "...xxxx"


def test_missing_keys_mean_what_they_mean_in_transformers():
    """The keys that a checkpoint of Gemma 3 4B leaves out."""
    short = dict(model_type="gemma3_text", hidden_size=2560, intermediate_size=10240, num_hidden_layers=34)
    config = decoder_config(
        {**short, "sliding_window": 1024, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}, ""
    )
    assert (config.vocab_size, config.heads, config.kv_heads, config.head_dim) == (262208, 8, 4, 256)
    assert (config.rope_theta, config.local_rope_theta, config.query_scale) == (1e6, 1e4, 256**-0.5)
    assert config.tied_embeddings and config.rope_scaling == RopeScaling("linear", 8.0)
    assert sum(config.local_layers) == 29 and config.window == 1024
    llama = decoder_config({"model_type": "llama", "num_key_value_heads": None}, "")
    assert (llama.heads, llama.kv_heads, llama.head_dim, llama.tied_embeddings) == (32, 32, 128, False)
    assert decoder_config({"model_type": "mistral"}, "").window == 4096


def test_unknown_architectures_are_refused_by_name():
    refuse({"model_type": "phi3"}, "model_type='phi3'", "llama", "qwen3", "gemma3_text")
    refuse({}, "model_type=None")
    refuse({"model_type": "gemma3"}, "gemma3_text", "Gemma3ForCausalLM")
    for names in (["LlamaModel"], ["LlamaForTokenClassification"], ["Qwen2ForCausalLM"], ["LlamaForCausalLM"] * 2):
        with pytest.raises(UserError, match="architectures=.*LlamaForCausalLM, LlamaForSequenceClassification"):
            is_reward_model({**CASES["llama"], "architectures": names}, "here")


def test_reward_models_have_one_label():
    config = reward_model(CASES["llama"])
    assert is_reward_model(config, "here") and not is_reward_model(CASES["llama"], "here")
    assert not is_reward_model({"model_type": "llama"}, "here")
    for labels in ({"0": "a", "1": "b"}, None):
        with pytest.raises(UserError, match="with 2 labels .* expected 1"):
            is_reward_model({**config, "id2label": labels}, "here")
    assert is_reward_model({**config, "id2label": None, "num_labels": 1}, "here")


@pytest.mark.parametrize("family", FAMILIES)
def test_unsupported_values_are_refused_by_name(family):
    base = BASES[family]
    decoder_config(base, "here")
    refuse({**base, "num_experts": 8}, "num_experts=8", "unknown", repr(family))
    refuse({**base, "use_moe": True, "alibi": True}, "use_moe=True", "alibi=True")
    refuse({**base, "quantization_config": {"quant_method": "fp8"}}, "quantised", "save it dequantised")
    # What would ask for memory before anything can be held against the weights.
    for key in ("num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings"):
        refuse({**base, key: 10**12}, f"{key}=1000000000000 (expected at most")
    wrong = {"attention_dropout": 0.1, "partial_rotary_factor": 0.5, "is_encoder_decoder": True}
    wrong |= {key: "other" for key in FIXED if key not in FAMILIES[family].defaults and key not in wrong}
    refuse({**base, **wrong}, *(f"{key}=" for key in wrong))
    for key, value in FAMILIES[family].defaults.items():
        refuse({**base, key: "no" if not isinstance(value, str) else "tanh"}, f"{key}=")
    for key in ("hidden_size", "num_hidden_layers", "rms_norm_eps"):
        refuse({**base, key: 0}, f"{key}=0")
        refuse({**base, key: None}, f"{key}=None")
        refuse({**base, key: True}, f"{key}=True")


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_without_effect_and_nulls_are_taken(family):
    base = BASES[family]
    same = {**base, **{key: "whatever" for key in INERT - {"model_type"}}, "num_experts": None}
    same |= {key: values[0] for key, values in FIXED.items() if key not in FAMILIES[family].defaults}
    assert decoder_config(same, "here") == decoder_config(base, "here")


def test_contradictions_are_refused():
    gemma, llama, qwen = CASES["gemma2"], CASES["llama"], CASES["qwen2"]
    decoder_config({**gemma, "hidden_act": "gelu_pytorch_tanh", "sliding_window_size": 5}, "here")
    refuse({**gemma, "hidden_act": "silu"}, "hidden_act='silu'", "hidden_activation")
    refuse({**gemma, "sliding_window_size": 6}, "sliding_window_size=6")
    refuse({**gemma, "sliding_window": None}, "sliding_window")
    refuse({**qwen, "layer_types": ["sliding_attention"] * 3}, "use_sliding_window")
    refuse({**qwen, "layer_types": ["full_attention"] * 2}, "layer_types", "3 layers")
    refuse({**qwen, "layer_types": ["chunked_attention"] * 3}, "layer_types", "chunked_attention")
    refuse({**llama, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {}}, "rope_parameters")
    refuse({**llama, "rope_parameters": {"rope_theta": 5.0}}, "rope_theta=5.0")
    refuse({**llama, "hidden_size": 30}, "hidden_size=30", "num_attention_heads=4")
    refuse({**CASES["gemma3"], "rope_parameters": {"rope_theta": 1e6}}, "full_attention")
    local = {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}
    refuse({**CASES["gemma3"], "rope_parameters": local}, "sliding_attention")


@pytest.mark.parametrize(
    "scaling, words",
    [
        ({"rope_type": "dynamic", "factor": 2.0}, ["'dynamic'", "llama3, yarn"]),
        ({"rope_type": "linear", "type": "yarn", "factor": 2.0}, ["linear/yarn"]),
        ({"rope_type": "linear"}, ["factor is missing"]),
        ({"rope_type": "linear", "factor": -1.0}, ["factor=-1.0"]),
        ({"rope_type": "linear", "factor": 2.0, "mrope_section": [1, 2]}, ["mrope_section=[1, 2]"]),
        ({"rope_type": "default", "factor": 2.0}, ["factor=2.0", "no options"]),
        ({**CASES["llama-llama3"]["rope_scaling"], "high_freq_factor": 1.0}, ["low_freq_factor=1.0", "high_freq"]),
        ({"rope_type": "llama3", "factor": 2.0}, ["high_freq_factor is missing", "low_freq_factor is missing"]),
        ({**_YARN, "mscale": 1.0}, ["mscale_all_dim"]),
        ({**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.0}, ["attention_factor"]),
        ({**_YARN, "partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
    ],
)
def test_unsupported_rope_is_refused_by_name(scaling, words):
    refuse({**CASES["llama"], "rope_scaling": scaling}, "rope_scaling", *words)


@pytest.mark.parametrize("case", CASES)
def test_a_decoder_alone_says_what_its_config_is(case):
    """Written without its source, in the keys of the same family or of one that means the same."""
    config = decoder_config(CASES[case], "here")
    values = export_config(config, reward_model=False)
    again = decoder_config(values, "again")
    assert again == dataclasses.replace(config, query_scale=again.query_scale)
    assert (again.query_scale or again.head_dim**-0.5) == (config.query_scale or config.head_dim**-0.5)
    expected = {"mistral-no-window": "llama", "gemma2-untied": "gemma2"}.get(case, CASES[case]["model_type"])
    assert values["model_type"] == expected and values["architectures"] == CASES[case]["architectures"][:0] + [
        FAMILIES[expected].language_model
    ]
    json.dumps(values)


@pytest.mark.parametrize("case", CASES)
def test_the_keys_of_the_source_are_kept(case):
    source = {**CASES[case], "transformers_version": "4.1", "torch_dtype": "bfloat16", "use_cache": True}
    config = dataclasses.replace(decoder_config(source, "here"), param_dtype="bfloat16", dtype="float32", remat=True)
    assert export_config(config, reward_model=False, source=source) == source
    reward = export_config(config, reward_model=True, source=source)
    assert reward == {**reward_model(source)}
    other = dataclasses.replace(config, norm_eps=0.25, lora=LoraConfig(rank=2))
    with pytest.raises(UserError, match=r"source: .*norm_eps=0.25 \(not 1e-05\)$"):
        export_config(other, reward_model=False, source=source)


def test_a_decoder_that_is_in_no_family_is_refused():
    config = decoder_config(CASES["gemma3"], "here")
    for changes, word in (
        (dict(post_norms=False), "post_norms=False"),
        (dict(attention_softcap=3.0), "attention_softcap=3.0"),
        (dict(query_scale=0.3), "query_scale=0.3"),
    ):
        with pytest.raises(UserError, match=f"no family .* gemma3_text differs in .*{word}"):
            export_config(dataclasses.replace(config, **changes), reward_model=False)
    plain = DecoderConfig(vocab_size=32, width=18, layers=1, heads=4, kv_heads=2, head_dim=4, mlp_width=8)
    assert export_config(plain, reward_model=False)["model_type"] == "mistral"  # takes any width


def test_unreadable_files_are_named(tmp_path):
    for content, words in ((None, "no config.json"), ("{", "cannot be read"), ("[]", "expected a JSON object")):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=words):
            read_config(tmp_path)
