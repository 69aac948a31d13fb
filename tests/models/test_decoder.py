"""What a decoder promises: causality, blindness to padding and neighbours, a cache that changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_decoder, random_tokens, token_rows

from prl_jax.models import LOGICAL_AXES, Decoder, LoraConfig
from prl_jax.sharding import path_names
from prl_jax.tree import flatten
from prl_jax.types import TokenRows

LENGTH = 12


@pytest.fixture(scope="module")
def model():
    return make_decoder()


@pytest.fixture(scope="module")
def hidden():
    """Final hidden states of `[4, LENGTH]` rows, compiled once."""
    run = jax.jit(lambda model, rows: model.hidden(*rows))

    def call(model, rows: TokenRows) -> np.ndarray:
        count = rows.tokens.shape[0]
        return np.asarray(run(model, TokenRows(*(jnp.resize(x, (4, LENGTH)) for x in rows))))[:count]

    return call


def test_row_16_dependencies_are_causal_and_inside_segments(model):
    """Gradients say exactly which tokens a hidden state depends on."""
    segments = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0], np.int32)
    positions = np.array([0, 0, 0, 1, 2, 3, 0, 1, 2, 3, 0, 0], np.int32)
    tokens = np.arange(5, 5 + LENGTH, dtype=np.int32)  # all different: a row of the table is one place
    weights = jnp.asarray(np.random.default_rng(0).normal(size=16), jnp.float32)

    @jax.jit
    @jax.jacrev
    def jacobian(table):
        other = jax.tree.map(lambda x: x, model)
        other.embedding[...] = table
        rows = TokenRows(*(jnp.asarray(x)[None] for x in (tokens, positions, segments)))
        return other.hidden(*rows)[0] @ weights

    influence = np.abs(np.asarray(jacobian(model.embedding[...]))).max(-1)[:, tokens]
    at = np.arange(LENGTH)
    expected = (segments[:, None] == segments) & (at[None] <= at[:, None])
    real = segments > 0
    np.testing.assert_array_equal(influence[real] > 0, expected[real] & real)
    assert influence[real][expected[real]].min() > 1e-5
    assert np.isfinite(influence).all()


def test_later_tokens_change_nothing(model, hidden):
    tokens = random_tokens(0, 4, LENGTH)
    changed = tokens.copy()
    changed[:, 7:] = (changed[:, 7:] + 1) % 32
    before, after = hidden(model, token_rows(tokens, LENGTH)), hidden(model, token_rows(changed, LENGTH))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.abs(before[:, 7:] - after[:, 7:]).max(axis=2).min() > 0


def test_row_16_padding_on_either_side_and_its_tokens_change_nothing(model, hidden):
    ids = random_tokens(1, 6).tolist()
    alone = hidden(model, token_rows([ids] * 4, LENGTH))[0, :6]
    right, left = token_rows([ids], LENGTH, pad_id=31), token_rows([ids], LENGTH, side="left", pad_id=7)
    middle = TokenRows(*(jnp.roll(x, -3, axis=1) for x in left))
    together = hidden(model, TokenRows(*(jnp.concatenate(rows) for rows in zip(right, left, middle, strict=True))))
    np.testing.assert_allclose(together[0, :6], alone, atol=2e-5)
    np.testing.assert_allclose(together[1, 6:], alone, atol=2e-5)
    np.testing.assert_allclose(together[2, 3:9], alone, atol=2e-5)
    assert np.isfinite(together).all()


def test_row_16_packed_segments_equal_separate_rows(model, hidden):
    first, second = random_tokens(2, 5).tolist(), random_tokens(3, 4).tolist()
    apart = hidden(model, token_rows([first, second], LENGTH))
    packed = TokenRows(
        jnp.array([[*first, *second, 0, 0, 0]], jnp.int32),
        jnp.array([[*range(5), *range(4), 0, 0, 0]], jnp.int32),
        jnp.array([[1] * 5 + [2] * 4 + [0] * 3], jnp.int32),
    )
    together = hidden(model, packed)[0]
    np.testing.assert_allclose(together[:5], apart[0, :5], atol=2e-5)
    np.testing.assert_allclose(together[5:9], apart[1, :4], atol=2e-5)


def test_only_differences_of_positions_count(model, hidden):
    rows = token_rows(random_tokens(4, 1, LENGTH), LENGTH)
    plain = hidden(model, rows)
    np.testing.assert_allclose(hidden(model, rows._replace(positions=rows.positions + 17)), plain, atol=5e-5)
    assert np.abs(hidden(model, rows._replace(positions=rows.positions * 2)) - plain).max() > 1e-2


def test_cached_decoding_equals_the_full_forward(model, hidden):
    """Prompts of unequal length, left-padded, then one token at a time."""
    prompts, room = [random_tokens(5, 7).tolist(), random_tokens(6, 3).tolist()], 5
    continuations = random_tokens(7, 2, room)
    padded = token_rows(prompts, 7, side="left", pad_id=9)
    full = hidden(
        model, token_rows([[*p, *c] for p, c in zip(prompts, continuations.tolist(), strict=True)], LENGTH, side="left")
    )
    last, cache = jax.jit(lambda model: model.prefill(padded.tokens, padded.segments > 0, room))(model)
    np.testing.assert_allclose(last, full[:, 6], atol=2e-5)
    np.testing.assert_array_equal(cache.next_position, [7, 3])
    step = jax.jit(lambda model, tokens, cache: model.step(tokens, cache, model.layers()))
    for t in range(room):
        last, cache = step(model, jnp.asarray(continuations[:, t]), cache)
        np.testing.assert_allclose(last, full[:, 7 + t], atol=2e-5)
    np.testing.assert_array_equal(cache.mask.sum(1), [12, 8])
    assert int(cache.slot) == 12


def test_layers_are_slices_of_the_stack(model):
    layers = model.layers()
    assert len(layers) == model.config.layers
    for i, block in enumerate(layers):
        np.testing.assert_array_equal(block.mlp.up.weight[...], model.blocks.mlp.up.weight[...][i])


def test_rematerialising_changes_no_gradient():
    model, again = make_decoder(layers=1), make_decoder(layers=1, remat=True)
    assert again.config.remat and not model.config.remat
    tokens = jnp.asarray(random_tokens(8, 2, 6))
    loss = lambda model: jnp.sum(jax.nn.log_softmax(model(tokens))[..., 3])  # noqa: E731
    assert "remat" in str(jax.make_jaxpr(loss)(again)) and "remat" not in str(jax.make_jaxpr(loss)(model))
    gradient = jax.jit(jax.grad(loss))
    for one, other in zip(jax.tree.leaves(gradient(model)), jax.tree.leaves(gradient(again)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
        assert np.abs(one).max() > 0


def test_row_15_a_bfloat16_model_gives_float32_logits_near_those_of_float32():
    model, narrow = make_decoder(layers=1), make_decoder(layers=1, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(narrow)} == {jnp.dtype("float32")}
    rows = token_rows(random_tokens(9, 2, 6), 6)

    @jax.jit
    def run(model):
        hidden = model.hidden(*rows)
        return hidden, model.logits(hidden)

    (wide_hidden, wide), (hidden, logits) = run(model), run(narrow)
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == wide.dtype == jnp.float32
    error = np.abs(np.asarray(hidden, np.float32) - wide_hidden).max()
    assert 0 < error < 0.15
    assert np.abs(logits - wide).max() < 0.5 and np.std(wide) > 1
    # Accumulated in float32: the product of these very hidden states, not a sum rounded to bfloat16.
    exact = np.asarray(hidden, np.float32) @ np.asarray(narrow.output_embedding(), np.float32)
    np.testing.assert_allclose(logits, exact, rtol=1e-4, atol=1e-4)


def test_tied_embeddings_are_the_untied_case_with_the_transposed_table():
    model, untied = make_decoder(layers=1), make_decoder(layers=1, tied_embeddings=False)
    names = {path_names(path)[0] for path, _ in jax.tree_util.tree_flatten_with_path(untied)[0]}
    tied_names = {path_names(path)[0] for path, _ in jax.tree_util.tree_flatten_with_path(model)[0]}
    assert names - tied_names == {"head"}
    tokens = jnp.asarray(random_tokens(10, 2, 6))
    run = jax.jit(lambda model: model(tokens))
    tied = run(model)
    assert np.abs(run(untied) - tied).max() > 0.1
    untied.head[...] = model.embedding[...].T
    np.testing.assert_allclose(run(untied), tied, atol=1e-5)


def test_call_reads_unpadded_rows(model, hidden):
    tokens = random_tokens(11, 4, LENGTH)
    expected = hidden(model, token_rows(tokens, LENGTH)) @ np.asarray(model.embedding[...]).T
    np.testing.assert_allclose(jax.jit(lambda model, x: model(x))(model, tokens), expected, atol=1e-4)


def test_initial_parameters_keep_the_scale_of_activations():
    config = make_decoder(width=64, layers=3, mlp_width=96, tied_embeddings=False).config
    model = jax.jit(lambda key: Decoder(config, key=key))(jax.random.key(3))
    for name, (fan_in, gain) in {"q": (64, 1), "v": (64, 1), "o": (16, 6**-0.5)}.items():
        weights = np.asarray(getattr(model.blocks.attention, name).weight[...])
        np.testing.assert_allclose(weights.std((1, 2)), gain * fan_in**-0.5, rtol=0.15)
        assert np.abs(weights[0] - weights[1]).max() > 0  # layers differ
    np.testing.assert_allclose(model.blocks.mlp.down.weight[...].std(), 96**-0.5 * 6**-0.5, rtol=0.1)
    np.testing.assert_allclose([model.embedding[...].std(), model.head[...].std()], 0.02, rtol=0.1)
    np.testing.assert_array_equal(model.norm.scale[...], 1.0)


def test_logical_axes_name_every_matrix():
    model = make_decoder(tied_embeddings=False, qkv_bias=True, o_bias=True, mlp_bias=True, lora=LoraConfig(rank=2))
    for name, leaf in flatten(model).items():
        ends = [name.split(".", i)[-1] for i in range(name.count(".") + 1)]
        axes = [LOGICAL_AXES[end] for end in ends if end in LOGICAL_AXES]
        if name.endswith("scale"):
            assert axes == [], name
        else:
            assert len(axes) == 1 and len(axes[0]) == leaf.ndim - ("blocks" in name), name
