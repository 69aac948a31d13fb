"""FLOPs from jaxprs, against what one counts by hand."""

import functools

import fakes
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from prl_jax.plan.flops import count_flops
from prl_jax.types import TokenRows

X = jax.ShapeDtypeStruct((3, 5), jnp.float32)
W = jax.ShapeDtypeStruct((5, 5), jnp.float32)
ONE = 2 * 3 * 5 * 5  # x @ w


def flops(function, *arguments) -> float:
    return count_flops(jax.make_jaxpr(function)(*arguments))


def test_a_product():
    assert flops(lambda x, w: x @ w, X, W) == ONE
    batched = jnp.zeros((7, 3, 5)), jnp.zeros((7, 5, 2))
    assert flops(lambda x, w: jnp.einsum("bij,bjk->bik", x, w), *batched) == 7 * 2 * 3 * 5 * 2
    assert flops(jnp.tanh, X) == 0


def test_a_convolution():
    x, kernel = jnp.zeros((2, 9, 4)), jnp.zeros((3, 4, 6))
    convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )
    assert flops(convolve, x, kernel) == 2 * (2 * 7 * 6) * (3 * 4)


def test_what_each_device_does_for_itself_counts_for_all_of_them():
    mesh = AbstractMesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    for axes, devices in ((("data", "tensor"), 8), (("data",), 4)):
        here = functools.partial(jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
        each = here(lambda x: x @ x.T, axis_names=set(axes))
        assert flops(each, jax.ShapeDtypeStruct((8, 5), jnp.float32)) == devices * 2 * 2 * 5 * 2


def test_loops_count_as_often_as_they_run():
    def scan(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=11)[0]

    def nested(x, w):
        return jax.lax.scan(lambda x, _: (scan(x, w), None), x, length=4)[0]

    def until(x, w):  # a bound, though it may end early
        more = lambda state: (state[0] < 6) & (state[1].sum() < 9)  # noqa: E731
        return jax.lax.while_loop(more, lambda state: (state[0] + 1, state[1] @ w), (0, x))[1]

    assert flops(scan, X, W) == 11 * ONE
    assert flops(jax.jit(nested), X, W) == 44 * ONE
    assert flops(until, X, W) == 6 * ONE


def test_one_branch_of_a_condition_runs():
    choose = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w)  # noqa: E731
    assert flops(choose, X, W) == 2 * ONE


def test_remat_computes_the_forward_pass_again():
    loss = lambda x, w: jnp.sin(jnp.sin(x @ w) @ w).sum()  # noqa: E731
    plain, remat = jax.grad(loss, argnums=1), jax.grad(jax.checkpoint(loss), argnums=1)
    # Forward 2; backward: the inner product's two, the outer one's for w alone. Again: both, of which sin needs two.
    assert flops(plain, X, W) == (2 + 3) * ONE
    assert flops(remat, X, W) == (2 + 3 + 2) * ONE


@pytest.mark.parametrize("remat", [False, True])
def test_a_decoder_against_the_closed_formula(remat):
    batch, length = 2, 6
    decoder = fakes.make_decoder(remat=remat, tied_embeddings=True)
    c = decoder.config
    queries, shared = c.heads * c.head_dim, c.kv_heads * c.head_dim
    matrices = c.width * (2 * queries + 2 * shared + 3 * c.mlp_width)
    layer = 2 * batch * length * (matrices + 2 * length * queries)  # and scores and mixtures of each head
    head = 2 * batch * length * c.width * c.vocab_size
    rows = fakes.token_rows([[1] * length] * batch, length)
    assert flops(lambda d: d.hidden(*rows), decoder) == c.layers * layer
    assert flops(lambda d: d(rows.tokens), decoder) == c.layers * layer + head

    def loss(decoder, rows: TokenRows):
        return decoder.hidden(*rows).astype(jnp.float32).sum()

    # Each product has two gradients; with remat the backward pass starts with a forward pass of its own.
    least, most = (3 + remat - 0.35) * c.layers * layer, (3 + remat) * c.layers * layer
    assert least < flops(jax.grad(loss), decoder, rows) <= most
