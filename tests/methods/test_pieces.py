"""Each piece alone against plain NumPy, and the identities between methods as equal gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_decoder, random_tokens, token_rows, with_pieces

from prl_jax.methods import (
    METHODS,
    PAR,
    Constant,
    Critic,
    GroupMean,
    InsideKL,
    Judgements,
    LeaveOneOut,
    LossKL,
    PairClip,
    PairRegression,
    RewardKL,
    Score,
    Standardised,
    TokenClip,
    Values,
    WinProbability,
)
from prl_jax.methods.baselines import Rewards
from prl_jax.methods.surrogates import Frozen
from prl_jax.training.policy import Schedule, policy_objective
from prl_jax.training.rollout import Experience, response_logprobs
from prl_jax.training.step import gradients

ROWS, ROOM, GROUP = 8, 3, 4
MASK = np.arange(ROOM) < np.array([3, 1, 2, 3, 2, 2, 3, 1])[:, None]
LAST = MASK.sum(1) - 1


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# Rewards


def judged(**changes) -> Judgements:
    mask = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]], bool)
    fields = dict(mask=mask, z_ya=normal(0, 4, 3), z_ay=normal(1, 4, 3))
    return Judgements(*(None if x is None else jnp.asarray(x) for x in (*fields.values(), *changes.values())))


@pytest.mark.parametrize("name", ["id", "centred", "logit", "log", "hard"])
def test_win_probabilities_are_means_over_the_opponents_that_were_met(name):
    maps = {
        "id": lambda p: p,
        "centred": lambda p: p - 0.5,
        "logit": lambda p: np.log(p / (1 - p)),
        "log": np.log,
        "hard": lambda p: (np.sign(p - 0.5) + 1) / 2,
    }
    given, reward = judged(), WinProbability(map=name)
    p = (sigmoid(np.asarray(given.z_ya)) + sigmoid(-np.asarray(given.z_ay))) / 2
    expected = [maps[name](row[m]).mean() if m.any() else 0.0 for row, m in zip(p, np.asarray(given.mask), strict=True)]
    np.testing.assert_allclose(reward(given), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(reward.even, maps[name](np.float64(0.5)))
    assert reward.probability == (name in ("id", "centred", "hard"))


def test_two_orders_are_merged_as_the_judge_merges_them():
    given = judged()._replace(merge="logit")
    p = sigmoid((np.asarray(given.z_ya) - np.asarray(given.z_ay)) / 2)
    np.testing.assert_allclose(WinProbability()(given)[1], p[1, 0], rtol=1e-5)


def test_scores_are_rewards_as_they_are_and_par_compares_them():
    scores, others = normal(2, 4), normal(3, 4, 3)
    given = judged()._replace(scores=jnp.asarray(scores), opponent_scores=jnp.asarray(others))
    np.testing.assert_array_equal(Score()(given), scores)
    wins = sigmoid(2.0 * (scores[:, None] - others))
    expected = [row[m].mean() if m.any() else 0.0 for row, m in zip(wins, np.asarray(given.mask), strict=True)]
    np.testing.assert_allclose(PAR(k=2.0)(given), expected, rtol=1e-5)


def test_par_with_one_anchor_is_the_win_probability_of_a_bradley_terry_judge():
    scores, others = normal(4, 4), normal(5, 4, 1)
    gap, one = jnp.asarray(scores[:, None] - others), jnp.ones((4, 1), bool)
    par = PAR()(Judgements(one, scores=jnp.asarray(scores), opponent_scores=jnp.asarray(others)))
    np.testing.assert_allclose(par, WinProbability()(Judgements(one, gap, -gap)), rtol=1e-6)
    assert PAR().even == WinProbability().even == 0.5 and PAR().probability and not Score().probability


@pytest.mark.parametrize("size", [2, 3, 5])
def test_win_rates_of_a_group_add_up_to_half_its_size(size):
    """So that their mean is a constant baseline."""
    z = normal(6, size, size)
    met = ~np.eye(size, dtype=bool)
    wins = WinProbability()(Judgements(jnp.asarray(met), jnp.asarray(z), jnp.asarray(z.T)))
    np.testing.assert_allclose(wins.sum(), size / 2, rtol=1e-6)
    rewards = Rewards(wins[:, None], *(jnp.ones((size, 1), bool),) * 2, jnp.zeros(size, bool), size)
    np.testing.assert_allclose(GroupMean()(rewards, None)[0], Constant(0.5)(rewards, None)[0], atol=1e-6)


# Baselines


def rewards(tokens=None, trained=None) -> Rewards:
    tokens = normal(7, ROWS, ROOM) if tokens is None else tokens
    trained = MASK if trained is None else trained
    return Rewards(*map(jnp.asarray, (tokens * MASK, MASK, trained)), jnp.zeros(ROWS, bool), GROUP)


PLAIN = {
    GroupMean(): lambda r: r - r.mean(),
    LeaveOneOut(): lambda r: (r - r.mean()) * len(r) / (len(r) - 1),
    Standardised(): lambda r: (r - r.mean()) / (r.std(ddof=1) + 1e-4),
    Standardised(ddof=0, eps=0.1): lambda r: (r - r.mean()) / (r.std() + 0.1),
    Constant(0.3): lambda r: r - 0.3,
}


@pytest.mark.parametrize("left_out", [(), (1, 6)], ids=["all", "without truncated ones"])
@pytest.mark.parametrize("baseline", PLAIN, ids=lambda piece: piece.kind)
def test_baselines_of_responses_equal_plain_numpy(baseline, left_out):
    """Responses that do not train the policy are left out of the statistics of their group, and get nothing."""
    trained = MASK & ~np.isin(np.arange(ROWS), left_out)[:, None]
    given = rewards(trained=trained)
    found, returns = baseline(given, None)
    whole = np.asarray(given.tokens).sum(1)
    for start in range(0, ROWS, GROUP):
        kept = [i for i in range(start, start + GROUP) if i not in left_out]
        for i, advantage in zip(kept, PLAIN[baseline](whole[kept]), strict=True):
            np.testing.assert_allclose(found[i][MASK[i]], advantage, rtol=1e-4, atol=1e-5)
    assert returns is None and not np.asarray(found)[~trained].any()
    assert not baseline.reads_values and not baseline.bootstraps


@pytest.mark.parametrize("baseline", [GroupMean(), LeaveOneOut(), Standardised()], ids=lambda piece: piece.kind)
def test_equal_rewards_teach_nothing(baseline):
    tokens = np.zeros((ROWS, ROOM), np.float32)
    tokens[range(ROWS), LAST] = 0.7
    np.testing.assert_allclose(baseline(rewards(tokens), None)[0], 0.0, atol=1e-6)
    alone = MASK & (np.arange(ROWS) % GROUP == 0)[:, None]
    np.testing.assert_array_equal(baseline(rewards(trained=alone), None)[0], np.zeros(MASK.shape))


def test_a_critic_gives_each_token_its_own_advantage():
    critic = Critic(gamma=1.0, lam_actor=1.0, whiten=False)
    given, values = rewards(), normal(8, ROWS, ROOM) * MASK
    found, returns = critic(given, Values(jnp.asarray(values), jnp.zeros(ROWS)))
    ahead = np.cumsum(np.asarray(given.tokens)[:, ::-1], 1)[:, ::-1]
    np.testing.assert_allclose(found, np.where(MASK, ahead - values, 0.0), atol=1e-5)
    np.testing.assert_allclose(returns, np.where(MASK, ahead, 0.0), atol=1e-5)
    assert critic.reads_values and not critic.bootstraps and Critic(bootstrap_truncated=True).bootstraps


# Surrogates


def frozen(mask=MASK, advantages=None) -> Frozen:
    each = normal(9, ROWS, 1) if advantages is None else advantages
    logp_old, logp_ref = -np.abs(normal(10, ROWS, ROOM)), -np.abs(normal(11, ROWS, ROOM))
    return Frozen(*map(jnp.asarray, (logp_old, logp_ref, each * mask, mask)))


SURROGATES = [
    *(TokenClip(reduce=reduce) for reduce in ("token_mean", "seq_mean_token_sum", "seq_mean_token_mean")),
    PairClip(),
    PairRegression(),
    PairRegression(link="squared"),
]
PAIRS = SURROGATES[3:]
BETA = jnp.float32(0.3)
LOGP = jnp.asarray(-np.abs(normal(12, ROWS, ROOM)))
TRAINED = MASK & (np.arange(ROWS) != 2)[:, None]
by_name = lambda piece: "-".join(map(str, (piece.kind, *dataclasses.astuple(piece))))  # noqa: E731


@pytest.mark.parametrize("surrogate", SURROGATES, ids=by_name)
def test_denominators_are_known_from_the_mask(surrogate):
    for mask in (MASK, TRAINED):
        loss = surrogate(LOGP, frozen(mask), BETA)
        assert float(loss.denominator) == float(surrogate.denominator(jnp.asarray(mask))) > 0


@pytest.mark.parametrize("surrogate", PAIRS, ids=by_name)
def test_a_pair_trains_where_both_of_its_responses_do(surrogate):
    """Row 2 does not train the policy: nor does its neighbour, whatever it holds."""
    grad = jax.grad(lambda logp: surrogate(logp, frozen(TRAINED), BETA).sum)(LOGP)
    assert not np.asarray(grad)[2:4].any() and np.asarray(grad)[[0, 1, 4, 5, 6, 7]].any(1).all()
    assert not np.asarray(grad)[~MASK].any()
    assert float(surrogate.denominator(jnp.asarray(TRAINED))) == 3.0


@pytest.mark.parametrize("surrogate", PAIRS, ids=by_name)
def test_exchanging_the_responses_of_a_pair_changes_nothing(surrogate):
    order = np.arange(ROWS) ^ 1
    given = frozen(TRAINED)
    swapped = Frozen(*(x[order] for x in given))
    one, other = surrogate(LOGP, given, BETA), surrogate(LOGP[order], swapped, BETA)
    np.testing.assert_allclose(one.sum, other.sum, rtol=1e-5)


@pytest.mark.parametrize("surrogate", PAIRS, ids=by_name)
def test_pairs_are_those_of_whole_responses(surrogate):
    """One token with the sum of all log-probs is the same pair."""
    given = frozen()
    whole = lambda x: jnp.where(MASK, x, 0.0).sum(1, keepdims=True)  # noqa: E731
    alone = Frozen(whole(given.logp_old), whole(given.logp_ref), given.advantages[:, :1], jnp.ones((ROWS, 1), bool))
    one, other = surrogate(LOGP, given, BETA), surrogate(whole(LOGP), alone, BETA)
    np.testing.assert_allclose(one.sum, other.sum, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("surrogate", SURROGATES[:1] + PAIRS, ids=by_name)
def test_row_22_a_number_a_row_is_no_number_a_token(surrogate):
    given = frozen()
    for name in Frozen._fields:
        if surrogate.unit == 1 and name == "logp_ref":  # it does not read this
            continue
        column = given._replace(**{name: getattr(given, name)[:, :1]})
        with pytest.raises(ValueError, match="expected .*given"):
            surrogate(LOGP, column, BETA)


# Regularisers


@pytest.mark.parametrize("entropy", [0.0, 0.1])
@pytest.mark.parametrize("cls", [RewardKL, LossKL, InsideKL])
def test_terms_have_a_weight_each_and_the_sizes_that_the_surrogate_has(cls, entropy):
    piece = cls(coefficient=0.3, entropy=entropy)
    given = frozen(TRAINED)
    arguments = (LOGP, given.logp_ref, jnp.asarray(np.abs(normal(13, ROWS, ROOM))), given.mask)
    expected = ({"kl_loss": 0.3} if cls is LossKL else {}) | ({"entropy_loss": entropy} if entropy else {})
    for surrogate in SURROGATES:
        terms, weights = piece.terms(*arguments, surrogate.reduce), piece.weights(BETA)
        assert terms.keys() == weights.keys()
        assert {name: float(weight) for name, weight in weights.items()} == pytest.approx(expected)
    paid = piece.reward(LOGP, given.logp_ref, BETA)
    expected = -0.3 * (LOGP - given.logp_ref) if cls is RewardKL else np.zeros(MASK.shape)
    np.testing.assert_allclose(paid, expected, atol=1e-6)


# Identities between methods, as gradients of the policy


@pytest.fixture(scope="module")
def policy():
    return make_decoder(0, layers=1)


def on_policy(policy, advantages) -> Experience:
    """Rollouts of the policy itself, whose advantages are given, one a response."""
    rows, response = token_rows(random_tokens(14, ROWS, 2 + ROOM), 2 + ROOM), random_tokens(14, ROWS, 2 + ROOM)[:, 2:]
    mask, response = jnp.asarray(MASK), jnp.asarray(response)
    logp, _ = jax.jit(response_logprobs, static_argnums=4)(policy, rows, response, mask, 1.0)
    logp_ref = jnp.where(mask, logp + 0.3 * normal(15, ROWS, ROOM), 0.0)
    spread = jnp.where(mask, jnp.asarray(advantages, jnp.float32)[:, None], 0.0)
    return Experience(rows, response, mask, Frozen(logp, logp_ref, spread, mask), None)


def gradient_of(name, policy, batch, coefficient, **slots) -> np.ndarray:
    """All numbers of the policy's gradient, in a row."""
    method = with_pieces(METHODS[name].method, **slots)
    objective = policy_objective(method, Schedule(), jnp.float32(coefficient))
    grads, _ = jax.jit(lambda policy, batch: gradients(objective, policy, batch))(policy, batch)
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(grads)])


def test_p3o_is_the_regression_of_log_ratios_on_rewards(policy):
    """At a ratio of 1 its gradient is that of `(beta z - (r1 - r2))^2 / (4 beta)`, with `r` the win probabilities."""
    wins, beta = np.array([0.9, 0.1, 0.2, 0.8, 0.5, 0.5, 0.6, 0.4]), 0.2
    batch = on_policy(policy, wins)
    got = gradient_of("p3o", policy, batch, beta)

    @jax.jit
    @jax.grad
    def regression(policy):
        logp, _ = response_logprobs(policy, batch.rows, batch.response, batch.mask, 1.0)
        ratios = jnp.where(batch.mask, logp - batch.frozen.logp_ref, 0.0).sum(1)
        gap = beta * (ratios[::2] - ratios[1::2]) - (wins[::2] - wins[1::2])
        return jnp.mean(gap**2) / (4 * beta)

    expected = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(regression(policy))])
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_pairs_without_a_divergence_are_leave_one_out_of_two(policy):
    """At a ratio of 1, whichever response a pair has first, P3O goes where RLOO goes with two responses to a prompt."""
    wins = np.array([0.9, 0.1, 0.2, 0.8, 0.5, 0.5, 0.6, 0.4])
    given = Rewards(
        jnp.asarray(wins[:, None], jnp.float32), *(jnp.ones((ROWS, 1), bool),) * 2, jnp.zeros(ROWS, bool), 2
    )
    pairs = gradient_of("p3o", policy, on_policy(policy, wins), 0.0)
    single = on_policy(policy, LeaveOneOut()(given, None)[0][:, 0])
    alone = gradient_of("rloo", policy, single, 0.0, surrogate=TokenClip(reduce="seq_mean_token_sum"))
    np.testing.assert_allclose(pairs, alone, rtol=1e-3, atol=1e-4 * np.abs(alone).max())
    assert np.abs(alone).max() > 1e-3
