"""Where gradient descent on each policy objective ends, against the closed form; exact expectations, no sampling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import tabular
from losses.tabular import MASK, REF, REF_LOGITS, RESPONSES, Rows, draws, gibbs, ppo, samples, total_variation

from prl_jax.losses import pairwise_rl_reward, symmetrise, win_rate

REACHED, APART = 1e-3, 0.02
UNIFORM = np.full(RESPONSES, 1 / RESPONSES)
SCORES = np.array([0.5, -0.8, 1.8, 0.2, -1.5, 1.2, 0.7])
# Logits of "the row's response beats the column's": a total order; rock, paper, scissors at odds of 9 to 1.
ORDER = SCORES[:, None] - SCORES
KIND = np.array([0, 1, 2, 0, 2, 1, 0])
CYCLE = np.log(9.0) * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])[KIND][:, KIND]
JUDGES = {"order": ORDER, "cycle": CYCLE}
# Reward of a logit, and a coefficient that fits its size.
FORMS = {
    "id": (lambda z: 1 / (1 + np.exp(-z)), 0.25),
    "centred": (lambda z: 0.5 * np.tanh(0.5 * z), 0.25),
    "logit": (lambda z: z, 1.0),
    "log": (lambda z: -np.log1p(np.exp(-z)), 1.0),
}
SLOT_BIAS = 0.4
# PPO on the scores themselves
BETA, BEST = 1.0, gibbs(SCORES, 1.0)
every_pair = pytest.mark.parametrize(("judge", "form"), [(judge, form) for judge in JUDGES for form in FORMS])
# Where the mean over opponents is of something else than of their win probabilities.
mean_or_not = pytest.mark.parametrize(("judge", "form"), [(judge, form) for judge in JUDGES for form in ("id", "log")])
every_judge = pytest.mark.parametrize("judge", JUDGES)


def check(found, expected, *others):
    """Descent found what was expected, which is neither its start nor any of the others."""
    assert total_variation(found, expected) < REACHED
    for other in (UNIFORM, *others):
        assert total_variation(other, expected) > APART


def ppo_on_scores(beta, **options):
    return ppo(samples(SCORES), beta, **options)[0]


def in_both_orders(judge, y, opponents):
    """Verdict logits with the response first and second, by a judge that likes its first slot."""
    z = (JUDGES[judge] + SLOT_BIAS).astype(np.float32)
    return jnp.asarray(z[y, opponents]), jnp.asarray(z[opponents, y])


@functools.partial(jax.jit, static_argnames="form")
def mean_reward(z_ya, z_ay, form):
    return pairwise_rl_reward(z_ya, z_ay, jnp.ones(z_ya.shape, bool), space="logit", f=form)


def reward(judge, form, y, opponents):
    """`[R]` rewards of responses `[R]` against opponents `[R, M]`."""
    return mean_reward(*in_both_orders(judge, y[:, None], opponents), form)


def against(judge, form, opponents, beta):
    """PPO whose every response meets the same opponents."""
    y = np.arange(RESPONSES)
    return ppo(samples(reward(judge, form, y, np.tile(opponents, (RESPONSES, 1)))), beta)[0]


@functools.cache
def expected_rewards(judge, form):
    """`[7, 7]` reward of the row's response against the column's."""
    return FORMS[form][0](JUDGES[judge])


@functools.cache
def self_play(judge, form, beta):
    """The policy that is best against itself, `pi ∝ ref exp(E_{y' ~ pi} f(p(y > y')) / beta)`."""
    f = expected_rewards(judge, form)
    return tabular.mirror_ascent(lambda pi: f @ pi, beta)


# The closed forms themselves


def test_gibbs_is_the_best_policy_and_where_mirror_ascent_ends():
    beta = 0.5
    best = gibbs(SCORES, beta)
    np.testing.assert_allclose(tabular.mirror_ascent(lambda pi: SCORES, beta), best, atol=1e-12)

    def objective(pi):
        return pi @ SCORES - beta * pi @ np.log(pi / REF)

    others = np.random.default_rng(0).dirichlet(np.ones(RESPONSES), size=200)
    others = np.concatenate([others, 0.99 * best + 0.01 * others])
    assert all(objective(pi) < objective(best) for pi in others)


def test_the_forward_kl_has_an_optimum_of_its_own():
    beta = 0.5
    best = tabular.forward_kl_optimum(SCORES, beta)
    np.testing.assert_allclose(best.sum(), 1.0, rtol=1e-9)
    # Lagrange: the objective's gradient is the same for every response.
    np.testing.assert_allclose(np.diff(SCORES + beta * REF / best), 0.0, atol=1e-9)
    assert total_variation(best, gibbs(SCORES, beta)) > APART


@every_pair
def test_self_play_is_a_fixed_point(judge, form):
    beta = FORMS[form][1]
    pi = self_play(judge, form, beta)
    np.testing.assert_allclose(gibbs(expected_rewards(judge, form) @ pi, beta), pi, atol=1e-9)


# PPO


def test_ppo_reaches_the_optimum_of_its_coefficient():
    for beta, other in ((0.5, 1.0), (1.0, 0.5)):
        check(ppo_on_scores(beta), gibbs(SCORES, beta), gibbs(SCORES, other), REF)


@pytest.mark.parametrize(
    "variant",
    [
        {"reduce": "token_mean"},
        {"reduce": "seq_mean_token_mean"},
        {"options": (("ratio_level", "sequence"), ("dual", 3.0), ("clip_high", 0.28))},
    ],
    ids=str,
)
def test_variants_of_ppo_share_the_optimum(variant):
    """At the optimum every token's advantage is 0, so that neither weights nor clips of tokens can move it."""
    found, clipped = ppo(samples(SCORES), BETA, **variant)
    assert clipped > 0.1
    check(found, BEST)


def test_credit_of_the_first_token():
    """With a trained critic any lambda does; without one, lambda 0 tells the first token nothing of what follows."""
    blind = tabular.token_by_token(lambda r, ref: gibbs(r, BETA, ref), SCORES, credit=0.0)
    for options in ({"lam": 0.0}, {"lam": 1.0}, {"lam": 1.0, "critic_rate": 0.0}):
        check(ppo_on_scores(BETA, **options), BEST, blind)
    check(ppo_on_scores(BETA, lam=0.0, critic_rate=0.0), blind, BEST)


def test_without_a_critic_means_over_sequences_favour_a_length():
    check(ppo_on_scores(BETA, lam=1.0, critic_rate=0.0, reduce="token_mean"), BEST)
    biased = ppo_on_scores(BETA, lam=1.0, critic_rate=0.0, reduce="seq_mean_token_mean")
    assert total_variation(biased, BEST) > APART


# Where the KL goes


def test_only_k1_belongs_into_the_reward():
    """Held constant, as a reward is, another estimate of the same KL does not have its gradient."""
    check(ppo_on_scores(BETA, kind="k1"), BEST)
    assert total_variation(ppo_on_scores(BETA, kind="k3"), BEST) > APART


@pytest.mark.parametrize(
    ("kind", "of", "optimum"),
    [
        ("k2", "response", BEST),
        ("k2", "tokens", tabular.token_by_token(lambda r, ref: gibbs(r, BETA, ref), SCORES)),
        ("k3", "response", tabular.forward_kl_optimum(SCORES, BETA)),
        ("k3", "tokens", tabular.token_by_token(lambda r, ref: tabular.forward_kl_optimum(r, BETA, ref), SCORES)),
    ],
)
def test_kl_in_the_loss(kind, of, optimum):
    """Only k2 of whole responses has the optimum of the KL in the reward.

    k3 descends KL(ref || policy). A token's estimate charges nothing to the tokens before it, though they decide where
    the later KL is paid; with one token a response both are the same.
    """
    right = (kind, of) == ("k2", "response")
    check(ppo_on_scores(BETA, kl=of, kind=kind), optimum, *(() if right else (BEST,)))


def test_gradients_of_the_kl_in_the_loss():
    """Of whole responses, in expectation: k1 none, k2 that of KL(policy || ref), k3 that of KL(ref || policy)."""
    logits = jnp.array([[0.1, -0.4, 0.6], [-0.2, 0.3, 0.5], [0.7, 0.0, -0.6]])
    logp_ref = tabular.token_logps(REF_LOGITS)
    ref = jnp.exp(logp_ref.sum(-1))

    def estimates(x):
        weight = jax.lax.stop_gradient(tabular.probabilities(x))
        for kind in ("k1", "k2", "k3"):
            term = functools.partial(tabular.kl_loss, kind=kind, of="response", reduce="seq_mean_token_sum")
            yield tabular.expect(term, weight, tabular.token_logps(x), logp_ref, jnp.asarray(MASK)).value

    def exact(x):
        pi = tabular.probabilities(x)
        return jnp.array([jnp.sum(pi * jnp.log(pi / ref)), jnp.sum(ref * jnp.log(ref / pi))])

    k1, k2, k3 = jax.jit(jax.jacrev(lambda x: jnp.array(list(estimates(x)))))(logits)
    backward, forward = jax.jit(jax.jacrev(exact))(logits)
    np.testing.assert_allclose(k1, 0.0, atol=1e-6)
    np.testing.assert_allclose(k2, backward, atol=1e-6)
    np.testing.assert_allclose(k3, forward, atol=1e-6)
    assert np.abs(forward - backward).max() > 0.01


# Pairwise PPO, by opponents


@every_pair
def test_anchor(judge, form):
    """The optimum moves with the anchor, except where logits are differences of scores."""
    f, beta = expected_rewards(judge, form), FORMS[form][1]
    best = {anchor: gibbs(f[:, anchor], beta) for anchor in (0, 2)}
    for anchor, other in ((0, 2), (2, 0)):
        found = against(judge, form, [anchor], beta)
        if (judge, form) == ("order", "logit"):
            check(found, gibbs(SCORES, beta), gibbs(SCORES, 2 * beta))
        else:
            check(found, best[anchor], best[other], gibbs(f[:, anchor], 2 * beta))


@mean_or_not
def test_several_anchors(judge, form):
    """Their mean reward counts, whether each response meets all of them or one drawn from a pool."""
    f, beta, anchors = expected_rewards(judge, form), FORMS[form][1], np.array([1, 2, 5])
    best = gibbs(f[:, anchors].mean(1), beta)
    others = [gibbs(f[:, anchor], beta) for anchor in anchors]
    check(against(judge, form, anchors, beta), best, *others)
    y, opponent = np.repeat(np.arange(RESPONSES), 3), np.tile(anchors, RESPONSES)
    rows = Rows(y[:, None], reward(judge, form, y, opponent[:, None]), np.float32(1 / 3))
    check(ppo(rows, beta)[0], best, *others)


@every_pair
def test_peer(judge, form):
    """The opponent is drawn from the policy: the policy that is best against itself."""
    beta = FORMS[form][1]
    y, peer = draws(2).T
    best = self_play(judge, form, beta)
    check(ppo(Rows(draws(2), reward(judge, form, y, peer[:, None])), beta)[0], best, self_play(judge, form, 2 * beta))
    if (judge, form) == ("order", "logit"):
        np.testing.assert_allclose(best, gibbs(SCORES, beta), atol=1e-9)


@every_judge
def test_peers_are_not_a_fixed_opponent(judge):
    """Even the reference policy as opponent leads elsewhere."""
    pi = self_play(judge, "id", 0.25)
    assert total_variation(pi, gibbs(expected_rewards(judge, "id") @ REF, 0.25)) > 0.005


@mean_or_not
def test_group(judge, form):
    """The mean over the others of a group of three has the optimum of a single peer."""
    beta, groups = FORMS[form][1], draws(3)
    score = reward(judge, form, groups[:, 0], groups[:, 1:])
    if form == "id":
        judged = in_both_orders(judge, groups[:, :, None], groups[:, None, :])
        rates = jax.jit(lambda z12, z21: win_rate(symmetrise(z12, z21, "logit"), jnp.ones(z12.shape, bool)))(*judged)
        np.testing.assert_allclose(rates[:, 0], score, rtol=1e-5)
    check(ppo(Rows(groups, score), beta)[0], self_play(judge, form, beta), self_play(judge, form, 2 * beta))


# The pair's own surrogate


@every_judge
def test_joint_clip_is_self_play_at_half_the_coefficient(judge):
    """The gradient `-sum_ij pi_i pi_j q_ij grad l_i` with `q = 2 p - 1 - beta (l_i - l_j)` vanishes where
    `sum_j pi_j q_ij = 0` for every i: at `l_i = 2 p(y_i > pi) / beta` and a constant."""
    win, beta = expected_rewards(judge, "id"), 0.5
    best, other = self_play(judge, "id", beta / 2), self_play(judge, "id", beta)
    check(tabular.joint_clip(win, beta=beta), best, other)
    # Importance weights carry a fixed sampler to the same optimum, where neither bound holds them back.
    sampler = jnp.asarray(UNIFORM, jnp.float32)
    found = tabular.joint_clip(win, beta=beta, sampler=sampler, eps=1e6, c=1e6)
    check(found, best, other)


@every_judge
def test_joint_clip_without_importance_is_ipo(judge):
    """Regression of `z` on `(2 p - 1) / beta` over pairs from mu x mu: `ref exp(2 p(y > mu) / beta)`."""
    win, beta = expected_rewards(judge, "id"), 0.5
    mu = np.array([0.3, 0.05, 0.05, 0.2, 0.05, 0.05, 0.3])
    found = tabular.joint_clip(win, beta=beta, sampler=jnp.asarray(mu, jnp.float32), eps=1e6, c=1.0)
    check(found, gibbs(2 * win @ mu, beta), gibbs(win @ mu, beta))
    assert total_variation(found, self_play(judge, "id", beta / 2)) > 0.01


def test_where_win_probabilities_are_linear_every_objective_agrees():
    """With `2 p - 1 = r_1 - r_2`: PPO on r, the joint clip, and peers at half the coefficient."""
    r, beta = 0.2 * SCORES, 0.5
    win = 0.5 * (1 + r[:, None] - r)
    best = gibbs(r, beta)
    check(ppo(samples(r), beta)[0], best)
    check(tabular.joint_clip(win, beta=beta), best)
    y, peer = draws(2).T
    check(ppo(Rows(draws(2), jnp.asarray(win[y, peer], jnp.float32)), beta / 2)[0], best)
