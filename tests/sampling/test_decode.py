"""The decode loop: what it samples, what it calls a response, and what a row depends on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_decoder, random_tokens

from prl_jax.errors import UserError
from prl_jax.models import MixedDecoder
from prl_jax.sampling import SamplingConfig, decode, generate, prefill, row_keys
from prl_jax.training.rollout import join_rows
from prl_jax.types import Rollout

EOS, STOPS = 21, (21, 3, 9)
ROWS, PROMPT, ROOM = 16, 6, 8
# The hard case of row 4 throughout: padding looks like the end of a response.
CONFIG = SamplingConfig(ROOM, STOPS, pad_id=EOS, temperature=0.7)
LENGTHS = np.arange(ROWS) % PROMPT + 1


@pytest.fixture(scope="module")
def model():
    return make_decoder(1, layers=1)


@pytest.fixture(scope="module")
def prompts():
    mask = np.arange(PROMPT) >= PROMPT - LENGTHS[:, None]
    return jnp.asarray(random_tokens(0, ROWS, PROMPT)), jnp.asarray(mask)


@pytest.fixture(scope="module")
def keys():
    return row_keys(jax.random.key(5), 0, ROWS)


@pytest.fixture(scope="module")
def rollout(model, prompts, keys) -> Rollout:
    return jax.device_get(generate(model, *prompts, keys, config=CONFIG))


@pytest.fixture(scope="module")
def trainer_logits(model):
    """Logits before each response token by the full forward pass over prompt and response."""

    @jax.jit
    def run(rollout):
        rows = join_rows(rollout.prompt, rollout.prompt_mask, rollout.response, rollout.mask)
        return model.logits(model.hidden(*rows)[:, PROMPT - 1 : -1])

    return lambda rollout: np.asarray(run(Rollout(*map(jnp.asarray, rollout))))


@pytest.mark.parametrize("share", [None, 0.5])
def test_a_prompt_is_read_once_for_its_group(model, prompts, keys, share):
    """The same responses as to a batch that has the prompt once for each."""
    policy = model if share is None else MixedDecoder(model, make_decoder(2, layers=1), share)
    few = [x[: ROWS // 2] for x in prompts]
    config = dataclasses.replace(CONFIG, repetition_penalty=1.3)
    found = jax.device_get(generate(policy, *few, keys, config=config, group=2))
    expected = jax.device_get(generate(policy, *(jnp.repeat(x, 2, axis=0) for x in few), keys, config=config))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert len({tuple(row) for row in found.response}) > ROWS // 2


def test_row_08_a_row_depends_on_its_key_and_prompt_alone(model, prompts, keys, rollout):
    """Other batch mates, another place in the batch, another split of the batch."""
    order = np.random.default_rng(0).permutation(ROWS)
    shuffled = jax.device_get(generate(model, *(x[order] for x in prompts), keys[order], config=CONFIG))
    np.testing.assert_array_equal(shuffled.response, rollout.response[order])
    np.testing.assert_allclose(shuffled.logp, rollout.logp[order], atol=1e-5)
    half = ROWS // 2
    for start in (0, half):
        part = [x[start : start + half] for x in prompts]
        part = jax.device_get(generate(model, *part, row_keys(jax.random.key(5), start, half), config=CONFIG))
        np.testing.assert_array_equal(part.response, rollout.response[start : start + half])
        np.testing.assert_array_equal(part.mask, rollout.mask[start : start + half])


def test_ids_of_no_token_are_never_sampled_and_have_no_probability(model, prompts, keys):
    padded = jax.tree.map(lambda x: x, model)
    padded.config = dataclasses.replace(model.config, unused=((22, 32),))
    logits = np.asarray(jax.jit(lambda m, x: m.logits(x))(padded, jnp.ones((3, 16))))
    assert np.exp(logits - logits.max(-1, keepdims=True))[:, 22:].max() == 0.0
    for temperature in (0.0, 5.0):
        config = dataclasses.replace(CONFIG, temperature=temperature)
        rollout = jax.device_get(generate(padded, *prompts, keys, config=config))
        assert rollout.response[rollout.mask].max() < 22
        before = join_rows(*map(jnp.asarray, (rollout.prompt, rollout.prompt_mask, rollout.response, rollout.mask)))
        states = model.hidden(*before)[:, PROMPT - 1 : -1]
        log_probs = jax.nn.log_softmax(model.logits(states)[..., :22] / (temperature or 1.0))
        expected = np.take_along_axis(np.asarray(log_probs), rollout.response[..., None], axis=2)[..., 0]
        np.testing.assert_allclose(rollout.logp[rollout.mask], expected[rollout.mask], atol=2e-4)


@pytest.mark.parametrize("temperature", [float("inf"), float("nan"), -1.0, 1e-40])
def test_temperatures_that_mean_nothing_are_refused(temperature):
    with pytest.raises(UserError, match="temperature="):
        dataclasses.replace(CONFIG, temperature=temperature)


def test_row_keys_are_those_of_global_rows():
    key = jax.random.key(1)
    whole, part = row_keys(key, 0, 10), row_keys(key, jnp.int32(4), 3)
    np.testing.assert_array_equal(jax.random.key_data(whole)[4:7], jax.random.key_data(part))
    assert len({tuple(row) for row in np.asarray(jax.random.key_data(whole))}) == 10


def test_greedy_takes_the_likeliest_token(model, prompts, keys, trainer_logits):
    greedy = jax.device_get(generate(model, *prompts, keys, config=dataclasses.replace(CONFIG, temperature=0.0)))
    logits = trainer_logits(greedy)
    np.testing.assert_array_equal(logits.argmax(-1)[greedy.mask], greedy.response[greedy.mask])
    log_probs = np.asarray(jax.nn.log_softmax(logits, axis=-1)).max(-1)
    np.testing.assert_allclose(greedy.logp[greedy.mask], log_probs[greedy.mask], atol=5e-5)


def repeats(tokens: list[int], ngram: int, times: int) -> bool:
    """Whether the last tokens are the same few so many times in a row."""
    return any(tokens[-n * times :] == tokens[-n:] * times for n in range(1, ngram + 1))


def test_switches_together_equal_plain_python(model, prompts, keys, trainer_logits):
    """Token by token: penalty, absent tokens, temperature, min_p; and where a response ends."""
    switches = dict(repetition_penalty=1.5, min_p=0.02, suppressed_tokens=(2, 11), min_new_tokens=2)
    config = dataclasses.replace(CONFIG, **switches, repetition_ngram=2, repetition_times=2)
    found, ended = jax.device_get(generate(model, *prompts, keys, config=config)), set()
    logits = trainer_logits(found).astype(np.float64)
    for i, length in enumerate(found.mask.sum(1).tolist()):
        tokens = found.response[i, :length].tolist()
        seen = set(found.prompt[i][found.prompt_mask[i]].tolist())
        for t, token in enumerate(tokens):
            z = logits[i, t]
            held = [j in {*seen, *tokens[:t]} for j in range(len(z))]
            z = np.where(held, np.where(z > 0, z / 1.5, z * 1.5), z) / config.temperature
            z[[2, 11, *(STOPS if t < 2 else ())]] = -np.inf
            p = np.exp(z - z.max())
            p[p < 0.02] = 0
            np.testing.assert_allclose(found.logp[i, t], np.log(p[token] / p.sum()), atol=2e-3)
            assert (token in STOPS or repeats(tokens[: t + 1], 2, 2)) <= (t == length - 1)
        repeated = repeats(tokens, 2, 2)
        assert found.truncated[i] == (tokens[-1] not in STOPS) <= (repeated or length == ROOM)
        assert (found.response[i, length:] == EOS).all()
        ended.add((repeated, tokens[-1] in STOPS))
    assert ended == {(True, False), (False, True), (False, False)}


def test_first_tokens_follow_the_model(model, prompts, rollout, trainer_logits):
    """Many rows with one prompt, against the model's probabilities at the sampling temperature."""
    same_prompt = [jnp.broadcast_to(x[3], x.shape) for x in prompts]
    keys = [row_keys(jax.random.key(7), ROWS * i, ROWS) for i in range(128)]
    drawn = [np.asarray(generate(model, *same_prompt, key, config=CONFIG).response[:, 0]) for key in keys]
    counts = np.bincount(np.concatenate(drawn), minlength=32)
    logits = trainer_logits(rollout._replace(prompt=same_prompt[0], prompt_mask=same_prompt[1]))[0, 0]
    p = np.asarray(jax.nn.softmax(logits / 0.7))
    expected = p * counts.sum()
    likely = expected > 5
    statistic, freedom = (np.square(counts - expected) / expected)[likely].sum(), likely.sum() - 1
    assert freedom > 5 and abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)


def test_repeated_calls_compile_once(model, prompts, keys, rollout):
    """Other keys, prompts and parameters of the same shapes."""
    compiled = lambda: (prefill._cache_size(), decode._cache_size())  # noqa: E731
    before = compiled()
    assert min(before) > 0
    for seed in range(3):
        other = make_decoder(seed, layers=1)
        tokens = jnp.asarray(random_tokens(seed, ROWS, PROMPT))
        generate(other, tokens, prompts[1], row_keys(jax.random.key(seed), seed, ROWS), config=CONFIG)
    assert compiled() == before
    equal = SamplingConfig(ROOM, STOPS, EOS, temperature=0.7)
    generate(model, *prompts, keys, config=equal)
    assert equal is not CONFIG and compiled() == before


def test_the_cache_is_donated_and_comes_back(model, prompts, keys, rollout):
    """There is one of it at any time; the last token is in it, and generate is prefill and decode."""
    hidden, cache = prefill(model, *prompts, config=CONFIG)
    sampled, after = decode(model, hidden, cache, keys, config=CONFIG)
    assert all(x.is_deleted() for x in (*cache.keys, *cache.values)) and not hidden.is_deleted()
    for name, value in sampled._asdict().items():
        np.testing.assert_array_equal(value, getattr(rollout, name), err_msg=name)
    steps = int(after.slot) - PROMPT
    assert steps == rollout.mask.sum(1).max() - 1
    np.testing.assert_array_equal(after.next_position, LENGTHS + steps)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"stop_ids": ()}, "stop_ids"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"top_k": -1}, "top_k=-1"),
        ({"min_p": 1.5}, "min_p=1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"temperature": 0.0, "min_p": 0.1}, "min_p=0.1.*temperature 0"),
        ({"temperature": 0.0, "top_k": 3}, "top_k=3.*temperature 0"),
        ({"stop": ("a", "")}, "stop="),
        ({"suppressed_tokens": (5, -1)}, "suppressed_tokens"),
        ({"suppressed_tokens": (5, EOS)}, f"suppressed_tokens: {EOS} ends a response"),
        ({"min_new_tokens": ROOM}, f"min_new_tokens={ROOM}, expected from 0 to {ROOM - 1}"),
        ({"repetition_ngram": 3}, "repetition_ngram=3, repetition_times=0"),
        ({"repetition_ngram": 3, "repetition_times": 1}, "repetition_times=1"),
    ],
)
def test_a_wrong_config_is_named(wrong, named):
    with pytest.raises(UserError, match=named):
        dataclasses.replace(CONFIG, **wrong)


@pytest.fixture(scope="module")
def other():
    return make_decoder(2, layers=2)  # a decoder of another depth


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_mixture_at_its_ends_is_one_of_its_two_models(model, other, prompts, keys, share):
    """Bit for bit, whatever the other one says."""
    mixed = jax.device_get(generate(MixedDecoder(model, other, share), *prompts, keys, config=CONFIG))
    alone = jax.device_get(generate((model, other)[int(share)], *prompts, keys, config=CONFIG))
    for one, its in zip(mixed, alone, strict=True):
        np.testing.assert_array_equal(one, its)


def test_a_mixture_has_the_geometric_mean_of_both_distributions(model, other, prompts, keys):
    share = 0.3
    rollout = jax.device_get(generate(MixedDecoder(model, other, share), *prompts, keys, config=CONFIG))
    rows = join_rows(*map(jnp.asarray, (rollout.prompt, rollout.prompt_mask, rollout.response, rollout.mask)))
    logits = [np.asarray(m.logits(m.hidden(*rows)[:, PROMPT - 1 : -1]), np.float64) for m in (model, other)]
    product = np.exp((1 - share) * logits[0] / CONFIG.temperature + share * logits[1] / CONFIG.temperature)
    expected = np.log(product / product.sum(-1, keepdims=True))
    found = np.take_along_axis(expected, rollout.response[..., None], -1)[..., 0]
    np.testing.assert_allclose(rollout.logp[rollout.mask], found[rollout.mask], atol=1e-4)
    assert np.abs(logits[0] - logits[1])[rollout.mask].max() > 0.1
