"""Learning-rate schedules, and what the optimizer does to a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import make_scalar_model

from prl_jax.errors import UserError
from prl_jax.optim import learning_rate_schedule, make_optimizer


def rates(schedule: str, *, warmup: int, total: int = 12) -> np.ndarray:
    rate = learning_rate_schedule(0.5, schedule=schedule, warmup_steps=warmup, total_steps=total)
    return np.array([float(rate(count)) for count in range(total + 3)])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_is_linear_and_the_first_update_moves(schedule):
    np.testing.assert_allclose(rates(schedule, warmup=4)[:5], [0.125, 0.25, 0.375, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(rates(schedule, warmup=0)[0], 0.5, rtol=1e-6)


def test_schedules_end_where_they_say():
    np.testing.assert_allclose(rates("constant", warmup=2)[2:], 0.5)
    for schedule in ("linear", "cosine"):
        values = rates(schedule, warmup=2, total=13)
        np.testing.assert_allclose(values[12:], 0.05, rtol=1e-5)  # the last of 13 updates, counted from 0
        np.testing.assert_allclose(values[7], 0.275, rtol=1e-5)  # both pass the middle half-way
        assert (np.diff(values[2:13]) < 0).all()
    linear = rates("linear", warmup=2, total=13)[2:13]
    np.testing.assert_allclose(np.diff(linear), np.diff(linear)[0], rtol=1e-4)


def test_row_17_gradients_are_clipped_by_the_norm_of_the_whole_tree():
    """The first moment after one step is `(1 - b1)` times the clipped gradient."""
    params = {"q": jnp.ones((2, 2)), "scale": jnp.ones(3)}
    grads = {"q": jnp.full((2, 2), 6.0), "scale": jnp.array([8.0, 8.0, -4.0])}
    norm = float(optax.tree.norm(grads))
    np.testing.assert_allclose(norm, np.sqrt(4 * 36 + 144))
    for clip in (1.0, norm / 2, norm * 2):
        optimizer = make_optimizer(learning_rate=0.1, total_steps=5, clip_norm=clip, b1=0.9)
        _, state = optimizer.update(grads, optimizer.init(params), params)
        moment = optax.tree.get(state, "mu")
        for name in grads:
            np.testing.assert_allclose(moment[name], 0.1 * grads[name] * min(1.0, clip / norm), rtol=1e-5)


def test_moments_are_float32():
    params = {"q": jnp.ones((2, 2), jnp.bfloat16)}
    state = make_optimizer(learning_rate=0.1, total_steps=5).init(params)
    assert optax.tree.get(state, "mu")["q"].dtype == jnp.float32


def test_weight_decay_shrinks_the_matrices_of_blocks_alone():
    """Without a gradient, decay is all that moves a parameter."""
    model = make_scalar_model(layers=1, tied_embeddings=False)
    optimizer = make_optimizer(learning_rate=0.1, total_steps=5, weight_decay=0.5)
    updates, _ = jax.jit(lambda m: optimizer.update(jax.tree.map(jnp.zeros_like, m), optimizer.init(m), m))(model)
    decayed = set()
    for (path, update), param in zip(
        jax.tree_util.tree_flatten_with_path(updates)[0], jax.tree.leaves(model), strict=True
    ):
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        if np.abs(update).max() > 0:
            np.testing.assert_allclose(update, -0.1 * 0.5 * param, rtol=1e-5)
            decayed.add(".".join(name for name in names if name != "value"))
    matrices = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down")
    assert decayed == {f"decoder.blocks.{name}.weight" for name in matrices}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schedule": "step"}, r"schedule='step', expected one of \('constant', 'linear', 'cosine'\)"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0"),
        ({"total_steps": 0}, "total_steps=0"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(**{"learning_rate": 0.1, "total_steps": 5, **wrong})
