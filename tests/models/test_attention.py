"""Every backend of attention gives what the reference gives, gradients included, and says what it cannot do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import decoder_config, make_decoder, token_rows

from prl_jax.models import Decoder, attention, decoder
from prl_jax.models.attention import BACKENDS, Attending, attend, choose


def arrays(length, *, batch=2, heads=2, group=2, dim=16, seed=0):
    """Queries, keys, values."""
    rng = np.random.default_rng(seed)
    shapes = ((batch, length, heads, group, dim), *[(batch, length, heads, dim)] * 2)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def one_segment(length, left=0, right=0, batch=2):
    """Rows of one segment with padding, the second one without."""
    segments = np.ones((batch, length), np.int32)
    segments[0, :left], segments[0, length - right :] = 0, 0
    return jnp.asarray(segments)


def packed(length):
    """Rows of several segments, padding between and behind them."""
    segments = np.repeat(np.arange(1, 8), -(-length // 7))[:length].astype(np.int32)
    return jnp.asarray(np.stack([np.where(segments == 3, 0, segments), segments]))


def value_and_gradients(within, inputs, segments):
    """Outputs at real tokens, and the gradients of a sum over them."""
    real = (segments > 0)[:, :, None, None, None]
    weights = jnp.asarray(np.random.default_rng(9).normal(size=inputs[0].shape), jnp.float32)
    found = lambda *x: jnp.where(real, within(*x), 0.0)  # noqa: E731
    return found(*inputs), jax.grad(lambda *x: (found(*x) * weights).sum(), argnums=(0, 1, 2))(*inputs)


def assert_alike(within, inputs, segments, *, tolerance=1e-5, **options):
    reference = functools.partial(attend, segments=segments, backend="einsum", **options)
    expected, found = (value_and_gradients(each, inputs, segments) for each in (reference, within))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("length", [1, 127, 128, 129, 600])
@pytest.mark.parametrize("options", [{}, {"window": 5}, {"softcap": 2.0}])
def test_chunked_is_what_the_reference_is(length, options):
    inputs = arrays(length)
    for segments in (packed(length), one_segment(length, right=length // 3)):
        within = functools.partial(attend, segments=segments, backend="chunked", **options)
        assert_alike(within, inputs, segments, **options)


def test_the_reference_is_a_loop_over_keys():
    q, k, v = (np.asarray(x, np.float64) for x in arrays(9, batch=1, heads=1, group=1))
    segments, window = np.array([[0, 1, 1, 1, 1, 2, 2, 2, 0]], np.int32), 3
    out = attend(*arrays(9, batch=1, heads=1, group=1), jnp.asarray(segments), backend="einsum", window=window)
    for t in range(1, 8):
        keys = [s for s in range(9) if segments[0, s] == segments[0, t] and 0 <= t - s < window]
        scores = np.array([q[0, t, 0, 0] @ k[0, s, 0] for s in keys])
        weights = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        np.testing.assert_allclose(out[0, t, 0, 0], weights @ v[0, keys, 0], atol=1e-5)


@pytest.mark.parametrize("backend", ["einsum", "chunked"])
def test_a_layer_that_learns_when_it_runs_whether_it_has_a_window(backend):
    inputs, segments = arrays(140), packed(140)
    run = jax.jit(lambda local: attend(*inputs, segments, backend=backend, window=4, local=local))
    for local in (True, False):
        np.testing.assert_allclose(
            run(jnp.asarray(local)), attend(*inputs, segments, backend=backend, window=4 * local), atol=1e-5
        )


@pytest.mark.parametrize("options", [{}, {"window": 7}])
@pytest.mark.parametrize("segments", [one_segment(40), one_segment(40, 9), one_segment(40, 0, 9), packed(40)])
def test_rows_are_turned_for_the_kernel_of_gpus_and_back(segments, options, monkeypatch):
    """The kernel itself runs on GPUs alone: here XLA's form of the same function stands for it. Rows of several
    segments, which it would mix, are not given to it."""
    monkeypatch.setattr(attention, "_cudnn", functools.partial(attention._cudnn, implementation="xla"))
    within = functools.partial(attend, segments=segments, backend="cudnn", **options)
    assert_alike(within, arrays(40), segments, tolerance=2e-5, **options)


def test_the_kernel_of_gpus_is_what_a_program_for_gpus_calls(monkeypatch):
    """On a machine without a GPU, whose place a cuDNN of some version takes."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)
    inputs = tuple(x.astype(jnp.bfloat16) for x in arrays(64, dim=32))
    within = functools.partial(attend, segments=one_segment(64, left=3), backend="cudnn", window=16)
    forward = jax.jit(within)
    backward = jax.jit(jax.grad(lambda *x: within(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2)))
    for function, kernel in ((forward, "__cudnn$fmhaSoftmax"), (backward, "__cudnn$fmhaSoftmaxBackward")):
        assert kernel in function.trace(*inputs).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("options", [{}, {"window": 100}, {"softcap": 2.0}])
def test_the_kernel_of_tpus_is_what_the_reference_is(options):
    """Interpreted, with packed rows of no round length."""
    inputs = arrays(200, batch=1, heads=1, dim=128)
    segments = packed(200)[:1]
    splash = functools.partial(attention._splash, softcap=options.get("softcap", 0.0), interpret=True)
    within = lambda q, k, v: splash(q * 0.1, k, v, segments, options.get("window", 0))  # noqa: E731
    reference = lambda q, k, v: attend(q * 0.1, k, v, segments, backend="einsum", **options)  # noqa: E731
    expected, found = (value_and_gradients(each, inputs, segments) for each in (reference, within))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


def test_memory_of_chunked_grows_with_the_length_and_not_with_its_square():
    def temporary(backend, length):
        inputs, segments = arrays(length, batch=1), jnp.ones((1, length), jnp.int32)
        loss = lambda *x: attend(*x, segments, backend=backend).sum()  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    growth = {backend: temporary(backend, 2048) / temporary(backend, 512) for backend in ("einsum", "chunked")}
    assert growth["chunked"] < 5 and growth["einsum"] > 8


CASES = [
    # wanted, what it has to do -> the backend, and a word of why it is another one
    ("auto", Attending("cpu", 255, 32, "float32"), "einsum", ""),
    ("auto", Attending("cpu", 256, 32, "float32"), "chunked", ""),
    ("auto", Attending("gpu", 4096, 128, "bfloat16"), "cudnn", ""),
    ("auto", Attending("gpu", 4096, 128, "float32"), "chunked", ""),
    ("auto", Attending("gpu", 4096, 256, "bfloat16"), "chunked", ""),
    ("auto", Attending("gpu", 64, 128, "bfloat16"), "einsum", ""),
    ("auto", Attending("tpu", 4096, 128, "bfloat16"), "splash", ""),
    ("auto", Attending("tpu", 4096, 128, "bfloat16", softcap=50.0), "splash", ""),
    ("auto", Attending("tpu", 4096, 64, "bfloat16"), "chunked", ""),
    ("auto", Attending("tpu", 4096, 128, "bfloat16", sequence=2), "chunked", ""),
    ("einsum", Attending("tpu", 4096, 128, "bfloat16"), "einsum", ""),
    ("chunked", Attending("cpu", 8, 32, "float32"), "chunked", ""),
    ("cudnn", Attending("cpu", 64, 32, "float32"), "einsum", "cudnn runs on NVIDIA GPUs alone: einsum instead"),
    ("cudnn", Attending("gpu", 4096, 128, "float32"), "chunked", "float32"),
    ("cudnn", Attending("gpu", 4096, 128, "bfloat16", softcap=30.0), "chunked", "soft cap"),
    ("cudnn", Attending("gpu", 4096, 256, "bfloat16"), "chunked", "heads of 256"),
    ("splash", Attending("gpu", 4096, 128, "bfloat16"), "chunked", "TPUs alone"),
    ("splash", Attending("tpu", 4096, 96, "bfloat16"), "chunked", "heads of 96"),
]


@pytest.mark.parametrize(("wanted", "case", "backend", "reason"), CASES)
def test_the_backend_follows_platform_and_shape(wanted, case, backend, reason):
    found, why = choose(wanted, case)
    assert found == backend and found in BACKENDS and (reason in why if reason else not why)


def test_a_model_gives_the_same_with_every_backend():
    """Layers with and without a window, grouped heads, soft caps, prompts with padding on the left."""
    shape = dict(layers=3, windowed=(True, False, True), window=6, local_rope_theta=100.0, attention_softcap=5.0)
    models = [Decoder(decoder_config(attention=name, **shape), key=jax.random.key(0)) for name in ("einsum", "chunked")]
    tokens = jax.random.randint(jax.random.key(1), (2, 140), 0, 16)
    mask = jnp.arange(140)[None] >= jnp.array([[0], [13]])
    rows = (tokens, jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0), mask.astype(jnp.int32))
    one, other = (jnp.where(mask[:, :, None], model.hidden(*rows), 0.0) for model in models)
    np.testing.assert_allclose(one, other, atol=1e-5)
    one, other = (model.prefill(tokens, mask, 4) for model in models)
    np.testing.assert_allclose(one.hidden, other.hidden, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [{}, {"windowed": (True, False, True), "window": 6}, {"windowed": (True, True, False), "window": 6}]
)
@pytest.mark.parametrize("rolled", [False, True])
def test_the_state_at_one_place_is_that_of_the_whole_row(shape, rolled, monkeypatch):
    """Values and gradients, where the last layer stands by itself and where it is in a loop."""
    if rolled:
        monkeypatch.setattr(decoder, "MOST_UNROLLED", 0)
    model = make_decoder(layers=3, qk_norm=True, post_norms=True, **shape)
    rows = token_rows([[3, 4, 5] * 5, [7] * 9, [1, 2]], 17)
    index = jnp.array([[14], [5], [1]])
    one = jax.jit(lambda model: jnp.sin(model.hidden_at(*rows, index)).sum())
    other = jax.jit(lambda model: jnp.sin(model.hidden(*rows)[jnp.arange(3), index[:, 0]]).sum())
    found, expected = jax.value_and_grad(one)(model), jax.value_and_grad(other)(model)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(np.abs(b).max())))
