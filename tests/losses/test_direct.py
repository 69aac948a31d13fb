"""Direct preference losses: methods that are one by equal gradients, exact optima, and what every loss promises."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import tabular
from losses.tabular import REF, RESPONSES, direct_terms, gibbs, total_variation

from prl_jax import losses
from prl_jax.losses import (
    DirectTerms,
    better_mean,
    bounded_logit,
    margin_scale,
    mixed_reference,
    pair_regression_loss,
    single_regression_loss,
    smooth_label,
)
from prl_jax.losses.direct_links import log1mexp
from prl_jax.methods.direct import (
    APO,
    BCO,
    EXO,
    IPO,
    KTO,
    NCA,
    ORPO,
    RWR,
    SPPO,
    Hinge,
    Linear,
    Robust,
    Sigmoid,
    Squared,
    WeightedSigmoid,
)

PAIRS, BETA = 4, 0.3
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def every_pair(number):
    """One number for all pairs; its type is what makes a compiled function serve again."""
    return jnp.full(PAIRS, number, jnp.float32)


# Log-probs of responses 1 and 2 under the policy and two frozen ones.
LOGP, REFERENCE, PREVIOUS = (-jnp.abs(3.0 * normal(2, PAIRS)) for _ in range(3))
LABEL = jnp.array([1.0, 0.0, 0.7, 0.5])
SCORES_OF_PAIRS = normal(2, PAIRS)
WEIGHT = jnp.array([1.0, 0.0, 2.0, 0.5])

# Every loss, with defaults that do something on numbers of this size.
LOSSES = {
    "sigmoid": Sigmoid(margin=0.2, label_smoothing=0.1),
    "ipo": IPO(),
    "hinge": Hinge(),
    "robust": Robust(),
    "squared": Squared(),
    "weighted_sigmoid": WeightedSigmoid(),
    "sppo": SPPO(beta=0.1),
    "linear": Linear(clip=2.0),
    "rwr": RWR(),
    "kto": KTO(desirable=1.3, undesirable=0.7),
    "orpo": ORPO(),
    "apo zero": APO(),
    "apo down": APO(form="down"),
    "nca": NCA(),
    "bco": BCO(),
    "exo": EXO(label_smoothing=0.05),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def some_terms(**changes):
    ratio = LOGP - REFERENCE
    fields = dict(
        logp_1=LOGP[0], logp_2=LOGP[1], label=LABEL, target_1=SCORES_OF_PAIRS[0], target_2=SCORES_OF_PAIRS[1],
        scale=jnp.array([1.0, 0.5, 1.5, 1.0]), weight=WEIGHT, statistic=jnp.float32(0.4),
    )  # fmt: skip
    return direct_terms(ratio[0], ratio[1], **fields)._replace(**changes)


@functools.cache
def evaluated(name):
    """`terms -> (loss, gradients to every field)`, compiled once for all tests."""

    def both(terms):
        grads = jax.grad(lambda terms: LOSSES[name](terms).sum)(terms)
        return LOSSES[name](terms), grads

    return jax.jit(both)


def same(one, other, rtol=1e-5):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


# Links, against formulas written apart


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def nll(z):
    return np.log1p(np.exp(-z))


def log_odds(logp):
    return logp - np.log1p(-np.exp(logp))


LINKS = {
    "sigmoid": (losses.sigmoid_link, dict(margin=0.3), lambda a, b: nll(a - b - 0.3)),
    "ipo": (losses.ipo_link, dict(tau=0.4), lambda a, b: (a - b - 1.25) ** 2),
    "hinge": (losses.hinge_link, {}, lambda a, b: np.maximum(0, 1 - a + b)),
    "robust": (losses.robust_link, dict(flip_rate=0.2), lambda a, b: (0.8 * nll(a - b) - 0.2 * nll(b - a)) / 0.6),
    "linear": (losses.linear_link, dict(clip=0.5), lambda a, b: np.clip(b, -0.5, 0.5) - np.clip(a, -0.5, 0.5)),
    "kto": (
        losses.kto_link,
        dict(desirable=1.5, undesirable=0.5, z0=0.2),
        lambda a, b: 0.5 * (1.5 * (1 - sigmoid(a - 0.2)) + 0.5 * (1 - sigmoid(0.2 - b))),
    ),
    "apo zero": (losses.apo_zero_link, {}, lambda a, b: 1 - sigmoid(a) + sigmoid(b)),
    "apo down": (losses.apo_down_link, {}, lambda a, b: sigmoid(a) + 1 - sigmoid(a - b)),
    "nca": (losses.nca_link, {}, lambda a, b: nll(a) + 0.5 * nll(-a) + 0.5 * nll(-b)),
    "bco": (losses.bco_link, dict(delta=0.3), lambda a, b: nll(a - 0.3) + nll(0.3 - b)),
    "exo": (
        losses.exo_link,
        dict(smoothing=0.1),
        lambda a, b: (
            sigmoid(a - b) * np.log(sigmoid(a - b) / 0.9) + sigmoid(b - a) * np.log(sigmoid(b - a) / 0.1)
        ),
    ),
    "odds": (losses.odds_link, {}, lambda a, b: nll(log_odds(a) - log_odds(b))),
}  # fmt: skip


@pytest.mark.parametrize(("link", "options", "plain"), LINKS.values(), ids=LINKS.keys())
def test_links_are_their_formulas_for_every_label(link, options, plain):
    u_1, u_2 = LOGP if link is losses.odds_link else 2.0 * SCORES_OF_PAIRS
    terms = direct_terms(u_1, u_2, label=LABEL, weight=WEIGHT)
    out = losses.label_loss(terms, functools.partial(link, **options), u_1, u_2)
    first, second, t, w = (np.asarray(x, np.float64) for x in (u_1, u_2, LABEL, WEIGHT))
    expected = np.sum(w * (t * plain(first, second) + (1 - t) * plain(second, first)))
    np.testing.assert_allclose(out.sum, expected, rtol=1e-5)
    assert float(out.denominator) == 3.5


def test_what_a_loss_says_of_the_pairs():
    """Accuracy counts an even gap half and leaves ties of the label out; ratios are those of responses 1 and 2."""
    ratio = jnp.array([[2.0, 1.0, 3.0, 4.0], [1.0, 1.0, 5.0, 0.0]])
    out = Sigmoid(beta=0.5)(direct_terms(*ratio, label=jnp.array([1.0, 1.0, 0.8, 0.5])))
    assert [float(x) for x in out.aux["accuracy"]] == [1.5, 3.0]
    assert [float(x) for x in out.aux["margin"]] == [0.5 + 0.0 - 1.0, 3.0]
    assert [float(x) for x in out.aux["chosen_ratio"]] == [10.0, 4.0]
    assert [float(x) for x in out.aux["rejected_ratio"]] == [7.0, 4.0]
    # The label itself is judged by, and not what smoothing makes of it.
    out = Sigmoid(label_smoothing=0.5)(direct_terms(*ratio, label=jnp.array([1.0, 1.0, 0.8, 0.5])))
    assert [float(x) for x in out.aux["accuracy"]] == [1.5, 3.0]
    # With targets the better response is the one of the higher target.
    target = jnp.array([[0.1, 0.9, 0.4, 0.5], [0.9, 0.1, 0.6, 0.5]])
    out = Squared(beta=1.0)(direct_terms(*ratio, target_1=target[0], target_2=target[1]))
    assert [float(x) for x in out.aux["accuracy"]] == [0.0 + 0.5 + 1.0, 3.0]


def test_parts_of_losses():
    logit = bounded_logit(jnp.array([0.0, 0.5, 0.8, 1.0]), 0.01)
    np.testing.assert_allclose(logit, [-np.log(99), 0.0, np.log(4), np.log(99)], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(smooth_label(LABEL, 0.1), 0.8 * LABEL + 0.1, rtol=1e-6)
    certainty = jnp.array([1.0, 0.0, 0.5, 0.2])
    np.testing.assert_allclose(smooth_label(LABEL, 1 - certainty), [1.0, 1.0, 0.5, 0.5], rtol=1e-6)
    scale = margin_scale(jnp.array([0.0, 2.0, 1e4, -1e4]), amount=0.1, rate=0.5)
    np.testing.assert_allclose(scale, [1.0, 1 + 0.1 * (1 - np.exp(-1.0)), 1.1, 0.01], rtol=1e-6)
    mixed = mixed_reference(jnp.stack([REFERENCE[0], PREVIOUS[0]]), jnp.array([0.3, 0.7]))
    np.testing.assert_allclose(mixed, 0.3 * REFERENCE[0] + 0.7 * PREVIOUS[0], rtol=1e-6)
    np.testing.assert_array_equal(mixed_reference(jnp.zeros((0, 3)), jnp.zeros(0)), np.zeros(3))
    x = np.array([-1e-6, -1e-3, -0.5, -1.0, -30.0, -1e4])
    np.testing.assert_allclose(log1mexp(jnp.float32(x)), np.log(-np.expm1(x)), rtol=1e-5, atol=1e-12)


# Identities between methods: gradients to the log-probs of the policy


def against(*refs, weights=(1.0,)):
    """Log-ratios to a mixture of frozen policies."""
    lam = jnp.asarray(weights, jnp.float32)
    reference = [mixed_reference(jnp.stack([ref[i] for ref in refs]), lam) for i in (0, 1)]
    return lambda logp: direct_terms(logp[0] - reference[0], logp[1] - reference[1], logp_1=logp[0], logp_2=logp[1])


def method(piece, ratio, **given):
    return lambda logp: piece(ratio(logp)._replace(**given)).value


def plus(weight, term, base):
    return lambda logp: base(logp) + weight * term(logp)


def likelihood(logp):
    return better_mean(-logp[0], -logp[1], jnp.ones(PAIRS), jnp.ones(PAIRS)).value


def value_of(piece, ratio):
    return lambda logp: better_mean(*piece.scaled(ratio(logp)), jnp.ones(PAIRS), jnp.ones(PAIRS)).value


def gap(logp, reference):
    return (logp[0] - reference[0]) - (logp[1] - reference[1])


def dpo(reference, sign=1.0):
    return lambda logp: -jnp.mean(jax.nn.log_sigmoid(sign * BETA * gap(logp, reference)))


def ipo(reference, tau):
    return lambda logp: jnp.mean((gap(logp, reference) - 1 / (2 * tau)) ** 2)


def squared(reference, target, beta=BETA):
    return lambda logp: jnp.mean((beta * gap(logp, reference) - target) ** 2)


REF_ALONE, PREVIOUS_ALONE = against(REFERENCE), against(PREVIOUS)
DPO, REGRESSION, ONES = Sigmoid(beta=BETA), Squared(beta=BETA), jnp.ones(PAIRS)
P = jnp.array([0.9, 0.2, 0.6, 0.5])
REWARDS = 0.7 * SCORES_OF_PAIRS
ETA = 0.4
ON_REFERENCE = method(DPO, REF_ALONE)
REDUCTIONS = {
    "DNO(s -> 1) = DPO against pi_t": (method(DPO, PREVIOUS_ALONE, label=jax.nn.sigmoid(99 * ONES)), dpo(PREVIOUS)),
    "CREAM(C=1) = DPO": (method(DPO, REF_ALONE, label=smooth_label(ONES, 1 - ONES)), dpo(REFERENCE)),
    "CREAM(C=0) = DPO reversed": (method(DPO, REF_ALONE, label=smooth_label(ONES, ONES)), dpo(REFERENCE, -1.0)),
    "cDPO(0) = DPO": (method(Sigmoid(beta=BETA, label_smoothing=0.0), REF_ALONE), dpo(REFERENCE)),
    "cDPO(e) = DPO of smoothed labels": (
        method(Sigmoid(beta=BETA, label_smoothing=0.2), REF_ALONE),
        method(DPO, REF_ALONE, label=0.8 * ONES),
    ),
    "robust(0) = DPO": (method(Robust(beta=BETA, flip_rate=0.0), REF_ALONE), dpo(REFERENCE)),
    "SmPO(1) = DPO": (method(WeightedSigmoid(beta=BETA), REF_ALONE), dpo(REFERENCE)),
    "MM-DPO(w=0) = DPO": (
        method(DPO, REF_ALONE, scale=margin_scale(REWARDS[0] - REWARDS[1], amount=0.0, rate=0.5)),
        dpo(REFERENCE),
    ),
    "RPO(0) = DPO": (plus(0.0, likelihood, ON_REFERENCE), dpo(REFERENCE)),
    "VPO(0) = DPO": (plus(0.0, value_of(DPO, REF_ALONE), ON_REFERENCE), dpo(REFERENCE)),
    "VPO(offline, cal=chosen) = RPO": (
        plus(-0.2, value_of(DPO, REF_ALONE), ON_REFERENCE),
        plus(0.2 * BETA, likelihood, dpo(REFERENCE)),
    ),
    "SimPO(margin=0) on sums = DPO without reference": (method(DPO, against(0 * REFERENCE)), dpo(0 * REFERENCE)),
    "DPO of soft labels = the online pair regression": (
        method(DPO, REF_ALONE, label=P),
        lambda logp: pair_regression_loss(*(logp - REFERENCE), P, beta=BETA).value,
    ),
    "MNPO(J=1) = IPO": (method(IPO(tau=ETA), against(REFERENCE, weights=(1.0,))), ipo(REFERENCE, ETA)),
    "MNPO(ratio=1) = IPO": (
        method(IPO(tau=ETA), against(REFERENCE, PREVIOUS, PREVIOUS, weights=(1.0, 0.0, 0.0))),
        ipo(REFERENCE, ETA),
    ),
    "INPO(tau=eta) = IPO against ref": (
        method(IPO(tau=ETA), against(REFERENCE, PREVIOUS, weights=(1.0, 0.0))),
        ipo(REFERENCE, ETA),
    ),
    "INPO(tau=0) = IPO against pi_t": (
        method(IPO(tau=ETA), against(REFERENCE, PREVIOUS, weights=(0.0, 1.0))),
        ipo(PREVIOUS, ETA),
    ),
    "IPO of soft labels = the online pair regression over tau^2": (
        method(IPO(tau=ETA), REF_ALONE, label=P),
        lambda logp: pair_regression_loss(*(logp - REFERENCE), P, beta=ETA, link="squared").value / ETA**2,
    ),
    "iREPO(BT p) = REBEL": (
        method(REGRESSION, PREVIOUS_ALONE, target_1=REGRESSION.gap_of(jax.nn.sigmoid(REWARDS[0] - REWARDS[1]))),
        method(REGRESSION, PREVIOUS_ALONE, target_1=REWARDS[0], target_2=REWARDS[1]),
    ),
    "REBEL = squares": (
        method(REGRESSION, PREVIOUS_ALONE, target_1=REWARDS[0], target_2=REWARDS[1]),
        squared(PREVIOUS, REWARDS[0] - REWARDS[1]),
    ),
    "iREPO of hard labels = squares at the bounded logit": (
        method(Squared(beta=BETA, least=0.1), REF_ALONE, target_1=Squared(least=0.1).gap_of(ONES)),
        squared(REFERENCE, np.log(9.0)),
    ),
    "IPO = squares at one half over tau^2": (
        method(IPO(tau=ETA), REF_ALONE),
        lambda logp: squared(REFERENCE, 0.5, ETA)(logp) / ETA**2,
    ),
    "SPPO = the online single regression": (
        method(SPPO(beta=BETA), PREVIOUS_ALONE, target_1=P, target_2=1 - P),
        lambda logp: single_regression_loss(
            (logp - PREVIOUS).reshape(-1), jnp.concatenate([P - 0.5, 0.5 - P]), beta=BETA
        ).value,
    ),
    "KTO(z0=0) = half of APO-zero": (
        method(KTO(beta=BETA), REF_ALONE),
        lambda logp: 0.5 * method(APO(beta=BETA), REF_ALONE)(logp),
    ),
    "RWR of equal scores = supervised training": (
        method(RWR(), REF_ALONE, target_1=0.3 * ONES, target_2=0.3 * ONES),
        lambda logp: -jnp.mean(logp),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("left", "right"), REDUCTIONS.values(), ids=REDUCTIONS.keys())
def test_gradients_of_methods_that_are_one(left, right):
    found, expected = jax.jit(lambda logp: (jax.grad(left)(logp), jax.grad(right)(logp)))(LOGP)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_rpo_on_sums_adds_the_gradient_of_the_better_log_prob():
    eta = 0.5
    rpo = plus(BETA * eta, likelihood, ON_REFERENCE)
    plain, found = jax.jit(lambda logp: (jax.grad(ON_REFERENCE)(logp), jax.grad(rpo)(logp)))(LOGP)
    np.testing.assert_allclose(found - plain, [[-BETA * eta / PAIRS] * PAIRS, [0.0] * PAIRS], atol=1e-6)


def test_the_gradient_of_dpo():
    """`-beta sigmoid(-z) (grad logp_1 - grad logp_2)`."""
    grad = jax.jit(jax.grad(ON_REFERENCE))(LOGP)
    expected = -BETA * jax.nn.sigmoid(-BETA * gap(LOGP, REFERENCE)) / PAIRS
    np.testing.assert_allclose(grad, [expected, -expected], rtol=1e-5)


@pytest.mark.parametrize("piece", [Sigmoid(beta=2.0, margin=1.0), Hinge(beta=1.0)], ids=["simpo", "hinge"])
def test_mean_log_probs_without_a_reference_forget_a_constant_of_every_token(piece):
    lengths = np.array([[1, 3, 2, 4], [2, 1, 4, 4]])
    tokens = jnp.where(np.arange(4) < lengths[..., None], -jnp.abs(normal(2, PAIRS, 4)), 0.0)

    def value(tokens, shift, mean):
        logp = jnp.where(np.arange(4) < lengths[..., None], tokens + shift, 0.0).sum(-1)
        return piece(direct_terms(*(logp / lengths if mean else logp))).value

    grad = jax.jit(jax.value_and_grad(value), static_argnums=2)
    same(grad(tokens, 0.7, True), grad(tokens, 0.0, True), rtol=1e-4)
    assert abs(grad(tokens, 0.7, False)[0] - grad(tokens, 0.0, False)[0]) > 0.01


# Optima


SCORES = np.array([0.5, -0.8, 1.8, 0.2, -1.5, 1.2, 0.7])
BT = sigmoid(SCORES[:, None] - SCORES)
KIND = np.array([0, 1, 2, 0, 2, 1, 0])
CIRCLE = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])[KIND][:, KIND]
# Half an order and half rock, paper, scissors.
PREFERENCE = sigmoid(0.5 * (SCORES[:, None] - SCORES) + np.log(4.0) * CIRCLE)
MU = np.array([0.2, 0.1, 0.1, 0.2, 0.1, 0.1, 0.2])
OTHER = gibbs(np.array([0.3, 0.9, -0.5, 0.0, 0.4, -0.6, 0.2]), 1.0)
UNIFORM = np.full(RESPONSES, 1 / RESPONSES)
LOG_REF, LOG_OTHER = np.log(REF), np.log(OTHER)


def mix(*weights):
    """Log-probs of a mixture of the reference, the other policy and the uniform one, as the losses see it."""
    refs = jnp.asarray(np.stack([LOG_REF, LOG_OTHER, np.log(UNIFORM)]), jnp.float32)
    return np.asarray(mixed_reference(refs, jnp.asarray(weights, jnp.float32)), np.float64)


def both(target):
    """Targets of either response, from one number a response."""
    return np.broadcast_to(target[:, None], (7, 7)), np.broadcast_to(target, (7, 7))


def normalised(target, beta, ref):
    """The targets less what makes the sum of `ref exp(target / beta)` 1, which regressions of singles leave out."""
    return target - beta * np.log(np.sum(ref * np.exp(target / beta)))


def least_odds(scores):
    """`sigmoid(scores + c)` with the c that makes it sum to 1."""
    low, high = -20.0, 20.0
    for _ in range(60):
        c = 0.5 * (low + high)
        low, high = (low, c) if sigmoid(scores + c).sum() > 1 else (c, high)
    return sigmoid(scores + c)


WON, WON_BY_REF, WON_BY_OTHER = PREFERENCE @ MU, PREFERENCE @ REF, PREFERENCE @ OTHER
SMALL = 0.6 * SCORES
LINEAR = 0.2 * SCORES
BCO_SHIFT = -np.log(np.sum(REF * WON / (1 - WON)))
# Loss, what it is fitted to (whatever is left out is 1/2, 0 and the reference), and where it ends.
OPTIMA = {
    "DPO, soft labels": (Sigmoid(beta=0.5), dict(label=BT), gibbs(SCORES, 0.5)),
    "DPO without a reference": (Sigmoid(beta=1.0), dict(label=BT, ref=np.zeros(7)), gibbs(SCORES, 1.0, UNIFORM)),
    "DNO, one step": (
        Sigmoid(beta=0.2),
        dict(label=sigmoid(WON_BY_OTHER[:, None] - WON_BY_OTHER), ref=LOG_OTHER, mu=OTHER),
        gibbs(WON_BY_OTHER, 0.2, OTHER),
    ),
    "cDPO": (
        Sigmoid(beta=0.5, label_smoothing=0.1),
        dict(label=(sigmoid(SMALL[:, None] - SMALL) - 0.1) / 0.8),
        gibbs(SMALL, 0.5),
    ),
    "robust, flipped labels": (
        Robust(beta=1.0, flip_rate=0.2),
        dict(label=0.6 * BT + 0.2),
        gibbs(SCORES, 1.0),
    ),
    "IPO": (IPO(tau=0.25), dict(label=PREFERENCE), gibbs(WON, 0.25)),
    "INPO, one step": (
        IPO(tau=0.4),
        dict(label=PREFERENCE, ref=mix(0.25, 0.75, 0.0), mu=OTHER),
        gibbs(WON_BY_OTHER, 0.4, REF**0.25 * OTHER**0.75),
    ),
    "MNPO": (
        IPO(tau=0.4),
        dict(label=PREFERENCE, ref=mix(1 / 3, 0.4, 4 / 15)),
        gibbs(WON, 0.4, REF ** (1 / 3) * OTHER**0.4),
    ),
    "iREPO": (
        Squared(beta=0.5, least=0.001),
        dict(targets=(bounded_logit(jnp.float32(BT), 0.001), np.zeros((7, 7)))),
        gibbs(SCORES, 0.5),
    ),
    "REBEL": (Squared(beta=0.5), dict(targets=both(SCORES)), gibbs(SCORES, 0.5)),
    "SPPO, one step": (
        SPPO(beta=0.3),
        dict(targets=both(0.5 + normalised(WON_BY_OTHER, 0.3, OTHER)), ref=LOG_OTHER, mu=OTHER),
        gibbs(WON_BY_OTHER, 0.3, OTHER),
    ),
    "GPO of a Bradley-Terry score, one step": (
        SPPO(beta=1.0, even=0.0),
        dict(targets=both(normalised(SCORES - SCORES @ REF, 1.0, REF))),
        gibbs(SCORES, 1.0),
    ),
    "EXO, where preferences are linear": (
        EXO(beta=1.0, label_smoothing=0.05),
        dict(label=0.5 * (1 + LINEAR[:, None] - LINEAR)),
        gibbs(np.log(19.0) * LINEAR, 1.0),
    ),
    "NCA on pairs of the reference": (NCA(beta=1.0), dict(label=PREFERENCE, mu=REF), 2 * REF * WON_BY_REF),
    "BCO": (BCO(beta=1.0), dict(label=PREFERENCE, statistic=BCO_SHIFT), gibbs(np.log(WON / (1 - WON)), 1.0)),
    "odds": (ORPO(coefficient=1.0), dict(label=BT), least_odds(SCORES)),
    "RWR": (RWR(beta=1.0), dict(targets=both(SCORES)), gibbs(SCORES, 1.0, MU)),
}  # fmt: skip


def fit(piece, label=None, targets=None, ref=LOG_REF, mu=MU, statistic=0.0, rate=None):
    fields = (ref, mu, np.full((7, 7), 0.5) if label is None else label, *(targets or both(np.zeros(7))))
    beta = getattr(piece, "beta", 1.0)
    rate = (4.0 if piece.kind in ("sigmoid", "robust", "exo", "nca", "bco", "orpo", "rwr") else 0.5) / beta**2
    return tabular.fit_pairs(piece, *(jnp.asarray(x, jnp.float32) for x in fields), rate, jnp.float32(statistic))


@pytest.mark.parametrize(("piece", "given", "optimum"), OPTIMA.values(), ids=OPTIMA.keys())
def test_gradient_descent_ends_at_the_closed_form(piece, given, optimum):
    np.testing.assert_allclose(optimum.sum(), 1.0, rtol=1e-6)
    assert total_variation(fit(piece, **given), optimum) < 1e-3
    for start in (REF, UNIFORM):
        assert total_variation(optimum, start) > 0.02


def test_sppo_takes_the_normaliser_for_one():
    """With win rates less one half and nothing else, the round ends near its closed form, not at it."""
    piece = SPPO(beta=1.0)
    found = fit(piece, targets=both(WON_BY_REF), mu=REF)
    apart = total_variation(found, gibbs(WON_BY_REF, 1.0))
    assert apart < 0.01 < total_variation(found, REF)


HARD = np.sign(SCORES[:, None] - SCORES) * 0.5 + 0.5
ENDLESS = {
    "sigmoid, hard labels": (Sigmoid(), HARD),
    "robust, hard labels": (Robust(), HARD),
    "robust, soft labels beyond the rate": (Robust(flip_rate=0.4), 0.5 + 0.4 * (HARD - 0.5) * 2),
    "weighted_sigmoid, soft labels": (WeightedSigmoid(), BT),
    "linear, soft labels": (Linear(clip=1e6), BT),
    "kto": (KTO(), HARD),
    "apo": (APO(), HARD),
}


@pytest.mark.parametrize(("piece", "label"), ENDLESS.values(), ids=ENDLESS.keys())
def test_losses_without_a_finite_minimum_fall_along_the_reward(piece, label):
    i, j = tabular.draws(2).T
    r, t = jnp.float32(SCORES), jnp.float32(label)[i, j]
    value = jax.jit(lambda size: piece(direct_terms(size * r[i], size * r[j], label=t)).value)
    assert np.all(np.diff([value(jnp.float32(size)) for size in (0, 1, 2, 4, 8, 16, 32)]) < 0)


def test_soft_labels_stop_the_others():
    i, j = tabular.draws(2).T
    r, t = jnp.float32(SCORES), jnp.float32(BT)[i, j]
    for piece in (Sigmoid(beta=0.5), IPO(), EXO(beta=0.5, label_smoothing=0.05)):
        value = jax.jit(lambda size, piece=piece: piece(direct_terms(size * r[i], size * r[j], label=t)).value)
        values = [value(jnp.float32(size)) for size in (0.0, 2.0, 64.0)]
        assert values[1] < values[0] and values[1] < values[2], piece.kind


def test_a_bound_stops_the_linear_loss():
    ratio = jnp.array([[5.0, 1.0, 5.0], [-5.0, 0.5, 0.0]])
    grads = jax.jit(jax.grad(lambda ratio: Linear(clip=2.0)(direct_terms(*ratio)).sum))(ratio)
    np.testing.assert_array_equal(grads, [[0.0, -1.0, 0.0], [0.0, 1.0, 1.0]])


def test_hinge_is_content_beyond_its_margin():
    loss, ratio = Hinge(beta=0.5), jnp.array([[3.0, 1.0], [0.0, 0.0]])
    value, grads = jax.jit(jax.value_and_grad(lambda ratio: loss(direct_terms(*ratio)).sum))(ratio)
    assert float(value) == 0.5
    np.testing.assert_array_equal(grads, [[0.0, -0.5], [0.0, 0.5]])


# Self-play without a winner


ROUNDS, STEPS = 800, 60
CYCLE = jnp.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])
START = jnp.log(jnp.array([0.7, 0.2, 0.1]))


@functools.partial(jax.jit, static_argnums=(0, 1))
def self_play(piece, share, rate):
    """`[ROUNDS, 3]` policies, each fitted to how the one before it fares against itself.

    Args:
      piece: its loss.
      share: weight of the uniform reference; the rest is the policy before.
      rate: step size of gradient descent.
    """
    i, j = jnp.meshgrid(jnp.arange(3), jnp.arange(3), indexing="ij")
    i, j = i.reshape(-1), j.reshape(-1)

    def round_(before, _):
        pi = jnp.exp(before)
        won = CYCLE @ pi
        if piece.reads == "targets":  # any sampler does, and the sum that makes the regression exact
            weight, won = (
                jnp.full(9, 1 / 9),
                won - piece.beta * jax.nn.logsumexp(before + won / piece.beta) + piece.even,
            )
        else:
            weight = pi[i] * pi[j]
        reference = mixed_reference(jnp.stack([jnp.full(3, -jnp.log(3.0)), before]), jnp.array([share, 1 - share]))

        def value(logits):
            ratio = jax.nn.log_softmax(logits) - reference
            data = dict(label=CYCLE[i, j], target_1=won[i], target_2=won[j], weight=weight)
            return piece(direct_terms(ratio[i], ratio[j], **data)).value

        descend = lambda logits, _: (logits - rate * jax.grad(value)(logits), None)  # noqa: E731
        after = jax.nn.log_softmax(jax.lax.scan(descend, before, None, STEPS)[0])
        return after, jnp.exp(after)

    return jax.lax.scan(round_, START, None, ROUNDS)[1]


def test_inpo_ends_at_the_even_policy_and_sppo_circles_it():
    """Rock, paper, scissors: with a reference the last policy is the equilibrium, without one only the average is."""
    eta, tau = 2.0, 0.1
    inpo = self_play(IPO(tau=eta), tau / eta, 0.5)
    assert np.abs(inpo[-1] - 1 / 3).max() < 1e-3
    sppo = self_play(SPPO(beta=eta), 0.0, 0.5 / eta**2)
    start = np.exp(np.float64(START))
    np.testing.assert_allclose(sppo[0], gibbs(np.float64(CYCLE) @ start, eta, start), rtol=1e-4)
    assert np.abs(sppo[-1] - 1 / 3).max() > 0.3
    assert np.abs(sppo.mean(0) - 1 / 3).max() < 0.03


# What every loss promises


def swapped(terms):
    order = dict(ratio_1=terms.ratio_2, ratio_2=terms.ratio_1, logp_1=terms.logp_2, logp_2=terms.logp_1)
    return terms._replace(**order, target_1=terms.target_2, target_2=terms.target_1, label=1 - terms.label)


@every_loss
def test_exchanging_the_responses_changes_nothing(name):
    (one, grad), (other, back) = (evaluated(name)(x) for x in (some_terms(), swapped(some_terms())))
    same((one.sum, one.denominator), (other.sum, other.denominator))
    same((one.aux["accuracy"], one.aux["margin"]), (other.aux["accuracy"], other.aux["margin"]))
    same((grad.ratio_1, grad.ratio_2, grad.logp_1), (back.ratio_2, back.ratio_1, back.logp_2))


@every_loss
def test_the_order_of_the_batch_does_not_matter_and_rows_add(name):
    order, terms = jnp.array([2, 0, 3, 1]), some_terms()
    rows = DirectTerms(*(x if x.ndim == 0 else x[order] for x in terms))
    out = evaluated(name)(terms)[0]
    same(out, evaluated(name)(rows)[0])
    alone = [evaluated(name)(terms._replace(weight=WEIGHT * (jnp.arange(PAIRS) == k)))[0] for k in range(PAIRS)]
    same(out, functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), alone))


@every_loss
def test_rows_of_weight_zero_may_hold_anything_and_data_has_no_gradient(name):
    terms = some_terms()
    empty = DirectTerms(*(x if x.ndim == 0 else jnp.where(terms.weight > 0, x, jnp.nan) for x in terms))._replace(
        weight=terms.weight
    )
    found = evaluated(name)(empty)
    same(found, evaluated(name)(terms))
    grads = found[1]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    assert not any(np.any(getattr(grads, data)) for data in DirectTerms._fields[4:])
    trained = grads.logp_1 if LOSSES[name].reference_free else grads.ratio_1
    assert np.any(trained) and float(trained[1]) == 0.0


@every_loss
def test_no_rows_give_zero(name):
    out, grads = evaluated(name)(some_terms(weight=jnp.zeros(PAIRS)))
    assert not any(np.any(x) for x in jax.tree.leaves((out, grads)))


@every_loss
def test_extreme_log_ratios_have_finite_values_and_gradients(name):
    for first, second in ((1e4, -1e4), (-1e4, 1e4), (1e4, 1e4), (-1e4, -1e4), (0.0, 0.0)):
        one, other = every_pair(first), every_pair(second)
        found = evaluated(name)(some_terms(ratio_1=one, ratio_2=other, logp_1=one, logp_2=other))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found)), (first, second)


@every_loss
def test_a_batch_of_ties(name):
    """Nobody is better: no accuracy, and responses of one log-ratio are pushed alike."""
    half, zero = every_pair(0.5), every_pair(0.0)
    ties = some_terms(label=half, target_1=half, target_2=half, ratio_1=zero, ratio_2=zero)
    out, grads = evaluated(name)(ties._replace(logp_1=-half, logp_2=-half))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out, grads)))
    assert [float(x) for x in (*out.aux["accuracy"], *out.aux["margin"])] == [0.0] * 4
    same((grads.ratio_1, grads.logp_1), (grads.ratio_2, grads.logp_2))


@every_loss
def test_float32_comes_out_of_bfloat16(name):
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), some_terms())
    out = LOSSES[name](rounded)
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype("float32")}
    same(out.sum, LOSSES[name](jax.tree.map(lambda x: x.astype(jnp.float32), rounded)).sum)


def test_references_have_no_gradient():
    def value(refs, weights):
        mixed = [mixed_reference(refs[:, i], weights) for i in (0, 1)]
        return Sigmoid()(direct_terms(*(LOGP - jnp.stack(mixed)))).value

    grads = jax.grad(value, (0, 1))(jnp.stack([REFERENCE, PREVIOUS]), jnp.array([0.5, 0.5]))
    assert not any(np.any(x) for x in grads)
    padded = jnp.stack([REFERENCE, PREVIOUS]).at[:, :, 1].set(jnp.nan)
    ratio = lambda logp, i: logp[i] - mixed_reference(padded[:, i], jnp.array([0.5, 0.5]))  # noqa: E731
    grad = jax.grad(lambda logp: Sigmoid()(direct_terms(ratio(logp, 0), ratio(logp, 1), weight=WEIGHT)).value)(LOGP)
    assert np.isfinite(grad).all() and np.any(grad)


def test_wrong_shapes_and_dtypes_say_what_was_expected():
    guarded = inspect.unwrap(losses.direct.guarded)
    for field in DirectTerms._fields[1:-1]:
        with pytest.raises(ValueError, match=f"{field}: expected shape"):
            guarded(some_terms(**{field: jnp.ones((PAIRS, 1))}))
        with pytest.raises(TypeError, match=f"{field}: expected a floating-point array"):
            guarded(some_terms(**{field: jnp.ones(PAIRS, jnp.int32)}))
    with pytest.raises(ValueError, match="statistic: expected 0 axes"):
        guarded(some_terms(statistic=jnp.ones(PAIRS)))


def test_rounding_does_not_tell_responses_apart():
    """A policy that is its reference is right about half of all pairs, and not about those that rounding chooses."""
    logp, noise = jnp.full(4, -300.0), jnp.array([1e-4, -1e-4, 0.0, 2e-2])
    terms = direct_terms(noise, jnp.zeros(4), logp_1=logp, logp_2=logp)
    correct, decided = Sigmoid()(terms).aux["accuracy"]
    assert (correct, decided) == (0.5 * 3 + 1, 4)
