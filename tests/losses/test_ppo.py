import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prl_jax.losses import ppo

KEYS = jax.random.split(jax.random.key(1), 4)
LOGP = -jnp.abs(jax.random.normal(KEYS[0], (3, 4)))
OLD = LOGP + 0.3 * jax.random.normal(KEYS[1], (3, 4))
ADV = jax.random.normal(KEYS[2], (3, 4))
MASK = jnp.arange(4)[None] < jnp.array([[4], [2], [0]])
REDUCTIONS = ["token_mean", "seq_mean_token_sum", "seq_mean_token_mean"]
CLIP = {"clip_low": 0.1, "clip_high": 0.3}

LOSSES = {
    "policy": lambda a, b, c, m: ppo.ppo_policy_loss(a, b, c, m, **CLIP),
    "policy, dual": lambda a, b, c, m: ppo.ppo_policy_loss(a, b, c, m, dual=3.0, reduce="seq_mean_token_sum"),
    "policy, sequence": lambda a, b, c, m: ppo.ppo_policy_loss(
        a, b, c, m, ratio_level="sequence", reduce="seq_mean_token_mean"
    ),
    "value": lambda a, b, c, m: ppo.ppo_value_loss(a, b, c, m),
    "entropy": lambda a, b, c, m: ppo.entropy_loss(a, m, reduce="seq_mean_token_mean"),
}
# Jitted once: the tests below share what is compiled.
JITTED = {name: jax.jit(loss) for name, loss in LOSSES.items()}
every_loss = pytest.mark.parametrize("loss", JITTED.values(), ids=JITTED.keys())


def mean(out, name):
    total, count = out.aux[name]
    return float(total / jnp.maximum(count, 1e-9))


def row(*values):
    return jnp.array([values])


def one_token(logp, logp_old, adv, **kwargs):
    """Loss and gradient of a single token."""
    args = row(logp_old), row(adv), jnp.ones((1, 1), bool)
    loss = lambda x: ppo.ppo_policy_loss(x, *args, **kwargs).value  # noqa: E731
    total, grad = jax.value_and_grad(loss)(row(logp))
    return float(total), float(grad[0, 0])


# Policy


def test_policy_by_hand():
    """Ratios 1.5 and 0.5, advantages 1 and -2: both are clipped, at 1.2 and at 0.8."""
    out = ppo.ppo_policy_loss(row(np.log(1.5), np.log(0.5)), row(0.0, 0.0), row(1.0, -2.0), jnp.ones((1, 2), bool))
    np.testing.assert_allclose(out.value, (-1.2 + 1.6) / 2, rtol=1e-6)
    assert mean(out, "clip_fraction") == 1.0
    np.testing.assert_allclose(mean(out, "ratio"), 1.0, rtol=1e-6)
    k3 = np.mean([r - 1 - np.log(r) for r in (1.5, 0.5)])
    np.testing.assert_allclose(mean(out, "approx_kl"), k3, rtol=1e-5)


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    grad = jax.grad(lambda x: ppo.ppo_policy_loss(x, LOGP, ADV, MASK).value)(LOGP)
    np.testing.assert_allclose(grad, jnp.where(MASK, -ADV, 0) / 6, rtol=1e-6)


def test_gradient_vanishes_exactly_where_the_clip_says():
    assert one_token(np.log(1.31), 0.0, 2.0, **CLIP)[1] == 0.0
    assert one_token(np.log(0.89), 0.0, -2.0, **CLIP)[1] == 0.0
    # The pessimistic side is never clipped.
    np.testing.assert_allclose(one_token(np.log(0.5), 0.0, 2.0, **CLIP), (-1.0, -1.0), rtol=1e-6)
    np.testing.assert_allclose(one_token(np.log(1.5), 0.0, -2.0, **CLIP), (3.0, 3.0), rtol=1e-6)
    # Between the two bounds nothing is.
    np.testing.assert_allclose(one_token(np.log(1.29), 0.0, 2.0, **CLIP), (-2.58, -2.58), rtol=1e-6)
    np.testing.assert_allclose(one_token(np.log(0.91), 0.0, -2.0, **CLIP), (1.82, 1.82), rtol=1e-6)


def test_without_bounds_it_is_importance_sampling():
    out = ppo.ppo_policy_loss(LOGP, OLD, ADV, MASK, clip_low=float("inf"), clip_high=float("inf"))
    expected = -jnp.where(MASK, ADV * jnp.exp(LOGP - OLD), 0).sum() / 6
    np.testing.assert_allclose(out.value, expected, rtol=1e-5)
    assert mean(out, "clip_fraction") == 0.0


def test_dual_clip_caps_negative_advantages_alone():
    assert one_token(np.log(10.0), 0.0, -2.0, dual=3.0) == (6.0, 0.0)
    np.testing.assert_allclose(one_token(np.log(10.0), 0.0, -2.0), (20.0, 20.0), rtol=1e-6)
    np.testing.assert_allclose(one_token(np.log(2.5), 0.0, -2.0, dual=3.0), (5.0, 5.0), rtol=1e-6)
    assert one_token(np.log(10.0), 0.0, 2.0, dual=3.0) == one_token(np.log(10.0), 0.0, 2.0)


def test_reductions_by_hand():
    x = jnp.arange(12.0).reshape(3, 4)
    # Rows (0, 1, 2, 3), (4, 5) and an empty one.
    expected = {"token_mean": (15, 6), "seq_mean_token_sum": (15, 2), "seq_mean_token_mean": (1.5 + 4.5, 2)}
    for name, (total, denominator) in expected.items():
        assert tuple(map(float, ppo.reduce_tokens(x, MASK, name))) == (total, denominator)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_microbatches_add_up_to_the_whole_batch(reduce):
    loss = lambda rows: ppo.ppo_policy_loss(LOGP[rows], OLD[rows], ADV[rows], MASK[rows], reduce=reduce)  # noqa: E731
    whole, parts = loss(slice(None)), [loss(slice(i, i + 1)) for i in range(3)]
    np.testing.assert_allclose(whole.sum, sum(p.sum for p in parts), rtol=1e-5)
    assert float(whole.denominator) == sum(float(p.denominator) for p in parts)


def test_sequence_ratio_is_the_geometric_mean_and_shared():
    adv = jnp.broadcast_to(jnp.array([[1.0], [-1.0], [1.0]]), (3, 4))
    out = ppo.ppo_policy_loss(LOGP, OLD, adv, MASK, ratio_level="sequence", reduce="seq_mean_token_mean")
    expected = []
    for b, (length, a) in enumerate(((4, 1.0), (2, -1.0))):
        ratio = np.exp(np.mean(np.asarray(LOGP - OLD)[b, :length]))
        expected.append(max(-a * ratio, -a * np.clip(ratio, 0.8, 1.2)))
    np.testing.assert_allclose(out.value, np.mean(expected), rtol=1e-5)
    grad = jax.grad(
        lambda x: ppo.ppo_policy_loss(x, LOGP, adv, MASK, ratio_level="sequence", reduce="seq_mean_token_mean").value
    )(LOGP)
    np.testing.assert_allclose(grad[0], np.full(4, -1 / 4 / 2), rtol=1e-5)


# Value


def test_value_by_hand():
    """Errors 1 and 1; moving by 0.5 is clipped to 0.2: the first moves towards its return, the second away from it."""
    v, old, ret = row(0.5, 0.5), row(0.0, 0.0), row(1.5, -0.5)
    out = ppo.ppo_value_loss(v, old, ret, jnp.ones((1, 2), bool), clip_value=0.2)
    np.testing.assert_allclose(out.value, 0.5 * (1.3**2 + 1.0) / 2, rtol=1e-6)
    assert mean(out, "clip_fraction") == 0.5
    assert (mean(out, "value"), mean(out, "return")) == (0.5, 0.5)
    np.testing.assert_allclose(ppo.ppo_value_loss(v, old, ret, jnp.ones((1, 2), bool), clip_value=None).value, 0.5)
    grad = jax.grad(lambda v: ppo.ppo_value_loss(v, old, ret, jnp.ones((1, 2), bool), clip_value=0.2).value)(v)
    np.testing.assert_allclose(grad, [[0.0, 0.5]], rtol=1e-6)


def test_value_loss_is_zero_at_the_return():
    out = ppo.ppo_value_loss(ADV, ADV, ADV, MASK)
    assert float(out.value) == 0.0
    assert float(ppo.ppo_value_loss(ADV + 0.1, ADV, ADV, MASK).value) > 0.0


# Entropy


def test_entropy_by_hand():
    out = ppo.entropy_loss(row(1.0, 3.0, 50.0), jnp.array([[True, True, False]]))
    assert float(out.value) == -2.0
    assert mean(out, "entropy") == 2.0


# Every loss; see test_matrix.py too


@every_loss
def test_padding_changes_nothing(loss):
    args = LOGP, OLD, ADV
    expected = loss(*args, MASK)
    dirty = [jnp.where(MASK, x, bad) for x, bad in zip(args, (jnp.nan, jnp.inf, jnp.nan), strict=True)]
    pad = lambda x: jnp.pad(x, ((1, 0), (0, 2)))  # noqa: E731
    for out in (loss(*dirty, MASK), loss(*map(pad, dirty), pad(MASK))):
        np.testing.assert_allclose(out.value, expected.value, rtol=1e-6)
        for name in expected.aux:
            np.testing.assert_allclose(mean(out, name), mean(expected, name), rtol=1e-5, atol=1e-7)
    grad = jax.grad(lambda x: loss(x, *dirty[1:], MASK).value)(dirty[0])
    assert np.isfinite(grad).all() and (grad[~MASK] == 0).all() and (grad[MASK] != 0).any()


@every_loss
def test_empty_masks_give_zero(loss):
    empty = jnp.zeros((3, 4), bool)
    total, grad = jax.value_and_grad(lambda x: loss(x, OLD, ADV, empty).value)(LOGP)
    assert float(total) == 0.0
    np.testing.assert_array_equal(grad, np.zeros((3, 4)))
    out = loss(LOGP, OLD, ADV, empty)
    assert all(mean(out, name) == 0.0 for name in out.aux)


@every_loss
def test_extreme_inputs_have_finite_gradients(loss):
    for x in (1e4, -1e4):
        for adv in (1.0, -1.0):
            args = jnp.zeros((3, 4)), jnp.full((3, 4), adv), MASK
            total, grad = jax.value_and_grad(lambda y, args=args: loss(y, *args).value)(jnp.full((3, 4), x))
            assert np.isfinite(total) and np.isfinite(grad).all()


@every_loss
def test_old_values_advantages_and_aux_get_no_gradient(loss):
    def total(old, adv):
        return loss(LOGP, old, adv, MASK).value

    np.testing.assert_array_equal(jax.grad(total, (0, 1))(OLD, ADV), np.zeros((2, 3, 4)))

    def aux(x):
        return sum(y for pair in loss(x, OLD, ADV, MASK).aux.values() for y in pair)

    np.testing.assert_array_equal(jax.grad(aux)(LOGP), np.zeros((3, 4)))


def test_wrong_shapes_and_options_raise():
    cases = [
        (ppo.ppo_policy_loss, (LOGP, OLD[:, :1], ADV, MASK)),
        (ppo.ppo_policy_loss, (LOGP, OLD, ADV[:, 0], MASK)),
        (ppo.ppo_policy_loss, (LOGP[0], OLD[0], ADV[0], MASK[0])),
        (ppo.ppo_policy_loss, (LOGP, OLD, ADV, MASK[:1])),
        (ppo.ppo_value_loss, (LOGP, OLD, ADV[:1], MASK)),
        (ppo.entropy_loss, (LOGP, MASK[:, :1])),
    ]
    for function, args in cases:
        with pytest.raises(ValueError, match="expected .* given"):
            inspect.unwrap(function)(*args)
        with pytest.raises((ValueError, TypeError)):
            function(*args)
    with pytest.raises(ValueError, match="reduce: expected one of 'token_mean', .* given 'mean'"):
        ppo.ppo_policy_loss(LOGP, OLD, ADV, MASK, reduce="mean")
    with pytest.raises(ValueError, match="ratio_level: expected one of 'token', 'sequence', given 'word'"):
        ppo.ppo_policy_loss(LOGP, OLD, ADV, MASK, ratio_level="word")
    with pytest.raises(ValueError, match="dual: expected a number above 1"):
        ppo.ppo_policy_loss(LOGP, OLD, ADV, MASK, dual=0.5)
