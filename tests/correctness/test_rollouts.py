"""Rows 3, 4, 5, 6, 7, 8 and 10 of the correctness list: what is sampled, and what is said of it."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from correctness.world import PLAIN, ROOM, TEMPERATURE, chosen, make_setup, response_laws
from fakes import LetterTokenizer, one_device, random_tokens, user

from prl_jax.artifacts.cards import ModelCard
from prl_jax.errors import UserError
from prl_jax.inputs.checks import check_config
from prl_jax.runs import models as stage_models
from prl_jax.sampling import (
    SamplingConfig,
    Support,
    decode_responses,
    encode_prompts,
    generate,
    respond,
    row_keys,
)
from prl_jax.stages import config as c
from prl_jax.stages import online
from prl_jax.text import padding
from prl_jax.types import Rollout

pytestmark = pytest.mark.slow
TOKENIZER = LetterTokenizer(pad_is_eos=True)  # the hard case of row 4 throughout
EOS, STOPS = TOKENIZER.eos_id, (TOKENIZER.eos_id, 6, 14)
ROWS, PROMPT, LONG = 16, 6, 8
CONFIG = SamplingConfig(LONG, STOPS, pad_id=EOS, temperature=TEMPERATURE)


@pytest.fixture(scope="module")
def sample(models):
    """Sixteen prompts of unequal length, answered."""
    mask = jnp.asarray(np.arange(PROMPT) >= PROMPT - (np.arange(ROWS) % PROMPT + 1)[:, None])
    prompts = jnp.asarray(random_tokens(0, ROWS, PROMPT)), mask
    keys = row_keys(jax.random.key(19), 0, ROWS)
    return lambda **changes: generate(models.policy, *prompts, keys, config=dataclasses.replace(CONFIG, **changes))


@pytest.fixture(scope="module")
def sampled(sample) -> Rollout:
    return sample()


def test_row_03_a_response_ends_with_its_stop_token_inside_the_mask(sampled):
    """Behind it stands what looks like it, but is padding."""
    ended = []
    for tokens, mask in zip(np.asarray(sampled.response), np.asarray(sampled.mask), strict=True):
        stops = np.flatnonzero(np.isin(tokens, STOPS) & (np.cumsum(~mask) == 0))
        length = stops[0] + 1 if len(stops) else LONG
        np.testing.assert_array_equal(mask, np.arange(LONG) < length)
        assert (tokens[length:] == EOS).all()
        ended.append(length < LONG - 1)
    assert any(ended)


def test_row_04_rollouts_are_the_same_where_pad_is_eos(sample, sampled, freeze):
    """Masks and all that is frozen: only what the padding looks like differs."""
    other = sample(pad_id=LetterTokenizer().pad_id)
    mask = np.asarray(sampled.mask)
    assert (np.asarray(sampled.response)[mask] == EOS).any() and (np.asarray(other.response)[~mask] != EOS).all()
    np.testing.assert_array_equal(other.mask, mask)
    np.testing.assert_array_equal(np.asarray(other.response)[mask], np.asarray(sampled.response)[mask])
    (one, _), (two, _) = (freeze(score=np.ones(ROWS), rollout=rollout) for rollout in (sampled, other))
    for a, b in zip((*one.frozen, *one.critique[1:]), (*two.frozen, *two.critique[1:]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_row_04_prompts_keep_their_eos_where_pad_is_eos():
    encoded = encode_prompts(TOKENIZER, [user("ab"), user("cde")], length=10)
    np.testing.assert_array_equal(encoded.mask.sum(1), [5, 6])  # the EOS that closes the user's turn is no padding


def test_row_05_a_response_without_a_stop_token_is_flagged(sample, sampled):
    """Each stop token counts, in the last slot too: less room cuts responses short and changes nothing else."""
    response, mask, truncated = (np.asarray(x) for x in (sampled.response, sampled.mask, sampled.truncated))
    ended = (np.isin(response, STOPS) & mask).any(1)
    assert set(STOPS) <= set(response[mask]) and 0 < ended.sum() < ROWS
    np.testing.assert_array_equal(truncated, ~ended)
    lengths = mask.sum(1)
    room = int(lengths[ended].max())
    assert (lengths[truncated] == LONG).all() and room < LONG
    cut = sample(max_new_tokens=room)
    np.testing.assert_array_equal(cut.response, response[:, :room])
    np.testing.assert_array_equal(cut.mask, mask[:, :room])
    np.testing.assert_array_equal(cut.truncated, truncated)  # though the longest ones that ended fill their rows


def test_row_06_the_sampler_draws_and_tells_at_the_sampling_temperature(models, sampled):
    logp = chosen(response_laws(models.policy, sampled, TEMPERATURE), sampled)
    np.testing.assert_allclose(sampled.logp, logp, atol=5e-5)
    other = chosen(response_laws(models.policy, sampled, 1.0), sampled)
    assert np.abs(other - logp).max() > 0.1


def test_row_06_and_row_07_a_stage_gives_trainer_and_sampler_one_distribution(models, tmp_path, monkeypatch):
    """The stage's own set-up, but for the files that it would read."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n' * 4)
    source = c.source(kind="jsonl", path=str(prompts))
    switches = dict(suppressed_tokens=(2, 9), min_new_tokens=2, stop_token_ids=(6,))
    setup = make_setup(models.policy, judge="gold", prompts=source, sampling=switches)
    card = ModelCard("policy", {}, PROMPT, LONG)
    monkeypatch.setattr(stage_models, "load_policy", lambda *_: (card, models.policy, TOKENIZER))
    monkeypatch.setattr(stage_models, "read_card", lambda *_: card)
    monkeypatch.setattr(stage_models, "model_tokenizer", lambda *_: TOKENIZER)
    monkeypatch.setattr(stage_models, "load_decoder", lambda *_: models.policy)
    made, _ = online._setup(setup.context)
    assert made.schedule.temperature == made.sampling.temperature == TEMPERATURE
    assert made.schedule.support == made.sampling.support == Support((EOS, 6), (2, 9), 2)
    assert not made.sampling.unmatched  # row 7: the ratio is that of the whole distribution


def test_row_07_the_trainer_computes_what_was_sampled_where_tokens_are_left_out(sample, freeze):
    """Suppressed tokens, and stop tokens before a response may end; without them the gap is seen."""
    rollout = sample(suppressed_tokens=(2, 3, 5), min_new_tokens=3)
    setting = PLAIN.but(schedule=dict(support=Support(STOPS, (2, 3, 5), 3)))
    gaps = [float(freeze(s, np.ones(ROWS), rollout)[1]["sampler_gap"]) for s in (setting, PLAIN)]
    assert gaps[0] < 1e-5 and gaps[1] > 0.02


@pytest.mark.parametrize("cut", [{"top_k": 5}, {"top_p": 0.9}], ids=str)
def test_row_07_a_policy_cannot_learn_from_a_truncated_distribution(cut):
    """Its ratio needs the log-probs of the distribution that was sampled, so that the stage has no such key."""
    with pytest.raises(UserError, match=f"no key '{next(iter(cut))}'"):
        c.online("ppo", **cut)
    peers = c.online("pairwise_rl", opponents=dict(kind="peer"), group_size=2, judge="gold")
    config = c.build({"sft": c.sft(), "policy": {**peers, **cut}})
    with pytest.raises(UserError, match=f"policy.{next(iter(cut))}: no such key"):
        check_config(config)


@pytest.mark.parametrize("key", ["top_k", "top_p", "min_p", "repetition_penalty"])
def test_row_07_switches_whose_distribution_training_does_not_compute_are_refused(key):
    """By name, with the reason; an evaluation, from which nobody learns, has them."""
    value = {"top_k": 5}.get(key, 0.9)
    section = c.online("spo", judge="gold", sampling={key: value})
    with pytest.raises(UserError, match=rf"policy.sampling.{key}={value}: the update's ratios need the distribution"):
        check_config(c.build({"sft": c.sft(), "policy": section}))
    section = c.online("spo", judge="gold", evaluation=dict(sampling=c.sampling(**{key: value})))
    check_config(c.build({"sft": c.sft(), "policy": section}))


def test_row_07_the_sampler_tells_log_probs_of_the_distribution_that_it_sampled(models, sample):
    """The five likeliest tokens, then the fewest of them that make up 0.8."""
    cut = sample(top_k=5, top_p=0.8)
    laws = response_laws(models.policy, cut, TEMPERATURE)
    told, tokens = np.asarray(cut.logp), np.asarray(cut.response)
    sizes = set()
    for i, t in zip(*np.nonzero(cut.mask), strict=True):
        order = np.argsort(-laws[i, t])[:5]
        p = np.exp(laws[i, t, order]) / np.exp(laws[i, t, order]).sum()
        kept = order[: np.searchsorted(np.cumsum(p), 0.8) + 1]
        expected = laws[i, t, tokens[i, t]] - np.log(np.exp(laws[i, t, kept]).sum())
        assert tokens[i, t] in kept
        np.testing.assert_allclose(told[i, t], expected, atol=1e-4)
        sizes.add(len(kept))
    assert len(sizes) > 1


def test_row_08_noise_goes_with_the_row_and_not_with_its_batch(models):
    prompts = [user(text) for text in ("ab", "ab", "ab", "cde", "ab")]
    config = SamplingConfig(6, (EOS,), EOS)
    arguments = dict(config=config, key=jax.random.key(0), max_prompt=8, mesh=one_device())
    (texts, two), (others, five) = (
        respond(models.policy, TOKENIZER, prompts, batch_size=size, **arguments) for size in (2, 5)
    )
    np.testing.assert_array_equal(two.response, five.response)
    np.testing.assert_array_equal(two.mask, five.mask)
    assert texts == others == decode_responses(TOKENIZER, two)
    assert len({tuple(row) for row in five.response}) == 5
    # Rows that are a part of the whole draw what they draw in it.
    _, part = respond(models.policy, TOKENIZER, prompts[3:], batch_size=1, first_row=3, **arguments)
    np.testing.assert_array_equal(part.response, five.response[3:])


def test_row_08_prompts_of_one_length_share_a_batch_and_sample_what_they_would_alone(models, monkeypatch):
    prompts = [user(text) for text in ("abcdefg", "a", "cde", "ab", "ghijk", "f")]
    arguments = dict(config=SamplingConfig(6, (EOS,), EOS), key=jax.random.key(0), max_prompt=16, mesh=one_device())
    texts, whole = respond(models.policy, TOKENIZER, prompts, batch_size=6, **arguments)
    monkeypatch.setattr(padding, "_SHORTEST", 4)
    module, shapes = importlib.import_module("prl_jax.sampling.respond"), []
    plain = module.generate

    def generate(model, tokens, *arguments, **options):
        shapes.append(tokens.shape)
        return plain(model, tokens, *arguments, **options)

    monkeypatch.setattr(module, "generate", generate)
    others, parts = respond(models.policy, TOKENIZER, prompts, batch_size=2, **arguments)
    assert others == texts and shapes == [(2, 4), (2, 8), (2, 16)]
    for one, two in zip(parts, whole, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_row_10_the_samplers_log_probs_are_the_trainers(models, sampled, freeze):
    """By decoding with a cache and by one forward pass, of left-padded prompts; the gap is logged."""
    experience, metrics = freeze(score=np.ones(ROWS), rollout=sampled)
    np.testing.assert_allclose(sampled.logp, experience.frozen.logp_old, atol=5e-5)
    assert float(metrics.get("sampler_gap", 1.0)) < 1e-5


def test_row_10_the_gap_is_the_mean_distance(freeze, rollout, truth):
    """Gaps of either sign add up."""
    told = rollout._replace(logp=jnp.asarray(truth.logp + 0.1 * (-1.0) ** np.arange(ROOM), jnp.float32))
    np.testing.assert_allclose(freeze(rollout=told)[1].get("sampler_gap"), 0.1, atol=1e-4)
