"""Checkpoints of transformers beside the decoder: logits, generations, exports."""

import json

import hf_golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_models import PAD, hf_checkpoints, jax_logits, load, make, padded, token_rows, torch_logits

from prl_jax.models import Decoder, DecoderConfig, ScalarModel, from_hf, preset, to_hf
from prl_jax.models.hf import read_config
from prl_jax.sampling import SamplingConfig, generate, row_keys

CASES = hf_checkpoints.CASES
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")
LENGTHS = (17, 9)  # both longer than the windows
BFLOAT16_BOUND = 0.05  # root mean square difference of the logits, as a part of their standard deviation


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def batch():
    return padded(hf_checkpoints.rows(), LENGTHS)


@pytest.mark.parametrize("case", CASES)
def test_logits(case, tmp_path):
    """Whole rows longer than the windows, left-padded and right-padded ones, in float32."""
    theirs, (tokens, mask) = make(tmp_path, CASES[case]), batch()
    ours = from_hf(tmp_path)
    assert isinstance(ours, Decoder) and {x.dtype for x in jax.tree.leaves(ours)} == {jnp.dtype("float32")}
    expected = torch_logits(theirs, tokens, mask)
    assert expected[mask].std() > 0.5
    actual = np.asarray(jax_logits(ours, token_rows(tokens, mask)))
    np.testing.assert_allclose(actual[mask], expected[mask], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_logits_in_bfloat16(case, tmp_path):
    """Parameters, activations and products in bfloat16 on both sides, which round in different places."""
    theirs, (tokens, mask) = make(tmp_path, CASES[case], torch.bfloat16), batch()
    exact = torch_logits(load(tmp_path), tokens, mask)[mask]
    expected = torch_logits(theirs, tokens, mask)[mask]
    ours = from_hf(tmp_path)
    assert {x.dtype for x in jax.tree.leaves(ours)} == {jnp.dtype("bfloat16")} and ours.config.dtype == "bfloat16"
    actual = np.asarray(jax_logits(ours, token_rows(tokens, mask)))[mask]
    rms = lambda x: float(np.sqrt(np.mean(x**2)))  # noqa: E731
    assert 0 < rms(actual - expected) < BFLOAT16_BOUND * exact.std()
    # About as far from what the same weights give in float32 as transformers is.
    assert rms(actual - exact) < 1.5 * rms(expected - exact)
    wide = np.asarray(jax_logits(from_hf(tmp_path, dtype="float32"), token_rows(tokens, mask)))[mask]
    np.testing.assert_allclose(wide, exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_greedy_generation(case, tmp_path):
    """Left-padded prompts, cached decoding past the windows, token for token."""
    theirs, room = make(tmp_path, CASES[case], embedding=0.05), 20
    tokens, mask = (x[2:4] for x in batch())  # the left-padded rows
    with torch.no_grad():
        out = theirs.generate(
            torch.tensor(tokens),
            attention_mask=torch.tensor(mask).long(),
            max_new_tokens=room,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=PAD,
        ).numpy()
    expected = np.full((2, room), PAD)
    expected[:, : out.shape[1] - tokens.shape[1]] = out[:, tokens.shape[1] :]
    assert len(set(expected.ravel().tolist())) > 4
    config = SamplingConfig(max_new_tokens=room, stop_ids=(2,), pad_id=PAD, temperature=0.0)
    keys = row_keys(jax.random.key(0), 0, 2)
    rollout = generate(from_hf(tmp_path), jnp.asarray(tokens), jnp.asarray(mask), keys, config=config)
    np.testing.assert_array_equal(rollout.response, expected)


@pytest.mark.parametrize("reward_model", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_exports_load_and_give_the_same_logits(case, reward_model, tmp_path):
    """With the keys of the checkpoint it came from, and with those that follow from the decoder alone."""
    config = hf_checkpoints.reward_model(CASES[case]) if reward_model else CASES[case]
    theirs, (tokens, mask) = make(tmp_path / "theirs", config), batch()
    ours, expected = from_hf(tmp_path / "theirs"), torch_logits(theirs, tokens, mask)
    to_hf(ours, tmp_path / "kept", source=read_config(tmp_path / "theirs"), max_shard_bytes=10_000)
    to_hf(ours, tmp_path / "new")
    new = json.loads((tmp_path / "new" / "config.json").read_text())
    if reward_model:  # transformers finds the last token by its pad token
        (tmp_path / "new" / "config.json").write_text(json.dumps({**new, "pad_token_id": PAD}))
    for name in ("kept", "new"):
        again = load(tmp_path / name, reward_model=reward_model)
        state, original = again.state_dict(), theirs.state_dict()
        assert state.keys() == original.keys() and all(torch.equal(state[key], original[key]) for key in state)
        np.testing.assert_allclose(torch_logits(again, tokens, mask), expected, atol=1e-6 if name == "kept" else 1e-5)


@pytest.mark.parametrize("case", FAMILIES)
def test_scores_of_reward_models(case, tmp_path):
    theirs, (tokens, mask) = make(tmp_path, hf_checkpoints.reward_model(CASES[case])), batch()
    ours = from_hf(tmp_path)
    assert isinstance(ours, ScalarModel) and ours.scalar.bias is None
    expected = torch_logits(theirs, tokens, mask)
    assert expected.shape == (len(tokens),) and expected.std() > 0.1
    np.testing.assert_allclose(jax_logits(ours, token_rows(tokens, mask)), expected, atol=1e-4)


@pytest.mark.parametrize("size", ["tiny", "mini"])
def test_presets_are_llamas(size, tmp_path):
    """A decoder that was never in Hugging Face's format."""
    config = DecoderConfig.from_dict(preset(size), vocab_size=hf_checkpoints.VOCAB)
    model = jax.jit(lambda key: Decoder(config, key=key))(jax.random.key(0))
    to_hf(model, tmp_path / "model")
    (tokens, mask), theirs = batch(), load(tmp_path / "model")
    assert theirs.config.model_type == "llama"
    expected = torch_logits(theirs, tokens, mask)[mask]
    np.testing.assert_allclose(np.asarray(jax_logits(model, token_rows(tokens, mask)))[mask], expected, atol=1e-4)


def test_checkpoints_in_float16(tmp_path):
    make(tmp_path, CASES["qwen3"], torch.float16)
    tokens, mask = batch()
    ours, expected = from_hf(tmp_path), torch_logits(load(tmp_path), tokens, mask)[mask]
    assert {x.dtype for x in jax.tree.leaves(ours)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(np.asarray(jax_logits(ours, token_rows(tokens, mask)))[mask], expected, atol=1e-4)


def test_golden_files_hold_what_transformers_computes():
    kept = {}
    for path in hf_golden.FOLDER.glob("*.json"):
        kept.update(json.loads(path.read_text()))
    cases = hf_golden.cases()
    assert kept.keys() == cases.keys()
    for name, config in cases.items():
        assert kept[name]["config"] == config
        np.testing.assert_allclose(kept[name]["logits"], hf_golden.logits(config), atol=2e-5)
