"""The update of a method: what moves, what is frozen, and that it learns."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_decoder, make_scalar_model, on_mesh, one_device, random_tokens, with_pieces

from prl_jax.methods import METHODS, LossKL
from prl_jax.models import LOGICAL_AXES
from prl_jax.optim import make_optimizer
from prl_jax.sampling import SamplingConfig, generate, row_keys
from prl_jax.training.policy import (
    Schedule,
    Updates,
    critic_objective,
    make_updates,
    policy_objective,
    prepare,
    run_updates,
    together,
)
from prl_jax.training.rollout import CriticContext
from prl_jax.training.state import create_state, initial_state

ROWS, PROMPT, ROOM, WANTED, EOS = 32, 3, 4, 7, 21
METHOD = with_pieces(METHODS["ppo"].method, regulariser=dict(coefficient=0.01, entropy=0.003))
SCHEDULE = Schedule(epochs=2, minibatches=2, temperature=0.8, missing_eos_penalty=0.1)
BOTH = (METHOD, SCHEDULE)
SAMPLING = SamplingConfig(ROOM, (EOS,), EOS, temperature=SCHEDULE.temperature)


@pytest.fixture(scope="module")
def bench():
    """A policy whose every token is fairly likely, and functions that are compiled once."""
    mesh, optimizer = one_device(), make_optimizer(learning_rate=0.03, total_steps=100)
    policy, critic = make_decoder(0, layers=1), make_scalar_model(1, layers=1)
    policy.embedding[...] = policy.embedding[...] * 0.5
    prompt = jnp.asarray(random_tokens(2, ROWS, PROMPT))
    prompt_mask = jnp.arange(PROMPT)[None] >= jnp.arange(ROWS)[:, None] % PROMPT
    updates = make_updates(METHOD, SCHEDULE, optimizer, optimizer)

    def fresh():
        return initial_state(
            *(create_state(on_mesh(model, mesh), optimizer, mesh, LOGICAL_AXES) for model in (policy, critic)), METHOD
        )

    def sample(state, n: int):
        keys = row_keys(jax.random.fold_in(jax.random.key(0), n), 0, ROWS)
        return generate(state.policy.model, prompt, prompt_mask, keys, config=SAMPLING)

    def freeze(state, rollout):
        wanted = (rollout.response == WANTED) & rollout.mask
        score = wanted.sum(1) / rollout.mask.sum(1)
        context = CriticContext(prompt, prompt_mask)
        score = score.astype(jnp.float32)
        return prepare(state, reference, rollout, context, score, method=METHOD, schedule=SCHEDULE)

    reference = on_mesh(policy, mesh)
    return SimpleNamespace(fresh=fresh, sample=sample, freeze=freeze, updates=updates, optimizer=optimizer)


@pytest.fixture(scope="module")
def experience(bench):
    state = bench.fresh()
    return bench.freeze(state, bench.sample(state, 0))


def equal(one, other) -> bool:
    return all(bool((a == b).all()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_run_updates_goes_over_all_rows_and_logs_the_first_clip_fraction(bench, experience):
    frozen, calls = experience[0], []

    def train(state, batch, index):
        assert batch is frozen and index.shape == (ROWS // 2,)
        calls.append(np.asarray(index))
        return state, {"clip_fraction": jnp.float32(len(calls)), "loss": jnp.float32(len(calls) ** 2)}

    updates = Updates(train, None)
    _, metrics = run_updates(updates, bench.fresh(), frozen, jax.random.key(1), *BOTH, train_policy=True)
    assert len(calls) == SCHEDULE.epochs * SCHEDULE.minibatches == 4
    for epoch in (calls[:2], calls[2:]):
        assert sorted(np.concatenate(epoch)) == list(range(ROWS))
    assert (calls[0] != calls[2]).any()
    assert {name: float(value) for name, value in metrics.items()} == {
        "clip_fraction": 2.5, "loss": 7.5, "clip_fraction_first": 1.0
    }  # fmt: skip


PAIRED = METHODS["p3o"].method
PAIRED_SCHEDULE = Schedule(group_size=2, epochs=3, minibatches=4)


def test_run_updates_keeps_pairs_together(bench, experience):
    """Each minibatch has whole pairs, and other ones in each epoch."""
    calls = []

    def train(state, batch, index):
        calls.append(np.asarray(index).reshape(-1, 2))
        return state, {"loss": jnp.float32(0)}

    key = jax.random.key(2)
    run_updates(Updates(train, None), bench.fresh(), experience[0], key, PAIRED, PAIRED_SCHEDULE, train_policy=True)
    assert len(calls) == 12 and all(index.shape == (ROWS // 8, 2) for index in calls)
    for index in calls:
        assert (index[:, 0] % 2 == 0).all() and (index[:, 1] == index[:, 0] + 1).all()
    for start in range(0, 12, 4):
        assert sorted(np.concatenate(calls[start : start + 4]).ravel()) == list(range(ROWS))
    assert (calls[0] != calls[4]).any()


def test_without_values_there_is_no_critic(bench):
    """None in the state, in what is frozen, or in what the update is compiled for; nor an optimizer, nor a warm-up."""
    both = bench.fresh()
    state = initial_state(both.policy, None, PAIRED)
    updates = make_updates(PAIRED, PAIRED_SCHEDULE, bench.optimizer)
    rollout = jax.eval_shape(lambda: bench.sample(both, 0))
    reward = jax.ShapeDtypeStruct((ROWS,), jnp.float32)
    freeze = lambda rollout, reward: prepare(  # noqa: E731
        state, both.policy.model, rollout, None, reward, method=PAIRED, schedule=PAIRED_SCHEDULE
    )
    frozen, metrics = jax.eval_shape(freeze, rollout, reward)
    assert state.critic is state.deviation is frozen.critique is updates.warm_up is None
    assert not {"value_mean", "explained_variance", "return_deviation"} & metrics.keys()
    traced = updates.train.trace(state, frozen, jax.ShapeDtypeStruct((ROWS // 4,), jnp.int32))
    policy = jax.tree.leaves((both.policy, state.kl_coef))
    assert len(traced.jaxpr.in_avals) == len(policy) + len(jax.tree.leaves(frozen)) + 1
    assert len(jax.tree.leaves(traced.out_info[0])) == len(policy)


def test_the_critic_warms_up_while_the_policy_stays_bitwise(bench, experience):
    before, state = bench.fresh(), bench.fresh()
    run = lambda state, **options: run_updates(bench.updates, state, experience[0], jax.random.key(0), *BOTH, **options)  # noqa: E731
    state, metrics = run(state, train_policy=False)
    assert equal(state.policy, before.policy)
    assert not equal(state.critic.model, before.critic.model) and int(state.critic.step) == 4
    assert not {"clip_fraction", "policy_loss", "grad_norm"} & metrics.keys()
    again, warmer = run(state, train_policy=False)
    assert float(warmer["value_loss"]) < float(metrics["value_loss"])
    trained, _ = run(again, train_policy=True)
    assert not equal(trained.policy.model, before.policy.model) and int(trained.policy.step) == 4


def test_the_new_state_keeps_its_shardings(bench, experience):
    """What the compiler chose instead would make the next update compile once more."""
    state = bench.fresh()
    expected = [x.sharding for x in jax.tree.leaves(state)]
    state, _ = bench.updates.train(state, experience[0], jnp.arange(ROWS // 2))
    assert [x.sharding for x in jax.tree.leaves(state)] == expected


BASE = with_pieces(METHOD, surrogate=dict(low=0.1), baseline=dict(weight=0.7))
METHODS_TRIED = {
    "reward": BASE,
    "loss": with_pieces(
        BASE,
        regulariser=LossKL(coefficient=0.5, entropy=0.003, estimator="k2"),
        surrogate=dict(reduce="seq_mean_token_sum", dual=3.0),
    ),
}
OBJECTIVES = {
    name: together(
        {
            "policy": policy_objective(method, SCHEDULE, jnp.float32(method.regulariser.coefficient)),
            "critic": critic_objective(method.baseline, None),
        }
    )
    for name, method in METHODS_TRIED.items()
}


@pytest.fixture(scope="module")
def partly_masked(experience):
    """An experience some of whose rows do not train the policy."""
    batch = experience[0]
    mask = batch.frozen.mask & (jnp.arange(ROWS) % 5 > 0)[:, None]
    return batch._replace(frozen=batch.frozen._replace(mask=mask))


@pytest.fixture(scope="module")
def terms(partly_masked):
    """The terms of two methods, for models that are no longer those of the rollout."""
    models = {"policy": make_decoder(3, layers=1), "critic": make_scalar_model(4, layers=1)}
    run = jax.jit(
        lambda models, batch: {name: objective.terms(models, batch) for name, objective in OBJECTIVES.items()}
    )
    return run(models, partly_masked)


@pytest.mark.parametrize("name", METHODS_TRIED)
def test_row_13_denominators_are_those_of_the_terms(terms, partly_masked, name):
    denominators = OBJECTIVES[name].denominators(partly_masked)
    assert terms[name].keys() == denominators.keys() == OBJECTIVES[name].weights.keys()
    for key, term in terms[name].items():
        assert float(term.denominator) == float(denominators[key]) > 0
    tokens, trained = (float(mask.sum()) for mask in (partly_masked.mask, partly_masked.frozen.mask))
    assert denominators["value_loss"] == tokens and trained < tokens
    policy = {"reward": trained, "loss": float(partly_masked.frozen.mask.any(1).sum())}
    assert {float(denominators[key]) for key in denominators.keys() - {"value_loss"}} == {policy[name]}


def test_terms_have_the_weights_of_the_pieces():
    """KL in the reward leaves no KL term in the loss; in the loss it has the coefficient."""
    for name, kl in (("reward", {}), ("loss", {"kl_loss": 0.5})):
        weights = {key: float(weight) for key, weight in OBJECTIVES[name].weights.items()}
        assert weights == pytest.approx({"policy_loss": 1.0, "value_loss": 0.7, "entropy_loss": 0.003, **kl})


def test_a_certain_token_is_learnt(bench):
    """A bandit: the share of one token is the reward."""
    state, rewards = bench.fresh(), []
    for n in range(20):
        frozen, metrics = bench.freeze(state, bench.sample(state, n))
        rewards.append(float(metrics["score"]))
        assert float(metrics["sampler_gap"]) < 1e-4
        state, _ = run_updates(bench.updates, state, frozen, jax.random.key(n), *BOTH, train_policy=n > 0)
    assert np.mean(rewards[:2]) < 0.1 and np.mean(rewards[-3:]) > 0.6
    assert float(metrics["kl"]) > 1.0
