import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from prl_jax.losses import preference as pref

R_W, R_L = jnp.array([2.0, -1.0]), jnp.array([0.5, 0.5])
Z12, Z21 = jnp.array([1.2, -0.4]), jnp.array([-0.7, -0.3])
LABEL = jnp.array([1.0, 0.0])


def softplus(x):
    return np.log1p(np.exp(np.asarray(x, np.float64)))


def value(out):
    return float(out.value)


def mean(out, name):
    total, count = out.aux[name]
    return float(total / jnp.maximum(count, 1e-9))


def log_verdicts(z, mass):
    """Full-vocabulary log-probabilities of YES and NO with a given logit and total mass; NaN where z is not finite."""
    finite = jnp.isfinite(z)
    z = jnp.where(finite, z, 0.0)
    logp = jnp.stack([jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)], -1) + jnp.log(mass)
    return jnp.where(finite[..., None], logp, jnp.nan)


GENRM = {
    "both_orders": lambda z12, z21, label, **k: pref.pairwise_genrm_loss(z12, z21, label, **k),
    "antisymmetric": lambda z12, z21, label, **k: pref.pairwise_genrm_loss(z12, z21, label, form="antisymmetric", **k),
    "full": lambda z12, z21, label, **k: pref.pairwise_genrm_full_loss(
        log_verdicts(z12, 0.8), log_verdicts(z21, 0.8), label, **k
    ),
    "full antisymmetric": lambda z12, z21, label, **k: pref.pairwise_genrm_full_loss(
        log_verdicts(z12, 0.8), log_verdicts(z21, 0.8), label, form="antisymmetric", **k
    ),
}
ALL = {"bt": lambda a, b, label, **k: pref.bt_loss(a, b, label=label, margin=0.3, **k), **GENRM}
# Jitted once: the tests below share what is compiled.
JITTED = {name: jax.jit(loss) for name, loss in ALL.items()}
every_loss = pytest.mark.parametrize("loss", JITTED.values(), ids=JITTED.keys())
every_judge = pytest.mark.parametrize("loss", [JITTED[name] for name in GENRM], ids=GENRM.keys())


# Bradley-Terry


def test_bt_by_hand():
    out = pref.bt_loss(R_W, R_L)
    np.testing.assert_allclose(value(out), (softplus(-1.5) + softplus(1.5)) / 2, rtol=1e-6)
    assert float(out.denominator) == 2
    assert mean(out, "accuracy") == 0.5
    np.testing.assert_allclose(mean(out, "margin"), 0.0, atol=1e-6)
    out = pref.bt_loss(R_W, R_L, margin=jnp.array([1.0, 0.0]), center=0.01)
    np.testing.assert_allclose(
        value(out), (softplus(-0.5) + softplus(1.5)) / 2 + 0.01 * (2.5**2 + 0.5**2) / 2, rtol=1e-6
    )
    out = pref.bt_loss(R_W, R_L, label_smoothing=0.1, margin=1)
    expected = np.mean([0.9 * softplus(-d) + 0.1 * softplus(d) for d in (0.5, -2.5)])
    np.testing.assert_allclose(value(out), expected, rtol=1e-6)


def test_bt_soft_label_and_gradient():
    p = jnp.array([0.7, 0.2])
    expected = np.mean([0.7 * softplus(-1.5) + 0.3 * softplus(1.5), 0.2 * softplus(1.5) + 0.8 * softplus(-1.5)])
    np.testing.assert_allclose(value(pref.bt_loss(R_W, R_L, label=p)), expected, rtol=1e-6)
    grad = jax.grad(lambda r: pref.bt_loss(r, R_L, margin=0.5).value)(R_W)
    np.testing.assert_allclose(grad, -jax.nn.sigmoid(-(R_W - R_L) + 0.5) / 2, rtol=1e-5)


def test_bt_shift_changes_only_the_centred_loss():
    plain = lambda shift, center: value(pref.bt_loss(R_W + shift, R_L + shift, center=center))  # noqa: E731
    np.testing.assert_allclose(plain(3.0, 0.0), plain(0.0, 0.0), rtol=1e-6)
    assert abs(plain(3.0, 0.01) - plain(0.0, 0.01)) > 0.1


def test_bt_half_smoothing_has_its_minimum_at_equal_scores():
    loss = lambda d: pref.bt_loss(jnp.array([d]), jnp.array([0.0]), label_smoothing=0.5).value  # noqa: E731
    assert float(jax.grad(loss)(0.0)) == 0.0
    assert float(loss(0.0)) < min(float(loss(0.5)), float(loss(-0.5)))


def test_bt_accuracy_counts_equality_half_and_leaves_ties_out():
    r_1, r_2 = jnp.array([1.0, 1.0, 0.0, 5.0]), jnp.array([0.0, 1.0, 1.0, 0.0])
    out = pref.bt_loss(r_1, r_2, label=jnp.array([1.0, 1.0, 0.2, 0.5]))
    assert [float(x) for x in out.aux["accuracy"]] == [2.5, 3.0]
    assert [float(x) for x in out.aux["margin"]] == [2.0, 3.0]
    out = pref.bt_loss(r_1, r_2, label=0.5)
    assert [float(x) for x in out.aux["accuracy"]] == [0.0, 0.0]


# Generative judges


def test_verdict_prob():
    logits = jnp.array([[0.0, 2.0, 1.0], [1.0, -1.0, 3.0]])
    np.testing.assert_allclose(pref.verdict_prob(logits, 1, 2), jax.nn.sigmoid(jnp.array([1.0, -4.0])), rtol=1e-6)
    np.testing.assert_allclose(
        pref.verdict_prob(logits, 1, 2, temperature=2.0), jax.nn.sigmoid(jnp.array([0.5, -2.0])), rtol=1e-6
    )
    np.testing.assert_allclose(
        pref.verdict_prob(logits, 1, 2, full_vocab=True), jax.nn.softmax(logits)[:, 1], rtol=1e-6
    )
    assert np.isfinite(pref.verdict_prob(1e4 * logits, 1, 2, full_vocab=True)).all()
    assert pref.verdict_prob(logits.astype(jnp.bfloat16), 1, 2).dtype == jnp.float32


def test_both_orders_by_hand():
    ce = np.array([softplus(-1.2), softplus(-0.4)])
    ce_swapped = np.array([softplus(-0.7), softplus(0.3)])
    out = pref.pairwise_genrm_loss(Z12, Z21, LABEL)
    np.testing.assert_allclose(value(out), 0.5 * (ce + ce_swapped).mean(), rtol=1e-6)
    cons = np.mean([0.5**2, 0.7**2])
    np.testing.assert_allclose(
        value(pref.pairwise_genrm_loss(Z12, Z21, LABEL, w_cons=0.3)), value(out) + 0.3 * cons, rtol=1e-6
    )
    # z12 - z21 = 1.9 and -0.1: right twice. The orders agree on the first pair and not on the second.
    assert mean(out, "accuracy") == 1.0
    assert mean(out, "order_consistency") == 0.5
    p12, p21 = jax.nn.sigmoid(Z12), jax.nn.sigmoid(Z21)
    np.testing.assert_allclose(mean(out, "position_bias"), float(jnp.mean(p12 + p21 - 1)), rtol=1e-5)


def test_antisymmetric_by_hand():
    ce = np.array([softplus(-0.95), softplus(-0.05)])
    per_order = value(pref.pairwise_genrm_loss(Z12, Z21, LABEL))
    for w_ce in (0.0, 0.05):
        out = pref.pairwise_genrm_loss(Z12, Z21, LABEL, form="antisymmetric", w_ce=w_ce)
        np.testing.assert_allclose(value(out), ce.mean() + w_ce * per_order, rtol=1e-6)


def test_full_vocabulary_form_adds_the_lost_mass():
    """Full cross-entropy is the two-way one minus the log of the mass on the two verdicts."""
    for form, share in (("both_orders", 1.0), ("antisymmetric", 0.05)):
        two_way = pref.pairwise_genrm_loss(Z12, Z21, LABEL, form=form, w_cons=0.2)
        full = pref.pairwise_genrm_full_loss(
            log_verdicts(Z12, 0.3), log_verdicts(Z21, 0.5), LABEL, form=form, w_cons=0.2
        )
        lost = -0.5 * (np.log(0.3) + np.log(0.5))
        np.testing.assert_allclose(value(full), value(two_way) + share * lost, rtol=1e-5)
        np.testing.assert_allclose(mean(full, "verdict_mass"), 0.4, rtol=1e-5)
        for name in two_way.aux:
            np.testing.assert_allclose(mean(full, name), mean(two_way, name), rtol=1e-5)


def test_a_position_only_judge():
    bias = jnp.full(3, 1.5)
    label = jnp.array([1.0, 0.0, 1.0])
    out = pref.pairwise_genrm_loss(bias, bias, label)
    assert (mean(out, "accuracy"), mean(out, "order_consistency")) == (0.5, 0.0)
    np.testing.assert_allclose(mean(out, "position_bias"), 2 / (1 + np.exp(-1.5)) - 1, rtol=1e-5)
    for space in ("probability", "logit"):
        np.testing.assert_allclose(pref.symmetrise(bias, bias, space), 0.5, rtol=1e-6)


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_symmetrised_probabilities_of_the_two_orders_add_to_one(space):
    z12, z21 = jax.random.normal(jax.random.key(0), (2, 3, 4)) * 3
    total = pref.symmetrise(z12, z21, space) + pref.symmetrise(z21, z12, space)
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)
    if space == "probability":
        expected = (jax.nn.sigmoid(z12) + 1 - jax.nn.sigmoid(z21)) / 2
        np.testing.assert_allclose(pref.symmetrise(z12, z21), expected, rtol=1e-5)


def test_a_constant_slot_bias_is_removed():
    s, b = jnp.array([0.6, -0.2, 1.1]), 0.05
    np.testing.assert_allclose(pref.symmetrise(s + b, -s + b, "logit"), jax.nn.sigmoid(s), rtol=1e-6)
    # Probabilities: to first order in b.
    error = jnp.abs(pref.symmetrise(s + b, -s + b, "probability") - jax.nn.sigmoid(s))
    assert float(error.max()) < b**2
    assert float(jnp.abs(jax.nn.sigmoid(s + b) - jax.nn.sigmoid(s)).min()) > b**2


# Every loss of a pair


@every_loss
def test_swapping_the_responses_and_the_label_changes_nothing(loss):
    label = jnp.array([0.9, 0.25])
    one, other = loss(Z12, Z21, label), loss(Z21, Z12, 1 - label)
    np.testing.assert_allclose(value(one), value(other), rtol=1e-6)
    assert mean(one, "accuracy") == mean(other, "accuracy")


@every_loss
def test_masking_equals_deleting(loss):
    weight = jnp.array([1.0, 0.0, 2.0])
    a, b = jnp.array([0.3, jnp.nan, -1.0]), jnp.array([-0.2, jnp.inf, 0.4])
    label = jnp.array([1.0, jnp.nan, 0.3])
    whole = loss(a, b, label, weight=weight)
    kept = jnp.array([0, 2])
    part = loss(a[kept], b[kept], label[kept], weight=weight[kept])
    np.testing.assert_allclose(value(whole), value(part), rtol=1e-6)
    assert float(whole.denominator) == 3
    for name in part.aux:
        np.testing.assert_allclose(mean(whole, name), mean(part, name), rtol=1e-5)
    repeated = loss(*(jnp.array([x[0], x[2], x[2]]) for x in (a, b, label)))
    np.testing.assert_allclose(value(whole), value(repeated), rtol=1e-6)
    grads = jax.grad(lambda a, b: loss(a, b, label, weight=weight).value, (0, 1))(a, b)
    assert np.isfinite(grads[0]).all() and np.isfinite(grads[1]).all()
    assert float(grads[0][1]) == 0.0 and float(grads[0][0]) != 0.0
    boolean = loss(a, b, label, weight=weight > 0)
    assert float(boolean.denominator) == 2


@every_loss
def test_order_of_the_batch_does_not_matter(loss):
    one, other = loss(Z12, Z21, LABEL), loss(Z12[::-1], Z21[::-1], LABEL[::-1])
    np.testing.assert_allclose(value(one), value(other), rtol=1e-6)


@every_loss
def test_no_rows_give_zero(loss):
    out = loss(Z12, Z21, LABEL, weight=jnp.zeros(2))
    assert value(out) == 0.0
    assert all(mean(out, name) == 0.0 for name in out.aux)


@every_loss
def test_extreme_logits_have_finite_gradients(loss):
    for sign in (1, -1):
        a, b = jnp.array([1e4, -1e4]) * sign, jnp.array([-1e4, -1e4])
        total, grads = jax.value_and_grad(lambda a, b: loss(a, b, LABEL).value, (0, 1))(a, b)
        assert np.isfinite(total) and np.isfinite(grads).all()


@every_loss
def test_gradients(loss):
    label = jnp.array([0.8, 0.3])
    check_grads(lambda a, b: loss(jnp.asarray(a), jnp.asarray(b), label).value, (Z12, Z21), 1, rtol=1e-2, atol=1e-3)


@every_loss
def test_jit_vmap_and_bfloat16(loss):
    expected = value(loss(Z12, Z21, LABEL))
    with jax.disable_jit():
        np.testing.assert_allclose(value(loss(Z12, Z21, LABEL)), expected, rtol=1e-6)
    batched = jax.vmap(lambda *args: loss(*args).value)(Z12[None], Z21[None], LABEL[None])
    np.testing.assert_allclose(batched, [expected], rtol=1e-6)
    out = loss(*(x.astype(jnp.bfloat16) for x in (Z12, Z21, LABEL)))
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype(jnp.float32)}


@every_judge
def test_a_tie_is_learnt_as_no_preference(loss):
    half = jnp.array([0.5])
    grads = jax.grad(lambda a, b: loss(a, b, half).value, (0, 1))(jnp.zeros(1), jnp.zeros(1))
    np.testing.assert_allclose(grads, 0.0, atol=1e-6)
    assert value(loss(jnp.ones(1), -jnp.ones(1), half)) > value(loss(jnp.zeros(1), jnp.zeros(1), half))


@every_judge
def test_aux_carries_no_gradient(loss):
    def total(a, b):
        return sum(x for pair in loss(a, b, LABEL).aux.values() for x in pair)

    np.testing.assert_array_equal(jax.grad(total, (0, 1))(Z12, Z21), np.zeros((2, 2)))


def test_wrong_shapes_raise():
    column = R_L[:, None]
    cases = [
        (pref.bt_loss, (R_W, column), {}),
        (pref.bt_loss, (R_W[:, None], column), {}),
        (pref.bt_loss, (R_W, R_L), {"label": column}),
        (pref.bt_loss, (R_W, R_L), {"margin": column}),
        (pref.bt_loss, (R_W, R_L), {"weight": column}),
        (pref.pairwise_genrm_loss, (Z12, column, LABEL), {}),
        (pref.pairwise_genrm_loss, (Z12, Z21, LABEL[:, None]), {}),
        (pref.pairwise_genrm_full_loss, (jnp.ones((2, 3)), jnp.ones((2, 3)), LABEL), {}),
        (pref.pairwise_genrm_full_loss, (jnp.ones((2, 2)), jnp.ones((1, 2)), LABEL), {}),
        (pref.pairwise_genrm_full_loss, (jnp.ones((2, 2)), jnp.ones((2, 2)), column), {}),
        (pref.verdict_prob, (jnp.ones(5), 0, 1), {}),
        (pref.symmetrise, (Z12, column), {}),
    ]
    for function, args, kwargs in cases:
        # The function as written, without the type checker of the test run.
        with pytest.raises(ValueError, match="expected .* given"):
            inspect.unwrap(function)(*args, **kwargs)
        with pytest.raises((ValueError, TypeError)):
            function(*args, **kwargs)


def test_unknown_options_name_the_known_ones():
    with pytest.raises(ValueError, match="form: expected one of 'both_orders', 'antisymmetric'"):
        pref.pairwise_genrm_loss(Z12, Z21, LABEL, form="one_order")
    with pytest.raises(ValueError, match="form: expected one of 'both_orders', 'antisymmetric'"):
        pref.pairwise_genrm_full_loss(jnp.zeros((2, 2)), jnp.zeros((2, 2)), LABEL, form="one_order")
    with pytest.raises(ValueError, match="space: expected one of 'probability', 'logit'"):
        pref.symmetrise(Z12, Z21, "log")
