"""Each piece alone against plain NumPy, and the identities between methods as equal gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_decoder, random_tokens, token_rows, with_pieces

from prl_jax.losses.ppo import REDUCTIONS
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
    baselines,
    regularisers,
    scores,
    surrogates,
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


@pytest.mark.parametrize("name", ["id", "centred", "logit", "log", "hard", "signed"])
def test_win_probabilities_are_means_over_the_opponents_that_were_met(name):
    """Whoever meets nobody has the reward of an even match."""
    maps = {
        "id": lambda p: p,
        "centred": lambda p: p - 0.5,
        "logit": lambda p: np.log(p / (1 - p)),
        "log": np.log,
        "hard": lambda p: (np.sign(p - 0.5) + 1) / 2,
        "signed": lambda p: np.sign(p - 0.5),
    }
    given, reward = judged(), WinProbability(map=name)
    p = (sigmoid(np.asarray(given.z_ya)) + sigmoid(-np.asarray(given.z_ay))) / 2
    even = maps[name](np.float64(0.5))
    expected = [
        maps[name](row[m]).mean() if m.any() else even for row, m in zip(p, np.asarray(given.mask), strict=True)
    ]
    np.testing.assert_allclose(reward(given), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(reward.even, maps[name](np.float64(0.5)))
    assert reward.probability == (name in ("id", "centred", "hard"))


def test_several_opponents_may_count_by_the_hardest_or_by_a_sign():
    given = judged()
    p = (sigmoid(np.asarray(given.z_ya)) + sigmoid(-np.asarray(given.z_ay))) / 2
    met = [row[m] for row, m in zip(p, np.asarray(given.mask), strict=True)]
    np.testing.assert_allclose(
        WinProbability(over="min")(given), [row.min() if len(row) else 0.5 for row in met], rtol=1e-5
    )
    signs = [np.sign(row.mean() - 0.5) if len(row) else 0.0 for row in met]
    np.testing.assert_array_equal(WinProbability(over="sign")(given), signs)
    assert WinProbability(over="sign").even == 0.0 and not WinProbability(over="sign").probability


def test_verdicts_are_hard_in_each_order_and_a_tie_is_worth_what_it_says():
    one = jnp.ones((5, 1), bool)
    z_ya, z_ay = jnp.array([[2.0], [2.0], [-1.0], [0.0], [0.0]]), jnp.array([[-1.0], [3.0], [1.0], [0.0], [-1.0]])
    given = Judgements(one, z_ya, z_ay)
    np.testing.assert_array_equal(WinProbability(map="verdicts")(given), [1.0, 0.5, 0.0, 0.5, 0.75])
    np.testing.assert_array_equal(WinProbability(map="verdicts", tie=0.0)(given), [1.0, 0.5, 0.0, 0.0, 0.5])
    np.testing.assert_array_equal(WinProbability(map="signed", tie=0.0)(given)[3], -1.0)


def test_differences_are_what_a_response_wins_of_each_opponent():
    given = judged()
    found = WinProbability(map="logit").differences(given)
    p = (sigmoid(np.asarray(given.z_ya)) + sigmoid(-np.asarray(given.z_ay))) / 2
    np.testing.assert_allclose(found, np.where(given.mask, np.log(p / (1 - p)), 0.0), rtol=1e-4, atol=1e-6)
    assert WinProbability().antisymmetric and not WinProbability(map="log").antisymmetric
    assert not WinProbability(map="hard", tie=0.0).antisymmetric


def test_two_orders_are_merged_as_the_judge_merges_them():
    given = judged()._replace(merge="logit")
    p = sigmoid((np.asarray(given.z_ya) - np.asarray(given.z_ay)) / 2)
    np.testing.assert_allclose(WinProbability()(given)[1], p[1, 0], rtol=1e-5)


def test_scores_are_rewards_as_they_are_and_par_compares_them():
    mine, others = normal(2, 4), normal(3, 4, 3)
    given = judged()._replace(scores=jnp.asarray(mine), opponent_scores=jnp.asarray(others))
    np.testing.assert_array_equal(Score()(given), mine)
    wins = sigmoid(2.0 * (mine[:, None] - others))
    expected = [row[m].mean() if m.any() else 0.5 for row, m in zip(wins, np.asarray(given.mask), strict=True)]
    np.testing.assert_allclose(PAR(k=2.0)(given), expected, rtol=1e-5)  # who meets nobody has an even match


def test_par_with_one_anchor_is_the_win_probability_of_a_bradley_terry_judge():
    mine, others = normal(4, 4), normal(5, 4, 1)
    gap, one = jnp.asarray(mine[:, None] - others), jnp.ones((4, 1), bool)
    par = PAR()(Judgements(one, scores=jnp.asarray(mine), opponent_scores=jnp.asarray(others)))
    np.testing.assert_allclose(par, WinProbability()(Judgements(one, gap, -gap)), rtol=1e-6)
    assert PAR().even == WinProbability().even == 0.5 and PAR().probability and not Score().probability


def test_several_judges_are_shaped_one_by_one_and_added():
    mask = jnp.ones((4, 3), bool)
    one, other = (
        Judgements(mask, scores=jnp.asarray(normal(n, 4)), opponent_scores=jnp.asarray(normal(n + 1, 4, 3)))
        for n in (20, 22)
    )
    reward = scores.Several(judges=("a", "b"), shapes=("par", "tanh"), weights=(2.0, 0.5))
    expected = 2.0 * PAR()(one) + 0.5 * scores.Tanh()(other)
    np.testing.assert_allclose(reward(one, other), expected, rtol=1e-6)
    assert reward.compares and reward.even == 1.0 and not reward.probability
    both = scores.Several(judges=("a", "b"), shapes=("lsc",))
    np.testing.assert_allclose(
        np.exp(both(one, other)), np.exp(scores.LSC()(one)) * np.exp(scores.LSC()(other)), rtol=1e-5
    )
    alone = scores.Several(judges=("a",), shapes=("par",), aggregate="log_tame")
    np.testing.assert_allclose(alone(one), PAR()(one), rtol=1e-6)


@pytest.mark.parametrize(
    "shape", [scores.Centred(), PAR(), scores.LSC(), scores.LSC(fit="sample")], ids=lambda piece: str(piece)
)
def test_shapes_that_compare_do_not_mind_what_is_added_to_all_responses_to_a_prompt(shape):
    mine, others, mask = normal(24, 4), normal(25, 4, 3), jnp.ones((4, 3), bool)
    shift = np.array([3.0, -7.0, 0.5, 11.0], np.float32)
    first = shape(Judgements(mask, scores=jnp.asarray(mine), opponent_scores=jnp.asarray(others)))
    moved = jnp.asarray(mine + shift), jnp.asarray(others + shift[:, None])
    second = shape(Judgements(mask, scores=moved[0], opponent_scores=moved[1]))
    np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("shape", [Score(), scores.Tanh(), scores.Clip(1.0)], ids=lambda piece: piece.kind)
def test_shapes_without_references_do_mind(shape):
    mine = jnp.asarray(normal(24, 4))
    empty = jnp.zeros((4, 0), bool)
    assert np.abs(shape(Judgements(empty, scores=mine)) - shape(Judgements(empty, scores=mine + 1.0))).max() > 0.1


def test_running_scores_are_normalised_by_those_of_the_steps_before():
    steps, moments, empty = (
        [normal(n, 6) * 3 + 5 for n in (40, 41, 42)],
        scores.Moments(*jnp.zeros(3)),
        jnp.zeros((6, 0)),
    )
    for n, step in enumerate(steps):
        given = Judgements(empty > 0, scores=jnp.asarray(step), moments=moments)
        before = np.concatenate(steps[:n] or steps[:1])
        expected = (step - before.mean()) / before.std()
        np.testing.assert_allclose(scores.RunningNorm()(given), expected, rtol=1e-4, atol=1e-5)
        moments = scores.with_more(moments, given.scores)
    np.testing.assert_allclose(moments, [18, np.mean(steps), np.std(steps)], rtol=1e-5)
    same = Judgements(empty > 0, scores=jnp.full(6, 7.0))
    np.testing.assert_array_equal(scores.RunningNorm(eps=0.0)(same), 0.0)


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
    Standardised(limit=0.7): lambda r: np.clip((r - r.mean()) / (r.std(ddof=1) + 1e-4), -0.7, 0.7),
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


def test_a_deviation_of_the_whole_batch_leaves_the_sizes_of_groups_apart():
    given = rewards()
    whole = np.asarray(given.tokens).sum(1)
    expected = (whole.reshape(-1, GROUP) - whole.reshape(-1, GROUP).mean(1, keepdims=True)) / (whole.std(ddof=1) + 1e-4)
    found, _ = Standardised(scale="batch")(given, None)
    np.testing.assert_allclose(found[:, 0], expected.reshape(-1), rtol=1e-4)


def test_differences_of_scores_are_standardised_scores():
    """Think-RM with `d_ij = r_i - r_j` is GRPO, as its paper says."""
    given = rewards()
    whole = np.asarray(given.tokens).sum(1).reshape(-1, GROUP)
    d = (whole[:, :, None] - whole[:, None]).reshape(ROWS, GROUP)
    met = ~np.tile(np.eye(GROUP, dtype=bool), (ROWS // GROUP, 1))
    found, _ = baselines.Difference(eps=0.0)(given._replace(differences=(jnp.asarray(d), jnp.asarray(met))), None)
    np.testing.assert_allclose(found, Standardised(eps=0.0)(given, None)[0], rtol=1e-4, atol=1e-6)
    none = jnp.zeros_like(jnp.asarray(d)), jnp.asarray(met)
    np.testing.assert_array_equal(baselines.Difference(eps=0.0)(given._replace(differences=none), None)[0], 0.0)


def test_the_likeliest_response_is_a_baseline():
    likeliest = normal(30, ROWS // GROUP).repeat(GROUP)
    given = rewards()
    found, _ = baselines.Greedy()(given._replace(greedy=jnp.asarray(likeliest)), None)
    np.testing.assert_allclose(found[:, 0], np.asarray(given.tokens).sum(1) - likeliest, rtol=1e-5, atol=1e-6)


def test_a_batch_whitens_what_a_token_and_those_after_it_earn():
    given = rewards(trained=MASK & (np.arange(ROWS) != 2)[:, None])
    tokens, trained = np.asarray(given.tokens), np.asarray(given.trained)
    earned = tokens[:, ::-1].cumsum(1)[:, ::-1]
    expected = (earned - earned[trained].mean()) / earned[trained].std()
    found, _ = baselines.Batch()(given, None)
    np.testing.assert_allclose(np.asarray(found)[trained], expected[trained], rtol=1e-3, atol=1e-5)
    assert not np.asarray(found)[~trained].any()
    np.testing.assert_allclose(np.asarray(baselines.Batch(whiten=False)(given, None)[0])[MASK], earned[MASK], rtol=1e-5)


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


TOKENS = [*(TokenClip(reduce=reduce) for reduce in REDUCTIONS), surrogates.CISPO(), surrogates.Reinforce()]
WHOLE = [PairClip(), PairRegression(), PairRegression(link="squared")]  # which see a response as one number
PAIRS = [*WHOLE, surrogates.PairTokenClip()]
SURROGATES = [*TOKENS, *PAIRS, surrogates.SingleRegression()]
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
    assert not np.asarray(grad)[2:4].any()
    moved = np.asarray(grad)[[0, 1, 4, 5, 6, 7]].any(1)
    assert moved.any() if surrogate.kind == "pair_token_clip" else moved.all()  # its tokens may all be clipped
    assert not np.asarray(grad)[~MASK].any()
    assert float(surrogate.denominator(jnp.asarray(TRAINED))) == 3.0


@pytest.mark.parametrize("surrogate", PAIRS, ids=by_name)
def test_exchanging_the_responses_of_a_pair_changes_nothing(surrogate):
    order = np.arange(ROWS) ^ 1
    given = frozen(TRAINED)
    swapped = Frozen(*(x[order] for x in given))
    one, other = surrogate(LOGP, given, BETA), surrogate(LOGP[order], swapped, BETA)
    np.testing.assert_allclose(one.sum, other.sum, rtol=1e-5)


@pytest.mark.parametrize("surrogate", [*WHOLE, surrogates.SingleRegression()], ids=by_name)
def test_whole_responses_are_one_number(surrogate):
    """One token with the sum of all log-probs is the same response."""
    given = frozen()
    whole = lambda x: jnp.where(MASK, x, 0.0).sum(1, keepdims=True)  # noqa: E731
    alone = Frozen(whole(given.logp_old), whole(given.logp_ref), given.advantages[:, :1], jnp.ones((ROWS, 1), bool))
    one, other = surrogate(LOGP, given, BETA), surrogate(whole(LOGP), alone, BETA)
    np.testing.assert_allclose(one.sum, other.sum, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("surrogate", [TOKENS[0], *WHOLE, surrogates.SingleRegression()], ids=by_name)
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
@pytest.mark.parametrize("cls", [RewardKL, LossKL, InsideKL, regularisers.Mixture])
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


def test_a_mixture_holds_the_policy_to_both():
    given = frozen()
    for previous in (0.0, 0.25, 1.0):
        expected = previous * given.logp_old + (1 - previous) * given.logp_ref
        found = regularisers.Mixture(previous=previous).reference(given.logp_old, given.logp_ref)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(InsideKL().reference(given.logp_old, given.logp_ref), given.logp_ref)


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


def test_both_forms_of_p3o_start_the_same_way(policy):
    """At a ratio of 1 nothing is clipped, neither of the pair nor of a token."""
    batch = on_policy(policy, normal(31, ROWS))
    joint, separate = (gradient_of(name, policy, batch, 0.2) for name in ("p3o_v2", "p3o_v1"))
    np.testing.assert_allclose(separate, joint, rtol=1e-3, atol=1e-4 * np.abs(joint).max())


def test_ratios_of_tokens_and_of_sequences_are_reinforce_at_the_start(policy):
    """With one advantage a response: PPO, GSPO, CISPO and REINFORCE move the policy alike until it has moved."""
    batch, reduce = on_policy(policy, normal(32, ROWS)), "seq_mean_token_mean"
    plain = gradient_of("grpo", policy, batch, 0.0, surrogate=surrogates.Reinforce(reduce))
    pieces = (TokenClip(reduce=reduce), TokenClip(reduce=reduce, ratio="sequence"), surrogates.CISPO(reduce=reduce))
    for surrogate in pieces:
        found = gradient_of("grpo", policy, batch, 0.0, surrogate=surrogate)
        np.testing.assert_allclose(found, plain, rtol=1e-3, atol=1e-4 * np.abs(plain).max())


def test_think_rm_with_differences_of_scores_is_grpo(policy):
    earned = normal(33, ROWS)
    one = jnp.ones((ROWS, 1), bool)
    given = Rewards(jnp.asarray(earned[:, None]), one, one, jnp.zeros(ROWS, bool), GROUP)
    d = (earned.reshape(-1, GROUP, 1) - earned.reshape(-1, 1, GROUP)).reshape(ROWS, GROUP)
    met = ~np.tile(np.eye(GROUP, dtype=bool), (ROWS // GROUP, 1))
    pairwise, _ = baselines.Difference(eps=0.0)(given._replace(differences=(jnp.asarray(d), jnp.asarray(met))), None)
    scored, _ = Standardised(eps=0.0)(given, None)
    one, other = (
        gradient_of(name, policy, on_policy(policy, advantages[:, 0]), 0.01)
        for name, advantages in (("think_rm", pairwise), ("grpo", scored))
    )
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())
    assert np.abs(other).max() > 1e-3
