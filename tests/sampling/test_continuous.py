"""Continuous batching: the responses of `generate`, whoever shares the decode loop with them."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_decoder, random_tokens

from prl_jax.models import MixedDecoder
from prl_jax.sampling import SamplingConfig, continuous, decode, decode_queued, generate, prefill, row_keys, slots_of
from prl_jax.sharding import AXES

EOS = 21
PROMPTS, PROMPT, ROOM = 20, 6, 8
LENGTHS = np.arange(PROMPTS) % PROMPT + 1
CONFIG = SamplingConfig(ROOM, (EOS, 3, 9), pad_id=EOS, temperature=0.7)
SWITCHES = dict(repetition_penalty=1.3, repetition_ngram=2, repetition_times=2, min_new_tokens=2, min_p=0.02)


@pytest.fixture(scope="module")
def prompts():
    mask = np.arange(PROMPT) >= PROMPT - LENGTHS[:, None]
    return jnp.asarray(random_tokens(0, PROMPTS, PROMPT)), jnp.asarray(mask)


@pytest.fixture(scope="module")
def models():
    """One layer of two sees the last three tokens alone, which must be those before it in the ring too."""
    one, two = (make_decoder(seed, layers=2, window=3, windowed=(True, False)) for seed in (1, 2))
    return {"alone": one, "mixed": MixedDecoder(one, two, 0.3)}


@pytest.mark.parametrize(
    ("model", "group", "slots", "changes"),
    [
        ("alone", 1, 1, {}),
        ("alone", 1, 7, SWITCHES),
        ("alone", 4, 16, SWITCHES),
        ("alone", 1, 64, {"temperature": 0.0}),
        ("mixed", 2, 5, {}),
    ],
)
def test_every_response_is_what_a_whole_batch_gives(models, prompts, model, group, slots, changes):
    """The ring of 14 places comes round many times; more slots than rows stay empty."""
    config, keys = dataclasses.replace(CONFIG, **changes), row_keys(jax.random.key(5), 0, PROMPTS * group)
    expected = jax.device_get(generate(models[model], *prompts, keys, config=config, group=group))
    found = jax.device_get(decode_queued(models[model], *prompts, keys, config=config, slots=slots, group=group))
    np.testing.assert_array_equal(found.response, expected.response)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.truncated, expected.truncated)
    np.testing.assert_allclose(found.logp, expected.logp, atol=1e-5)
    lengths = found.mask.sum(1)
    assert lengths.min() < lengths.max() == ROOM and 0 < found.truncated.sum() < len(lengths)


def test_a_finished_row_makes_room_for_one_that_waits(models, prompts, monkeypatch):
    """As many steps as the tokens that a full loop takes, not as many as the longest response of each batch."""
    keys, steps = row_keys(jax.random.key(5), 0, PROMPTS), []
    lengths = np.asarray(generate(models["alone"], *prompts, keys, config=CONFIG).mask).sum(1)
    plain = continuous.draw

    def draw(*arguments):
        jax.debug.callback(lambda: steps.append(1))
        return plain(*arguments)

    monkeypatch.setattr(continuous, "draw", draw)
    config = dataclasses.replace(CONFIG, temperature=0.7001)  # compiled anew, with the counter
    jax.block_until_ready(decode_queued(models["alone"], *prompts, keys, config=config, slots=2))
    jax.effects_barrier()
    batches = lengths.reshape(-1, 2)
    assert batches.mean(1).sum() <= len(steps) < batches.max(1).sum()


def test_long_responses_of_many_rows_are_queued_where_rows_are_not_cut(models, prompts, monkeypatch):
    assert [slots_of(rows, 64) for rows in (8, 32, 33, 512)] == [8, 32, 32, 32]
    assert slots_of(512, 64, group=16) == 64 and slots_of(512, 63) == 512
    calls = []
    monkeypatch.setattr(continuous, "_SHORTEST", ROOM)
    monkeypatch.setattr(continuous, "_CPU_SLOTS", 8)
    module = importlib.import_module("prl_jax.sampling.generate")
    monkeypatch.setattr(module, "decode_queued", lambda *a, **k: calls.append(k["slots"]) or decode_queued(*a, **k))
    keys = row_keys(jax.random.key(5), 0, PROMPTS)
    found = generate(models["alone"], *prompts, keys, config=CONFIG)
    hidden, cache = prefill(models["alone"], *prompts, config=CONFIG)
    expected, _ = decode(models["alone"], hidden, cache, keys, config=CONFIG)
    np.testing.assert_array_equal(found.response, expected.response)
    np.testing.assert_array_equal(found.prompt, prompts[0])
    assert calls == [8]


def test_where_the_mesh_cuts_rows_a_batch_is_decoded_as_one():
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2, 1, 1, 1, 1), AXES)):
        assert slots_of(512, 64) == 512
