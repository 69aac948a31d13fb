"""Rows 31 and 32 of the correctness list: what can be sampled, and what ends it."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_families import FAMILIES, write_tokenizer
from correctness.world import TEMPERATURE, log_softmax, response_laws
from fakes import LetterTokenizer, make_decoder, one_device, random_tokens, token_rows

from prl_jax.artifacts.cards import Defaults, ModelCard, read_card, sampling_config, stop_ids
from prl_jax.artifacts.models import keep_unsampled
from prl_jax.config import declare
from prl_jax.errors import UserError
from prl_jax.masked import without_ids
from prl_jax.models import verdict_log_probs
from prl_jax.runs.context import StageContext, model_defaults
from prl_jax.runs.models import LoadedModels
from prl_jax.runs.workdir import Workdir
from prl_jax.sampling import SamplingConfig, Support, decode_responses, generate, row_keys
from prl_jax.stages import config as c
from prl_jax.text.tokenizer import BPETokenizer, ByteTokenizer, HFTokenizer, unsampled_ids
from prl_jax.training.rollout import join_rows, response_logprobs

LETTERS = LetterTokenizer()
EOS = LETTERS.eos_id
SILENT = [i for i in range(LETTERS.vocab_size) if i >= len(LETTERS.letters) and i != EOS]
ROWS, PROMPT, LONG = 16, 6, 8
HOT = 20.0  # draws of almost everything


def members(ranges) -> list[int]:
    return [i for first, end in ranges for i in range(first, end)]


@pytest.fixture(scope="module")
def policy():
    model = make_decoder(layers=1)
    keep_unsampled(model, ModelCard("policy", {}, PROMPT, LONG), LETTERS)
    return model


@pytest.fixture(scope="module")
def sample(policy):
    mask = jnp.asarray(np.arange(PROMPT) >= PROMPT - (np.arange(ROWS) % PROMPT + 1)[:, None])
    prompts = jnp.asarray(random_tokens(0, ROWS, PROMPT)), mask
    keys = row_keys(jax.random.key(19), 0, ROWS)

    def call(model=policy, **values):
        values = {"stop_ids": (EOS,), "temperature": TEMPERATURE, **values}
        config = SamplingConfig(LONG, pad_id=LETTERS.pad_id, **values)
        return generate(model, *prompts, keys, config=config)

    return call


# Row 31.


def test_row_31_what_leaves_no_text_is_never_sampled(policy, sample):
    """Sampled or greedy; without the filter some of it is."""
    drawn = lambda found: np.asarray(found.response)[np.asarray(found.mask)]  # noqa: E731
    for temperature in (HOT, 0.0):
        found = sample(temperature=temperature)
        assert not np.isin(drawn(found), SILENT).any()
        assert np.asarray(found.logp).min() > -50
    assert np.isin(drawn(sample(make_decoder(layers=1), temperature=HOT)), SILENT).any()
    assert (drawn(sample(temperature=HOT)) == EOS).any()


def test_row_31_the_trainers_normaliser_has_the_same_filter(policy, sample):
    """The log-probs of both are those of the distribution over what can be sampled."""
    found = sample()
    laws = response_laws(make_decoder(layers=1), found, 1.0)  # of the whole vocabulary
    laws[..., SILENT] = -np.inf
    kept = log_softmax(np.where(np.isinf(laws), -1e30, laws) / TEMPERATURE)
    tokens, mask = np.asarray(found.response), np.asarray(found.mask)
    expected = np.where(mask, np.take_along_axis(kept, tokens[..., None], -1)[..., 0], 0.0)
    np.testing.assert_allclose(np.where(mask, found.logp, 0.0), expected, atol=1e-4)
    rows = join_rows(found.prompt, found.prompt_mask, found.response, found.mask)
    logp, entropy = response_logprobs(policy, rows, found.response, found.mask, TEMPERATURE)
    np.testing.assert_allclose(logp, expected, atol=1e-4)
    plogp = np.where(np.exp(kept) > 0, np.exp(kept) * np.maximum(kept, -1e4), 0.0).sum(-1)
    np.testing.assert_allclose(entropy, np.where(mask, -plogp, 0.0), atol=1e-3)


def test_row_31_what_a_config_leaves_out_has_no_probability_in_the_trainer_either(policy, sample):
    """Suppressed ids, stop tokens among the first tokens; and one that the model never samples can end a response."""
    verdict, suppressed = LETTERS.special("verdict"), (2, 3, 9)
    support = Support((EOS, verdict), suppressed, 3)
    found = sample(stop_ids=support.stop_ids, suppressed_tokens=suppressed, min_new_tokens=3, temperature=HOT)
    tokens, mask = np.asarray(found.response), np.asarray(found.mask)
    assert not np.isin(tokens[mask], suppressed).any() and set(support.stop_ids) <= set(tokens[mask])
    assert not np.isin(tokens[:, :3], support.stop_ids).any() and mask[:, :3].all()
    laws = response_laws(make_decoder(layers=1), found, HOT)  # of the whole vocabulary
    laws[..., [*suppressed, *(set(SILENT) - {verdict})]] = -1e9
    laws[:, :3, list(support.stop_ids)] = -1e9
    kept = log_softmax(laws)
    expected = np.where(mask, np.take_along_axis(kept, tokens[..., None], -1)[..., 0], 0.0)
    rows = join_rows(found.prompt, found.prompt_mask, found.response, found.mask)
    tell = jax.jit(response_logprobs, static_argnums=(4, 5))
    logp, entropy = tell(policy, rows, found.response, found.mask, HOT, support)
    np.testing.assert_allclose(found.logp, expected, atol=1e-4)
    np.testing.assert_allclose(logp, expected, atol=1e-4)
    np.testing.assert_allclose(entropy, np.where(mask, -(np.exp(kept) * kept).sum(-1), 0.0), atol=1e-3)


def test_row_31_many_absent_ids_are_absent_as_few_are():
    """They are compared one by one, or are a mask of the vocabulary."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64)), jnp.float32)
    many = tuple((i, i + 1) for i in range(0, 60, 3))
    one_by_one = logits
    for first in many:
        one_by_one = without_ids(one_by_one, (first,))
    np.testing.assert_array_equal(without_ids(logits, many), one_by_one)
    assert (np.asarray(one_by_one) < -1e8).sum() == 2 * len(many) == 40


def test_row_31_a_verdict_keeps_the_whole_vocabulary(policy):
    rows = token_rows([[1, 2, 3], [4, 5]], 4)
    run = jax.jit(verdict_log_probs, static_argnums=2)
    np.testing.assert_array_equal(run(policy, rows, (18, 19)), run(make_decoder(layers=1), rows, (18, 19)))


def test_row_31_a_models_own_ids_are_known_from_its_tokenizer(tmp_path):
    """Whatever leaves no text and ends no response."""
    byte = ByteTokenizer()
    assert members(unsampled_ids(byte, byte.vocab_size, (byte.eos_id,))) == [
        i for i in range(256, byte.vocab_size) if i != byte.eos_id
    ]
    bpe = BPETokenizer.train(["some text"] * 4, 300)
    silent = members(unsampled_ids(bpe, bpe.vocab_size, (bpe.eos_id,)))
    assert silent == [i for i in range(bpe.vocab_size) if not bpe.decode([i]) and i != bpe.eos_id]
    assert bpe.special("verdict") in silent and bpe.vocab_size - 1 in silent
    for name in ("llama3", "qwen2.5"):
        tokenizer = HFTokenizer(write_tokenizer(tmp_path / name, FAMILIES[name]))
        stops = (tokenizer.eos_id,)
        silent = members(unsampled_ids(tokenizer, tokenizer.vocab_size, stops))
        texts = [i for i in range(tokenizer.vocab_size) if tokenizer.decode([i])]
        assert silent and not set(silent) & {*texts, *stops}
        assert set(tokenizer._control) - set(stops) <= set(silent)


def test_row_31_a_new_policy_and_what_descends_from_it_carry_the_filter(tmp_path):
    """In the stage that makes it; its card has it too, so that whoever loads it samples alike."""
    config = c.build({"sft": c.sft()}, model=dict(width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp_width=8))
    context = StageContext("sft", config, Workdir(tmp_path, config), one_device())
    tokenizer = ByteTokenizer()
    decoder = LoadedModels(context).trainable("sft")
    expected = unsampled_ids(tokenizer, tokenizer.vocab_size, (tokenizer.eos_id,))
    assert decoder.config.unsampled == expected
    card = ModelCard("policy", json.loads(json.dumps(dataclasses.asdict(decoder.config))), 4, 4)
    assert card.config.unsampled == expected


# Row 32.


def llama3(folder: Path, **files) -> Path:
    """A directory that says which tokens end a response, with a tokenizer of the Llama 3 family."""
    write_tokenizer(folder, FAMILIES["llama3"])
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


LLAMA = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=600, hidden_size=16, intermediate_size=16,
    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-5, max_position_embeddings=64,
    rope_theta=1e4, tie_word_embeddings=True,
)  # fmt: skip


def test_row_32_every_end_token_of_the_directory_and_of_the_config_ends_a_response(tmp_path):
    """config.json, generation_config.json, the chat template, and the key huggingface.stop_tokens."""
    folder = llama3(tmp_path / "model", config={**LLAMA, "eos_token_id": 5}, generation_config={"eos_token_id": [6, 7]})
    tokenizer = HFTokenizer(folder)
    further = tokenizer._hf.convert_ids_to_tokens(9)
    config = c.build({"sft": c.sft()}, huggingface=dict(stop_tokens=(further,)))
    defaults = model_defaults(config)
    card = read_card(folder, defaults)
    assert stop_ids(card, tokenizer) == (tokenizer.eos_id, 5, 6, 7, 9)
    assert sampling_config(card, tokenizer).stop_ids == stop_ids(card, tokenizer)
    assert stop_ids(read_card(folder), tokenizer) == (tokenizer.eos_id, 5, 6, 7)
    # A stage that starts from it inherits them, and its model.json keeps them.
    stage = ModelCard("policy", {}, 4, 4, **card.origin)
    assert stop_ids(stage, tokenizer) == stop_ids(card, tokenizer)
    with pytest.raises(UserError, match='"<nothing>" is no token of the vocabulary'):
        stop_ids(read_card(folder, Defaults(stop_tokens=("<nothing>",))), tokenizer)
    assert declare.build({})["huggingface"]["stop_tokens"] == ()


def test_row_32_a_response_ends_at_the_first_of_them(policy, sample):
    """Each one in turn, whichever comes first; it belongs to the response and leaves no text."""
    tokenizer, stops = LETTERS, (EOS, 3, 7)
    card = ModelCard("policy", {}, PROMPT, LONG, stop_ids=stops[1:])
    config = sampling_config(card, tokenizer)
    assert config.stop_ids == stops
    found = sample(stop_ids=config.stop_ids, temperature=HOT)
    ended, texts = set(), decode_responses(tokenizer, found, config.stop_ids)
    columns = map(np.asarray, (found.response, found.mask, found.truncated))
    for tokens, mask, truncated, text in zip(*columns, texts, strict=True):
        places = np.flatnonzero(np.isin(tokens, stops) & mask)
        assert len(places) == (not truncated)
        if len(places):
            assert places[0] == mask.sum() - 1
            ended.add(int(tokens[places[0]]))
            assert text == tokenizer.decode(tokens[: places[0]].tolist())
    assert ended == set(stops)


def test_row_31_a_further_stop_token_can_be_sampled():
    """The filter leaves whatever ends a response."""
    model = make_decoder(layers=1)
    verdict = LETTERS.special("verdict")
    keep_unsampled(model, ModelCard("policy", {}, 4, 4, stop_ids=(verdict,)), LETTERS)
    assert set(members(model.config.unsampled)) == set(SILENT) - {verdict}
