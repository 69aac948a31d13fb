import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from prl_jax.losses import pairwise_ppo as pw
from prl_jax.losses.preference import symmetrise

Z_YA = jnp.array([[0.4, -1.0], [2.0, 0.3]])
Z_AY = jnp.array([[-0.8, 1.4], [-1.0, 0.1]])
MASK = jnp.array([[True, True], [True, False]])
PAIR = {
    "l1": jnp.array([0.5, -0.2]),
    "l2": jnp.array([0.1, 0.3]),
    "l1_old": jnp.array([0.4, 0.1]),
    "l2_old": jnp.array([0.2, 0.2]),
    "win": jnp.array([0.9, 0.3]),
}


def mean(out, name):
    total, count = out.aux[name]
    return float(total / jnp.maximum(count, 1e-9))


def on_policy(l1, l2, win, **kwargs):
    return pw.pairwise_policy_loss(l1, l2, l1, l2, win, **kwargs)


# Rewards


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_reward_maps_by_hand(space):
    p = np.asarray(symmetrise(Z_YA, Z_AY, space), np.float64)
    maps = {"id": p, "centred": p - 0.5, "logit": np.log(p / (1 - p)), "log": np.log(p)}
    for f, x in maps.items():
        expected = [x[0].mean(), x[1, 0]]
        np.testing.assert_allclose(pw.pairwise_rl_reward(Z_YA, Z_AY, MASK, space=space, f=f), expected, rtol=1e-5)


def test_with_a_bradley_terry_judge_it_is_par_with_one_reference():
    r, anchor = jnp.array([1.2, -0.7]), jnp.array([0.3, 0.9])
    z = (r - anchor)[:, None]
    one = jnp.ones((2, 1), bool)
    for space in ("probability", "logit"):
        reward = pw.pairwise_rl_reward(z, -z, one, space=space)
        np.testing.assert_allclose(reward, jax.nn.sigmoid(r - anchor), rtol=1e-6)
        # A judge of differences does not see what is added to every score of a prompt.
        shifted = ((r + 5.0) - (anchor + 5.0))[:, None]
        np.testing.assert_allclose(pw.pairwise_rl_reward(shifted, -shifted, one, space=space), reward, rtol=1e-5)
    gap = pw.pairwise_rl_reward(z, -z, one, f="logit")
    np.testing.assert_allclose(gap, r - anchor, rtol=1e-4)


def test_against_itself_a_response_earns_a_half():
    z = jnp.array([[1.3], [-0.4]])
    np.testing.assert_allclose(pw.pairwise_rl_reward(z, z, jnp.ones((2, 1), bool)), 0.5, rtol=1e-6)


@pytest.mark.parametrize("space", ["probability", "logit"])
@pytest.mark.parametrize("f", pw.REWARD_MAPS)
def test_reward_is_finite_and_float32(f, space):
    z = jnp.array([[1e4, -1e4]], jnp.bfloat16)
    out = pw.pairwise_rl_reward(z, -z, jnp.ones((1, 2), bool), f=f, space=space)
    assert out.dtype == jnp.float32 and np.isfinite(out).all()
    grad = jax.grad(lambda z: pw.pairwise_rl_reward(z, -z, jnp.ones((1, 2), bool), f=f, space=space).sum())
    assert np.isfinite(grad(z.astype(jnp.float32))).all()
    dirty = pw.pairwise_rl_reward(
        jnp.where(MASK, Z_YA, jnp.nan), jnp.where(MASK, Z_AY, jnp.inf), MASK, f=f, space=space
    )
    np.testing.assert_allclose(dirty, pw.pairwise_rl_reward(Z_YA, Z_AY, MASK, f=f, space=space), rtol=1e-6)
    np.testing.assert_array_equal(pw.pairwise_rl_reward(Z_YA, Z_AY, ~MASK, f=f, space=space)[:1], [0.0])


def test_floor_bounds_the_unbounded_rewards():
    z, one = jnp.array([[-50.0]]), jnp.ones((1, 1), bool)
    np.testing.assert_allclose(pw.pairwise_rl_reward(z, -z, one, f="log", floor=0.01), [np.log(0.01)], rtol=1e-5)
    np.testing.assert_allclose(pw.pairwise_rl_reward(-z, z, one, f="logit", floor=0.01), [np.log(99)], rtol=1e-5)


def test_order_of_the_opponents_does_not_matter():
    ours = pw.pairwise_rl_reward(Z_YA, Z_AY, MASK)
    np.testing.assert_allclose(pw.pairwise_rl_reward(*(x[:, ::-1] for x in (Z_YA, Z_AY, MASK))), ours, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(pw.pairwise_rl_reward)(Z_YA, Z_AY, MASK), ours, rtol=1e-6)


def test_the_best_policy_against_an_anchor():
    """The optimum of E[pbar] - beta KL in a finite set of responses is `ref exp(pbar / beta)`."""
    beta, ref = 0.3, jnp.array([0.5, 0.3, 0.2])
    z = jnp.array([[0.2], [1.5], [-0.8]])
    reward = pw.pairwise_rl_reward(z, -z, jnp.ones((3, 1), bool))

    def loss(logits):
        logp = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(logp) * (beta * (logp - jnp.log(ref)) - reward))

    best = jnp.log(ref) + reward / beta
    np.testing.assert_allclose(jax.grad(loss)(best), 0.0, atol=1e-6)
    assert np.abs(jax.grad(loss)(jnp.log(ref))).max() > 1e-2


# The pair's policy loss


def test_policy_by_hand():
    out = pw.pairwise_policy_loss(**PAIR, beta=0.1, eps=0.2)
    # z = 0.4, z_old = 0.2, q = 0.8 - 0.04, w = exp(0) ; z = -0.5, z_old = -0.1, q = -0.4 + 0.05, w = exp(-0.2)
    first = -0.76 * 0.4
    second = 0.35 * np.exp(-0.2) * -0.3
    np.testing.assert_allclose(out.value, (first + second) / 4, rtol=1e-5)
    assert float(out.denominator) == 2
    assert mean(out, "clip_fraction") == 0.5
    np.testing.assert_allclose(mean(out, "importance"), (1 + np.exp(-0.2)) / 2, rtol=1e-6)


def test_on_policy_gradient():
    l1, l2, win = PAIR["l1"], PAIR["l2"], PAIR["win"]
    for beta in (0.05, 0.5):
        grads = jax.grad(lambda a, b, beta=beta: pw.pairwise_policy_loss(a, b, l1, l2, win, beta=beta).sum, (0, 1))
        ours = grads(l1, l2)
        q = (2 * win - 1) - beta * (l1 - l2)
        np.testing.assert_allclose(ours[0], -q / 2, rtol=1e-5)
        np.testing.assert_allclose(ours[1], q / 2, rtol=1e-5)
        regression = jax.grad(lambda a, beta=beta: jnp.sum((beta * (a - l2) - (2 * win - 1)) ** 2) / (4 * beta))
        np.testing.assert_allclose(ours[0], regression(l1), rtol=1e-5)


def test_gradient_is_zero_where_the_log_ratios_explain_the_judgement():
    win = jnp.array([0.6, 0.5])
    l1, l2 = jnp.array([2.0, 0.3]), jnp.array([0.0, 0.3])
    grad = jax.grad(lambda a: pw.pairwise_policy_loss(a, l2, l1, l2, win, beta=0.1).value)(l1)
    np.testing.assert_allclose(grad, 0.0, atol=1e-7)


def test_gradient_vanishes_beyond_the_clip_on_the_good_side_alone():
    old, zero = jnp.zeros(1), jnp.zeros(1)
    grad = jax.grad(lambda a, win: pw.pairwise_policy_loss(a, zero, old, old, win, beta=0.0).value)
    assert float(grad(jnp.array([0.3]), jnp.array([0.9]))[0]) == 0.0
    assert float(grad(jnp.array([-0.3]), jnp.array([0.1]))[0]) == 0.0
    assert float(grad(jnp.array([-0.3]), jnp.array([0.9]))[0]) < 0.0
    assert float(grad(jnp.array([0.3]), jnp.array([0.1]))[0]) > 0.0


def test_swapping_the_responses_changes_nothing():
    swapped = pw.pairwise_policy_loss(PAIR["l2"], PAIR["l1"], PAIR["l2_old"], PAIR["l1_old"], 1 - PAIR["win"])
    np.testing.assert_allclose(swapped.value, pw.pairwise_policy_loss(**PAIR).value, rtol=1e-5)


def test_win_probabilities_with_ties_only_regularise():
    """At p = 1/2 without KL nothing moves."""
    l1, l2 = PAIR["l1"], PAIR["l2"]
    grad = jax.grad(lambda a: on_policy(a, l2, jnp.full(2, 0.5), beta=0.0).value)(l1)
    np.testing.assert_array_equal(grad, np.zeros(2))


def test_importance_is_bounded():
    far = {**PAIR, "l1": jnp.array([50.0, -50.0])}
    np.testing.assert_allclose(mean(pw.pairwise_policy_loss(**far, c=10.0), "importance"), (10 + 0.1) / 2, rtol=1e-5)


def test_descent_reaches_the_tabular_optimum():
    """Over all pairs of a finite set: `pi ∝ ref exp(r / beta)` where 2 p - 1 = r_1 - r_2."""
    beta, ref = 0.5, jnp.log(jnp.array([0.5, 0.3, 0.2]))
    reward = jnp.array([0.1, 0.4, -0.2])
    first, second = map(jnp.array, ([0, 0, 1], [1, 2, 2]))
    win = 0.5 * (1 + reward[first] - reward[second])

    @jax.jit
    def gradient(logits):
        def loss(logits):
            ratio = jax.nn.log_softmax(logits) - ref
            old = jax.lax.stop_gradient(ratio)
            l1, l2, o1, o2 = ratio[first], ratio[second], old[first], old[second]
            return pw.pairwise_policy_loss(l1, l2, o1, o2, win, beta=beta).value

        return jax.grad(loss)(logits)

    logits = ref
    for _ in range(100):
        logits = logits - 1.0 * gradient(logits)
    np.testing.assert_allclose(jax.nn.softmax(logits), jax.nn.softmax(ref + reward / beta), rtol=1e-4)


def test_pair_loss_masking_padding_and_extremes():
    weight = jnp.array([1.0, 0.0, 1.0])
    dirty = {name: jnp.array([x[0], jnp.nan, x[1]]) for name, x in PAIR.items()}
    whole, part = pw.pairwise_policy_loss(**dirty, weight=weight), pw.pairwise_policy_loss(**PAIR)
    np.testing.assert_allclose(whole.value, part.value, rtol=1e-6)
    grad = jax.grad(lambda x: pw.pairwise_policy_loss(**{**dirty, "l1": x}, weight=weight).value)(dirty["l1"])
    assert np.isfinite(grad).all() and float(grad[1]) == 0.0
    assert float(pw.pairwise_policy_loss(**PAIR, weight=jnp.zeros(2, bool)).value) == 0.0
    for x in (1e4, -1e4):
        far = {**PAIR, "l1": jnp.full(2, x)}
        value, grad = jax.value_and_grad(lambda y, far=far: pw.pairwise_policy_loss(**{**far, "l1": y}).value)(
            far["l1"]
        )
        assert np.isfinite(value) and np.isfinite(grad).all()


def test_pair_loss_stops_gradients():
    def total(l1_old, l2_old, win):
        return pw.pairwise_policy_loss(PAIR["l1"], PAIR["l2"], l1_old, l2_old, win).value

    grads = jax.grad(total, (0, 1, 2))(PAIR["l1_old"], PAIR["l2_old"], PAIR["win"])
    # z_old may move the clip's bounds in the value, yet nothing flows to it.
    np.testing.assert_array_equal(grads, np.zeros((3, 2)))


def test_pair_loss_gradient_with_constants_frozen():
    """With beta 0 and clipped importance the loss is piecewise linear in l1 and smooth off the kinks."""
    far_old = {**PAIR, "l1_old": PAIR["l1"] - 5.0, "l2_old": PAIR["l2"] - 4.9, "win": jnp.array([0.2, 0.7])}
    check_grads(
        lambda x: pw.pairwise_policy_loss(**{**far_old, "l1": jnp.asarray(x)}, beta=0.0, eps=0.5).value,
        (PAIR["l1"],), 1, rtol=1e-2, atol=1e-3,
    )  # fmt: skip


def test_pair_loss_jit_vmap_bfloat16():
    expected = float(pw.pairwise_policy_loss(**PAIR).value)
    np.testing.assert_allclose(jax.jit(lambda p: pw.pairwise_policy_loss(**p).value)(PAIR), expected, rtol=1e-5)
    batched = jax.vmap(lambda p: pw.pairwise_policy_loss(**p).value)(jax.tree.map(lambda x: x[None], PAIR))
    np.testing.assert_allclose(batched, [expected], rtol=1e-5)
    out = pw.pairwise_policy_loss(**{k: v.astype(jnp.bfloat16) for k, v in PAIR.items()})
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype(jnp.float32)}


# Win rates


def test_win_rates_of_a_total_order_a_cycle_and_chance():
    order = jnp.array([[[jnp.nan, 1.0, 1.0], [0.0, jnp.nan, 1.0], [0.0, 0.0, jnp.nan]]])
    cycle = jnp.array([[[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]]])
    full = jnp.ones((1, 3, 3), bool)
    np.testing.assert_allclose(pw.win_rate(order, full), [[1.0, 0.5, 0.0]])
    np.testing.assert_allclose(pw.win_rate(cycle, full), [[0.5, 0.5, 0.5]], rtol=1e-6)
    random = jax.random.uniform(jax.random.key(0), (4, 5, 5))
    antisymmetric = (random + 1 - random.transpose(0, 2, 1)) / 2
    rates = pw.win_rate(antisymmetric, jnp.ones((4, 5, 5), bool))
    np.testing.assert_allclose(rates.sum(-1), 2.5, rtol=1e-6)


def test_win_rates_under_bradley_terry_rank_like_the_scores():
    scores = jnp.array([0.3, -1.0, 2.0, 0.9])
    rates = pw.win_rate(jax.nn.sigmoid(scores[:, None] - scores[None])[None], jnp.ones((1, 4, 4), bool))
    np.testing.assert_array_equal(jnp.argsort(rates[0]), jnp.argsort(scores))


def test_win_rate_masks_pairs_and_survives_groups_of_one():
    P = jnp.array([[[0.5, 0.8, jnp.nan], [0.2, 0.5, 0.6], [jnp.nan, 0.4, 0.5]]], jnp.bfloat16)
    judged = jnp.isfinite(P)
    rates = pw.win_rate(P, judged)
    np.testing.assert_allclose(rates, [[0.8, 0.4, 0.4]], rtol=1e-2)
    assert rates.dtype == jnp.float32
    np.testing.assert_array_equal(pw.win_rate(jnp.full((2, 1, 1), 0.5), jnp.ones((2, 1, 1), bool)), np.zeros((2, 1)))


def test_wrong_shapes_and_options_raise():
    vector = PAIR["l1"]
    cases = [
        (pw.pairwise_rl_reward, (Z_YA, Z_AY[:, :1], MASK)),
        (pw.pairwise_rl_reward, (Z_YA[0], Z_AY[0], MASK[0])),
        (pw.pairwise_rl_reward, (Z_YA, Z_AY, MASK[:1])),
        (pw.pairwise_policy_loss, (vector, vector[:, None], vector, vector, vector)),
        (pw.pairwise_policy_loss, (vector, vector, vector, vector, vector[:1])),
        (pw.win_rate, (jnp.ones((1, 3, 2)), jnp.ones((1, 3, 2), bool))),
        (pw.win_rate, (jnp.ones((1, 3, 3)), jnp.ones((1, 3, 1), bool))),
    ]
    for function, args in cases:
        with pytest.raises(ValueError, match="expected .* given"):
            inspect.unwrap(function)(*args)
        with pytest.raises((ValueError, TypeError)):
            function(*args)
    with pytest.raises(
        ValueError,
        match="f: expected one of 'id', .*, 'signed', 'verdicts', given 'tanh'",
    ):
        pw.pairwise_rl_reward(Z_YA, Z_AY, MASK, f="tanh")
    with pytest.raises(ValueError, match="space: expected one of 'probability', 'logit'"):
        pw.pairwise_rl_reward(Z_YA, Z_AY, MASK, space="log")
    with pytest.raises(ValueError, match="c: expected a number of at least 1"):
        pw.pairwise_policy_loss(**PAIR, c=0.5)
