"""Adapters: nothing at the start, all that is trained, off for the reference, merged for the world."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_decoder, on_mesh, one_device, random_tokens

from prl_jax.errors import UserError
from prl_jax.models import LoraConfig, ScalarModel, combine, merge, split, with_adapters, with_dropout, without_adapters
from prl_jax.optim import make_optimizer
from prl_jax.tree import flatten

TOKENS = jnp.asarray(random_tokens(0, 2, 6))
LORA = LoraConfig(rank=3, alpha=6.0, targets=("q", "v", "down"))


@pytest.fixture(scope="module")
def base():
    return on_mesh(make_decoder(), one_device())


@pytest.fixture(scope="module")
def adapted(base):
    return with_adapters(base, LORA, one_device(), key=jax.random.key(1))


def moved(decoder, size: float = 0.3):
    """The decoder with adapters that do something."""
    trained, frozen = split(decoder)
    return combine(jax.tree.map(lambda x: x + size, trained), frozen)


def test_fresh_adapters_change_nothing_and_cost_no_copy(base, adapted):
    np.testing.assert_array_equal(adapted(TOKENS), base(TOKENS))
    arrays = flatten(adapted)
    assert all(arrays[name] is leaf for name, leaf in flatten(base).items())
    added = set(arrays) - set(flatten(base))
    targets = ("attention.q", "attention.v", "mlp.down")
    assert added == {f"blocks.{target}.lora.{part}" for target in targets for part in "ab"}
    assert arrays["blocks.mlp.down.lora.a"].shape == (2, 24, 3) and arrays["blocks.mlp.down.lora.b"].shape == (2, 3, 16)
    np.testing.assert_allclose(arrays["blocks.mlp.down.lora.a"].std() * 24**0.5, 1.0, rtol=0.3)


def test_adapters_off_is_the_base_without_a_copy(base, adapted):
    off = without_adapters(moved(adapted))
    assert off.config == base.config
    assert all(leaf is flatten(base)[name] for name, leaf in flatten(off).items())
    np.testing.assert_array_equal(off(TOKENS), base(TOKENS))


def test_merging_gives_the_same_function(base, adapted):
    changed = moved(adapted)
    assert np.abs(changed(TOKENS) - base(TOKENS)).max() > 0.1
    merged = merge(changed)
    assert merged.config == base.config and merge(base).config == base.config
    np.testing.assert_allclose(merged(TOKENS), changed(TOKENS), rtol=1e-4, atol=1e-4)


def test_only_adapters_and_heads_are_trained(base, adapted):
    critic = ScalarModel(adapted, bias=0.0)
    trained, frozen = split((critic, base))
    names = set(flatten(trained))
    assert {name for name in names if name.startswith("0.")} == {
        "0.scalar.weight",
        "0.scalar.bias",
        *(f"0.decoder.{name}" for name in flatten(adapted) if ".lora." in name),
    }
    assert {name for name in names if name.startswith("1.")} == {f"1.{name}" for name in flatten(base)}
    whole = combine(trained, frozen)
    assert jax.tree.structure(whole) == jax.tree.structure((critic, base))
    assert all(a is b for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves((critic, base)), strict=True))
    moments = flatten(make_optimizer(learning_rate=0.1, total_steps=3).init(trained[0]))
    assert {name.split(".mu.")[1] for name in moments if ".mu." in name} == {n[2:] for n in names if n.startswith("0.")}


@pytest.mark.parametrize(("fields", "message"), [(dict(rank=0), "rank=0"), (dict(rank=2, targets=("qq",)), "'qq'")])
def test_mistakes_are_named(fields, message):
    with pytest.raises(UserError, match=f"lora: .*{message}"):
        LoraConfig(**fields)


def test_dropout_drops_inputs_of_adapters_and_keeps_their_mean(base):
    lora = LoraConfig(rank=3, alpha=6.0, targets=("q", "down"), dropout=0.5)
    decoder = moved(with_adapters(base, lora, one_device(), key=jax.random.key(1)), 0.02)
    keys = jax.random.split(jax.random.key(2), (400, len(TOKENS)))
    run = jax.jit(lambda keys: with_dropout(decoder, keys)(TOKENS))
    np.testing.assert_array_equal(run(keys[0]), run(keys[0]))
    assert np.abs(run(keys[0]) - run(keys[1])).max() > 1e-3
    plain, outs = decoder(TOKENS), np.stack([run(key) for key in keys])
    error = np.abs(outs.mean(0) - plain).mean() / np.abs(plain - base(TOKENS)).mean()
    assert error < 0.25, "small updates are nearly linear: the mean over masks is the update without any"
    layer = jax.tree.map(lambda x: x[0], with_dropout(decoder, keys[:50, 0]).blocks.mlp.down.lora)
    x = jnp.ones((50, 24))
    dropped = np.asarray(layer(x)) / np.asarray(jax.tree.map(lambda x: x[0], decoder.blocks.mlp.down.lora)(x))
    assert dropped.std() > 0.05 and abs(dropped.mean() - 1.0) < 0.2


def test_without_a_key_or_a_rate_there_is_no_dropout(base, adapted):
    for decoder in (base, adapted):
        dropped = with_dropout(decoder, jax.random.split(jax.random.key(0), len(TOKENS)))
        assert jax.tree.structure(dropped) == jax.tree.structure(decoder)
        np.testing.assert_array_equal(dropped(TOKENS), decoder(TOKENS))
    plain, rated = (
        moved(with_adapters(base, LoraConfig(rank=2, dropout=rate), one_device(), key=jax.random.key(1)))
        for rate in (0.0, 0.9)
    )
    np.testing.assert_array_equal(rated(TOKENS), plain(TOKENS))
    keys = jax.random.split(jax.random.key(0), len(TOKENS))
    assert np.abs(with_dropout(rated, keys)(TOKENS) - plain(TOKENS)).max() > 0.01


def test_what_is_dropped_of_a_row_does_not_depend_on_the_others(base):
    lora = LoraConfig(rank=3, dropout=0.5)
    decoder = moved(with_adapters(base, lora, one_device(), key=jax.random.key(1)), 0.3)
    keys, rows = jax.random.split(jax.random.key(2), 3), TOKENS[jnp.array([0, 1, 1])]
    out = with_dropout(decoder, keys)(rows)
    assert np.abs(out[1] - out[2]).max() > 1e-2, "the rows are the same, their keys are not"
    other = with_dropout(decoder, keys[::-1])(rows[::-1])
    np.testing.assert_allclose(other, out[::-1], rtol=1e-4, atol=1e-5)
