"""Chunked log-probabilities against the naive computation; as a script, on the eight devices of a mesh."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads
from running import on_virtual_devices

from prl_jax.losses import logprobs as lp
from prl_jax.processes import put_batch
from prl_jax.sharding import batch_sharding, make_mesh

B, T, D, V = 2, 7, 5, 50
KEYS = jax.random.split(jax.random.key(2), 4)
HIDDEN = jax.random.normal(KEYS[0], (B, T, D))
EMBED = jax.random.normal(KEYS[1], (D, V))
TARGETS = jax.random.randint(KEYS[2], (B, T), 0, V)
MASK = jnp.arange(T)[None] < jnp.array([[7], [4]])
COTANGENTS = jax.random.normal(KEYS[3], (2, B, T))
OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 2.0},
    "both": {"temperature": 1.3, "softcap": 3.0},
}
# 1000 tokens are one chunk; 6 give three chunks of three positions, the last one padded; 1 gives one position a chunk.
CASES = [("plain", None), ("plain", 1000), ("plain", 1), *((name, 6) for name in OPTIONS)]
every_case = pytest.mark.parametrize(("name", "chunk"), CASES)


def naive(hidden, embed, targets, mask, temperature=1.0, softcap=None):
    logits = hidden.astype(jnp.float32) @ embed.astype(jnp.float32)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    log_probs = jax.nn.log_softmax(logits / temperature)
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, -1)
    logp = jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    return jnp.where(mask, logp, 0), jnp.where(mask, entropy, 0)


def objective(function, **options):
    """`(hidden, embed, weights)` -> weighted sum of both outputs with its gradients, and the outputs."""

    def total(hidden, embed, weights):
        outputs = function(hidden, embed, TARGETS, MASK, **options)
        return sum(jnp.sum(w * x) for w, x in zip(weights, outputs, strict=True)), outputs

    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))


@functools.cache
def reference(name):
    return objective(naive, **OPTIONS[name])


def assert_close(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "both"])
def test_unused_ids_are_as_if_they_were_not_there(name):
    """In values and gradients, whatever their rows of the embedding hold."""
    used = np.r_[0:30, 35:45]
    kept = jnp.asarray(np.searchsorted(used, np.asarray(TARGETS) % 30))
    options = OPTIONS[name]

    def total(function, hidden, embed, targets, **more):
        outputs = function(hidden, embed, targets, MASK, **options, **more)
        return sum(jnp.sum(w * x) for w, x in zip(COTANGENTS, outputs, strict=True)), outputs

    run = functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    loud = EMBED.at[:, 30:35].multiply(40.0)
    ours = functools.partial(total, lp.chunked_logprobs, unused=((30, 35), (45, V)), chunk=6)
    (value, outputs), (d_hidden, d_embed) = jax.jit(run(ours))(HIDDEN, loud, TARGETS % 30)
    expected = jax.jit(run(functools.partial(total, naive)))(HIDDEN, EMBED[:, used], kept)
    assert_close(((value, outputs), (d_hidden, d_embed[:, used])), expected)
    assert float(jnp.abs(jnp.delete(d_embed, used, axis=1)).max()) == 0.0
    loss = lp.chunked_cross_entropy(HIDDEN, loud, TARGETS % 30, MASK, unused=((30, 35), (45, V)), **options)
    np.testing.assert_allclose(loss.sum, -outputs[0].sum(), rtol=1e-5)


@every_case
def test_equals_the_naive_computation_with_gradients(name, chunk):
    ours = objective(lp.chunked_logprobs, chunk=chunk, **OPTIONS[name])
    # Both outputs, then each alone.
    for weights in (COTANGENTS, COTANGENTS.at[0].set(0.0), COTANGENTS.at[1].set(0.0)):
        expected = reference(name)(HIDDEN, EMBED, weights)
        assert_close(ours(HIDDEN, EMBED, weights), expected)
        assert all(float(jnp.abs(x).max()) > 1e-2 for x in jax.tree.leaves(expected))


@every_case
def test_cross_entropy_is_minus_the_sum_with_its_gradients(name, chunk):
    def loss(hidden, embed):
        out = lp.chunked_cross_entropy(hidden, embed, TARGETS, MASK, chunk=chunk, **OPTIONS[name])
        return 3.0 * out.value, out.aux["entropy"]

    weights = jnp.zeros((2, B, T)).at[0].set(-3.0 / 11)
    (expected, (_, entropy)), grads = reference(name)(HIDDEN, EMBED, weights)
    expected = expected, (jnp.sum(entropy), 11.0)
    assert_close(jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(HIDDEN, EMBED), (expected, grads))
    # Without a gradient another rule computes it.
    assert_close(jax.jit(loss)(HIDDEN, EMBED), expected)


def one_token(hidden, embed, target, temperature=1.0, softcap=None):
    """Log-probability and entropy in float64."""
    z = np.asarray(hidden, np.float64) @ np.asarray(embed, np.float64)
    z = (softcap * np.tanh(z / softcap) if softcap else z) / temperature
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    return np.log(p[target]), -p @ np.log(p)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 99), b=st.integers(1, 3), t=st.integers(1, 6), vocab=st.integers(1, 5),
    chunk=st.none() | st.integers(1, 8), name=st.sampled_from(list(OPTIONS)),
)  # fmt: skip
def test_any_shape_mask_and_chunk_equals_float64_token_by_token(seed, b, t, vocab, chunk, name):
    """Masks have holes and may be empty, chunks may be larger than the batch."""
    rng = np.random.default_rng(seed)
    hidden, embed = (rng.normal(size=shape).astype(np.float32) for shape in ((b, t, D), (D, vocab)))
    targets, mask = rng.integers(0, vocab, (b, t)), rng.random((b, t)) < 0.7
    arrays = tuple(jnp.asarray(x) for x in (hidden, embed, targets, mask))
    options = {"chunk": chunk, **OPTIONS[name]}
    both = lambda *x: (lp.chunked_logprobs(*x, **options), lp.chunked_cross_entropy(*x, **options))  # noqa: E731
    got, loss = jax.jit(both)(*arrays)
    expected = np.zeros((2, b, t))
    for at in zip(*np.nonzero(mask), strict=True):
        expected[:, *at] = one_token(hidden[at], embed, targets[at], **OPTIONS[name])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert float(loss.denominator) == mask.sum()
    np.testing.assert_allclose(loss.sum, -expected[0].sum(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loss.aux["entropy"][0], expected[1].sum(), rtol=1e-5, atol=1e-5)


def test_gradients_by_finite_differences():
    hidden, embed = 0.5 * HIDDEN[:, :3, :2], 0.5 * EMBED[:2, :6]
    tokens = TARGETS[:, :3] % 6, MASK[:, :3]

    def outputs(hidden, embed):
        logp, entropy = lp.chunked_logprobs(hidden, embed, *tokens, chunk=2, **OPTIONS["both"])
        cross = lp.chunked_cross_entropy(hidden, embed, *tokens, chunk=2, **OPTIONS["both"]).sum
        return jnp.sum(COTANGENTS[0, :, :3] * logp + COTANGENTS[1, :, :3] * entropy), cross

    check_grads(jax.jit(outputs), (hidden, embed), order=1, modes=["rev"], rtol=1e-2, atol=1e-2, eps=1e-2)


def test_by_hand():
    """Two words with logits 0 and log 3: probabilities 1/4 and 3/4."""
    embed = jnp.array([[0.0, np.log(3.0)]])
    logp, entropy = lp.chunked_logprobs(
        jnp.ones((1, 2, 1)), embed, jnp.array([[0, 1]]), jnp.ones((1, 2), bool), chunk=1
    )
    np.testing.assert_allclose(logp, [[np.log(0.25), np.log(0.75)]], rtol=1e-6)
    np.testing.assert_allclose(entropy, np.full((1, 2), -0.25 * np.log(0.25) - 0.75 * np.log(0.75)), rtol=1e-6)


def test_masked_tokens_are_zero_and_cannot_leak():
    hidden = jnp.where(MASK[..., None], HIDDEN, jnp.nan)
    targets = jnp.where(MASK, TARGETS, -100)

    def total(hidden, embed):
        logp, entropy = lp.chunked_logprobs(hidden, embed, targets, MASK, chunk=4)
        return jnp.sum(logp + entropy), (logp, entropy)

    (_, outputs), (d_hidden, d_embed) = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(hidden, EMBED)
    for x in outputs:
        assert (x[~MASK] == 0).all() and (x[MASK] != 0).all()
    assert np.isfinite(d_embed).all() and (d_hidden[~MASK] == 0).all() and (d_hidden[MASK] != 0).any()
    assert_close(d_embed, reference("plain")(HIDDEN, EMBED, jnp.ones((2, B, T)))[1][1])
    cross = jax.jit(jax.grad(lambda h, w: lp.chunked_cross_entropy(h, w, targets, MASK, chunk=4).sum, (0, 1)))
    assert all(np.isfinite(x).all() for x in cross(hidden, EMBED))
    no_grad = jax.jit(jax.grad(lambda h: lp.chunked_cross_entropy(h, EMBED, TARGETS, MASK).aux["entropy"][0]))(HIDDEN)
    assert (no_grad == 0).all()
    empty = jax.jit(lp.chunked_cross_entropy)(hidden, EMBED, targets, jnp.zeros((B, T), bool))
    assert float(empty.value) == 0.0


def test_extreme_logits():
    hidden = jnp.array([[[1e4], [-1e4]]])
    embed = jnp.array([[1.0, -1.0, 0.0]])
    ones = jnp.ones((1, 2), bool)

    def total(hidden, embed):
        logp, entropy = lp.chunked_logprobs(hidden, embed, jnp.array([[0, 0]]), ones)
        return jnp.sum(logp + entropy)

    value, grads = jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, embed)
    np.testing.assert_allclose(value, -2e4)
    assert all(np.isfinite(x).all() for x in grads)


def test_bfloat16_in_float32_out():
    hidden, embed = HIDDEN.astype(jnp.bfloat16), EMBED.astype(jnp.bfloat16)
    logp, entropy = jax.jit(functools.partial(lp.chunked_logprobs, chunk=4))(hidden, embed, TARGETS, MASK)
    assert logp.dtype == entropy.dtype == jnp.float32
    # Products of bfloat16 numbers, added in float32.
    np.testing.assert_allclose((logp, entropy), naive(hidden, embed, TARGETS, MASK), rtol=1e-5, atol=1e-5)
    for function in (lambda *a: lp.chunked_logprobs(*a)[0].sum(), lambda *a: lp.chunked_cross_entropy(*a).sum):
        # Parameters kept in float32 get a float32 gradient.
        gradient = jax.jit(jax.grad(function, (0, 1)))
        grads = gradient(hidden, EMBED, TARGETS, MASK)
        assert [x.dtype for x in grads] == [jnp.bfloat16, jnp.float32]
        expected = gradient(HIDDEN, EMBED, TARGETS, MASK)
        for a, b in zip(grads, expected, strict=True):
            np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05)


def test_vmap():
    row = jax.vmap(lambda h, y, m: lp.chunked_logprobs(h[None], EMBED, y[None], m[None], chunk=3))
    stacked = jax.jit(row)(HIDDEN, TARGETS, MASK)
    np.testing.assert_allclose(jnp.stack(stacked)[:, :, 0], naive(HIDDEN, EMBED, TARGETS, MASK), rtol=1e-5, atol=1e-5)


def largest_array(jaxpr):
    """Number of elements of the largest array that any equation makes, subprograms included."""
    sizes = [0]
    for eqn in jaxpr.eqns:
        sizes += [int(np.prod(v.aval.shape)) for v in eqn.outvars]
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "jaxpr"):
                inner = inner.jaxpr
            if hasattr(inner, "eqns"):
                sizes.append(largest_array(inner))
    return max(sizes)


def test_never_makes_the_logits_of_a_batch():
    hidden, embed = jnp.ones((2, 64, 4)), jnp.ones((4, 96))
    tokens = jnp.zeros((2, 64), int), jnp.ones((2, 64), bool)
    for function in (
        lambda h, w: sum(x.sum() for x in lp.chunked_logprobs(h, w, *tokens, chunk=16)),
        lambda h, w: lp.chunked_cross_entropy(h, w, *tokens, chunk=16).sum,
    ):
        jaxpr = jax.make_jaxpr(jax.value_and_grad(function, (0, 1)))(hidden, embed).jaxpr
        assert largest_array(jaxpr) == 16 * 96
    whole = jax.make_jaxpr(lambda h, w: naive(h, w, *tokens))(hidden, embed).jaxpr
    assert largest_array(whole) == 128 * 96


def test_chunk_count():
    assert lp.chunk_count((16, 256), 4096, 256) == 16
    assert lp.chunk_count((16, 256), 4096, 10**6) == 1
    assert lp.chunk_count((2, 7), 50, 6) == 3
    assert lp.chunk_count((512, 10), 4096, 256) == 10
    assert lp.chunk_count((16, 128), 272, None) == 1
    assert 1 < lp.chunk_count((16, 256), 32768, None) <= 16
    with pytest.raises(ValueError, match="chunk: expected at least 1 token, given 0"):
        lp.chunk_count((2, 7), 50, 0)


def test_wrong_shapes_raise():
    cases = [
        (HIDDEN, EMBED, TARGETS, MASK[:, :1]),
        (HIDDEN, EMBED.T, TARGETS, MASK),
        (HIDDEN[:, :3], EMBED, TARGETS, MASK),
        (HIDDEN[0], EMBED, TARGETS, MASK),
        (HIDDEN, EMBED, TARGETS[0], MASK[0]),
        (HIDDEN, EMBED[0], TARGETS, MASK),
    ]
    for args in cases:
        with pytest.raises(ValueError, match="expected .* given"):
            inspect.unwrap(lp.check_inputs)(*args)
        for function in (lp.chunked_logprobs, lp.chunked_cross_entropy):
            with pytest.raises((ValueError, TypeError)):
                function(*args)


def check_on_a_mesh():
    """Rows cut over four devices, the embedding along both of its axes: the same numbers, and rows stay in place."""
    mesh, rows = make_mesh(data=2, fsdp=2, tensor=2), 4
    rng = np.random.default_rng(0)
    hidden, embed = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, T, 6), (6, V)))
    targets, mask = rng.integers(0, V, (rows, T)), np.arange(T) < np.array([[7], [4], [1], [0]])
    weights = rng.normal(size=(2, rows, T)).astype(np.float32)
    cut = put_batch((hidden, targets, mask), mesh)
    spread = jax.device_put(embed, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))

    def both(function, hidden, embed, targets, mask):
        def total(hidden, embed):
            logp, entropy = function(hidden, embed, targets, mask)
            return jnp.sum(weights[0] * logp + weights[1] * entropy), (logp, entropy)

        return jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, embed)

    options = {"temperature": 1.3, "softcap": 3.0}
    chunked = functools.partial(lp.chunked_logprobs, chunk=2 * rows, **options)
    plain = functools.partial(naive, **options)
    expected = jax.jit(functools.partial(both, plain))(hidden, embed, targets, mask)
    got = jax.jit(functools.partial(both, chunked))(cut[0], spread, *cut[1:])
    assert_close(got, expected)
    (_, outputs), (d_hidden, _) = got
    for x in (*outputs, d_hidden):
        assert x.sharding.is_equivalent_to(batch_sharding(mesh), x.ndim), x.sharding
    loss = jax.jit(lambda *x: lp.chunked_cross_entropy(*x, chunk=2 * rows, **options).value)
    np.testing.assert_allclose(loss(cut[0], spread, *cut[1:]), -np.sum(expected[0][1][0]) / mask.sum(), rtol=1e-5)


def test_on_a_mesh_of_eight_devices():
    assert on_virtual_devices(__file__) == "equal\n"


if __name__ == "__main__":
    assert jax.device_count() == 8
    check_on_a_mesh()
    print("equal")
