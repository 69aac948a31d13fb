"""Rows 25, 28, 36, 38 and 39 of the correctness list: what the pieces of a method do to an update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from correctness import world
from correctness.world import PLAIN, TEMPERATURE, VALID
from fakes import make_decoder, with_pieces

from prl_jax.errors import UserError
from prl_jax.methods import PIECES, Critic, LossKL, TokenClip, piece_of
from prl_jax.training.policy import Updates, critic_objective, make_updates, policy_objective, run_updates
from prl_jax.training.state import PolicyState, initial_state, steer_kl, with_returns

ALL = jnp.arange(4)
ROOMS = VALID.sum(1)


def steered(kl: float, rows: int, target: float = 6.0, horizon: float = 100.0) -> float:
    """The coefficient after a step, which was 1."""
    method = with_pieces(PLAIN.method, regulariser=dict(steer=(target, horizon)))
    return float(steer_kl(PolicyState(None, None, jnp.float32(1.0)), jnp.float32(kl), rows, method).kl_coef)


@pytest.mark.parametrize("kl", [0.0, 5.9, 6.1, 1e4])
def test_row_25_the_factor_is_positive_whatever_the_batch(kl):
    """And never beyond `exp(1/5)`, however many rows a step has."""
    factors = [steered(kl, rows) for rows in (1, 50, 100, 600, 10**6)]
    assert all(np.exp(-0.2) * 0.999 < factor < np.exp(0.2) * 1.001 for factor in factors)
    assert all((factor > 1) == (kl > 6) for factor in factors) and factors[2] == factors[-1]
    np.testing.assert_allclose(steered(kl, 50) ** 2, steered(kl, 100), rtol=1e-5)  # however the rows come


def test_row_25_a_coefficient_of_0_with_a_target_is_refused():
    for kind in PIECES["regulariser"].values():
        with pytest.raises(UserError, match="coefficient=0"):
            kind(coefficient=0.0, steer=(6.0, 100.0))


def test_row_28_terms_beside_the_policy_loss_are_reduced_as_it_is(models, rollout, freeze):
    """A divergence over whole responses costs as much as the responses are long."""
    policy = make_decoder(3, layers=1)
    laws = world.response_laws(policy, rollout, TEMPERATURE)
    kl = (freeze()[0].frozen.logp_ref - world.chosen(laws, rollout)) ** 2 / 2
    entropy = -(np.exp(laws) * laws).sum(-1)
    means = {
        "token_mean": lambda x: x[VALID].mean(),
        "seq_mean_token_sum": lambda x: np.where(VALID, x, 0).sum(1).mean(),
        "seq_mean_token_mean": lambda x: (np.where(VALID, x, 0).sum(1) / ROOMS).mean(),
    }
    settings = {
        reduce: PLAIN.but(surrogate=TokenClip(reduce=reduce), regulariser=LossKL(entropy=0.1, estimator="k2"))
        for reduce in means
    }
    objectives = {name: policy_objective(*setting, jnp.float32(0.1)) for name, setting in settings.items()}
    batch = jax.tree.map(jnp.asarray, freeze()[0])
    found = jax.jit(lambda policy, batch: {name: o.terms(policy, batch) for name, o in objectives.items()})
    for name, terms in found(policy, batch).items():
        np.testing.assert_allclose(terms["kl_loss"].value, means[name](kl), rtol=1e-3, err_msg=name)
        np.testing.assert_allclose(terms["entropy_loss"].value, -means[name](entropy), rtol=1e-3, err_msg=name)
        denominators = {float(x) for x in objectives[name].denominators(batch).values()}
        assert (
            denominators
            == {float(term.denominator) for term in terms.values()}
            == {len(kl) if "seq" in name else ROOMS.sum()}
        )


@pytest.mark.parametrize(
    ("slot", "kind", "field", "wrong", "right"),
    [
        ("baseline", "critic", "gamma", (-0.1, 1.1, float("nan")), (0.0, 1.0)),
        ("baseline", "critic", "lam_actor", (-0.1, 1.1), (0.0, 1.0)),
        ("baseline", "critic", "lam_critic", (-0.1, 1.1), (0.0, 1.0)),
        ("baseline", "critic", "clip", (-0.1,), (0.0, 3.0)),
        ("baseline", "critic", "weight", (-1.0, 0.0), (0.1,)),
        ("baseline", "standardised", "ddof", (-1, 2), (0, 1)),
        ("baseline", "standardised", "eps", (-1e-4,), (0.0,)),
        ("surrogate", "token_clip", "low", (-0.1, 0.0, 1.1), (0.2, 1.0)),
        ("surrogate", "token_clip", "high", (-0.1, 0.0), (0.2, 5.0)),
        ("surrogate", "token_clip", "dual", (-1.0, 0.5, 1.0), (0.0, 3.0)),
        ("surrogate", "pair_clip", "clip", (-0.1, 0.0), (0.2,)),
        ("surrogate", "pair_clip", "importance", (0.5,), (1.0,)),
        ("regulariser", "reward_kl", "coefficient", (-0.1,), (0.0,)),
        ("regulariser", "loss_kl", "entropy", (-0.1,), (0.0,)),
        ("regulariser", "inside_kl", "coefficient", (-0.1, 0.0), (0.1,)),
        ("regulariser", "reward_kl", "steer", ((0.0, 10.0), (6.0, -1.0), (6.0,)), ((), (6.0, 10.0))),
        ("reward", "par", "k", (-1.0, 0.0), (1.0,)),
        ("opponents", "pool", "draws", (0, -1), (1,)),
    ],
)
def test_row_36_a_number_out_of_range_is_refused_by_its_key(slot, kind, field, wrong, right):
    for value in right:
        assert getattr(piece_of(slot, {"kind": kind, field: value}), field) == value
    for value in wrong:
        with pytest.raises(UserError, match=rf"^{slot}\.{field}="):
            piece_of(slot, {"kind": kind, field: value})


@pytest.fixture(scope="module")
def value_loss(models, freeze):
    """The value loss on the rollout, whose old values lie 5 beside those of the critic, by share and deviation."""
    experience = jax.tree.map(jnp.asarray, freeze()[0])
    critique = experience.critique
    beside = experience._replace(critique=critique._replace(values_old=critique.values_old - 5.0))
    values, returns = np.asarray(critique.values_old), np.asarray(critique.returns)

    def losses(clip: float, deviation: float | None):
        baseline = Critic(clip=clip)
        deviation = None if deviation is None else jnp.float32(deviation)
        terms = jax.jit(critic_objective(baseline, deviation).terms)(models.critic, beside)
        return float(terms["value_loss"].value), float(terms["value_loss"].aux["value_clip"][0])

    def expected(width: float):
        clipped = values - 5.0 + np.clip(5.0, -width, width)
        both = np.maximum((values - returns) ** 2, (clipped - returns) ** 2)[VALID]
        return 0.5 * both.mean()

    return losses, expected


def test_row_38_a_value_moves_by_a_share_of_the_deviation_of_the_returns(value_loss):
    losses, expected = value_loss
    for deviation in (0.5, 4.0):
        loss, clipped = losses(0.2, deviation)
        np.testing.assert_allclose(loss, expected(0.2 * deviation), rtol=1e-4)
        assert clipped > 0


def test_row_38_values_are_not_clipped_unless_asked_for(value_loss, models, fresh):
    losses, expected = value_loss
    state = fresh()
    assert Critic().clip == 0 and state.deviation is None
    loss, clipped = losses(Critic().clip, state.deviation)
    np.testing.assert_allclose(loss, expected(np.inf), rtol=1e-4)
    assert clipped == 0 and with_returns(state, jnp.float32(2.0)).deviation is None


def test_row_38_the_deviation_runs_with_the_returns(fresh, freeze):
    """The first batch gives it; each later one moves it by a tenth."""
    returns = freeze()[0].critique.returns[VALID]
    measured = freeze()[1]["return_deviation"]
    np.testing.assert_allclose(measured, returns.std(), rtol=1e-4)
    state = fresh()
    clipping = with_pieces(PLAIN.method, baseline=dict(clip=0.2))
    state = initial_state(state.policy, state.critic, clipping)
    state = with_returns(state, jnp.asarray(measured))
    np.testing.assert_allclose(state.deviation, measured, rtol=1e-6)
    state = with_returns(state, jnp.asarray(measured) + 10.0)
    np.testing.assert_allclose(state.deviation, measured + 1.0, rtol=1e-5)


def test_row_39_the_critic_warms_up_without_the_policy(fresh, freeze, updates, optimizer):
    """What is compiled gets no parameter of the policy, and the update of both is not called."""
    state, experience = fresh(), jax.tree.map(jnp.asarray, freeze()[0])
    traced = updates.warm_up.trace((state.critic, None), state.deviation, experience, ALL)
    arguments = [jnp.shape(x) for x in jax.tree.leaves((state.critic, experience, ALL))]
    assert sorted(aval.shape for aval in traced.jaxpr.in_avals) == sorted(arguments)
    assert make_updates(PLAIN.method, PLAIN.schedule, optimizer, optimizer).warm_up is not None
    calls = []

    def warm_up(critic, deviation, batch, index):
        calls.append(critic)
        return critic, {"value_loss": jnp.float32(1.0)}

    def train(*_):
        raise AssertionError("the policy's gradient was computed")

    after, metrics = run_updates(
        Updates(train, warm_up), state, experience, jax.random.key(0), *PLAIN, train_policy=False
    )
    assert len(calls) == 4 and metrics.keys() == {"value_loss"} and after.policy is state.policy
    assert after.kl_coef is state.kl_coef
