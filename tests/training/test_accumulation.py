"""Gradients do not depend on how many microbatches a batch is cut into, whether they divide it or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import make_decoder, make_scalar_model, random_tokens, token_rows, with_pieces
from running import unoptimised

from prl_jax.methods import METHODS, LossKL
from prl_jax.methods.direct import BCO, KTO, RWR, Sigmoid, Squared
from prl_jax.methods.surrogates import Frozen
from prl_jax.training.direct import direct_objective
from prl_jax.training.policy import Schedule, critic_objective, policy_objective, together
from prl_jax.training.reward_model import bradley_terry_objective, generative_objective
from prl_jax.training.rollout import Critique, Experience
from prl_jax.training.sft import SFT
from prl_jax.training.step import gradients, microbatches
from prl_jax.types import ComparedPairs, DirectPairs, ScoredPairs, SFTBatch

pytestmark = pytest.mark.slow
ROWS, LENGTH, ROOM = 6, 7, 4
LENGTHS = np.array([7, 1, 4, 2, 7, 3])


def rows(seed: int):
    return token_rows([random_tokens(seed, n) for n in LENGTHS], LENGTH)


def sft():
    batch = SFTBatch(rows(0), random_tokens(1, ROWS, LENGTH), np.arange(LENGTH) < LENGTHS[:, None])
    return SFT, make_decoder(0, layers=1), batch


def pairs(kind: type) -> ScoredPairs | ComparedPairs:
    label, weight = np.array([1, 0, 0.5, 1, 1, 0]), np.array([1, 1, 0, 1, 1, 0])
    return kind(rows(2), rows(3), label.astype(np.float32), weight.astype(np.float32))


def bradley_terry():
    return bradley_terry_objective(center=0.3), make_scalar_model(0, layers=1), pairs(ScoredPairs)


def generative():
    return generative_objective((3, 4), w_cons=0.4), make_decoder(0, layers=1), pairs(ComparedPairs)


def policy(name: str, **slots):
    """A row of the table of methods, with an entropy bonus and other pieces."""

    def objective_and_batch():
        method = with_pieces(METHODS[name].method, **slots)
        method = with_pieces(method, regulariser=dict(entropy=0.1))
        numbers = [np.random.default_rng(i).normal(size=(ROWS, ROOM)).astype(np.float32) for i in range(5)]
        mask = np.arange(ROOM) < np.array([4, 1, 2, 4, 3, 1])[:, None]
        trained = mask & (np.arange(ROWS) != 1)[:, None]  # a row that trains the critic alone, and no pair
        batch = Experience(rows(0), random_tokens(5, ROWS, ROOM), mask, Frozen(*numbers[:3], trained), None)
        objectives = {"policy": policy_objective(method, Schedule(), jnp.float32(0.2))}
        models = {"policy": make_decoder(0, layers=1)}
        if method.baseline.reads_values:
            batch = batch._replace(critique=Critique(rows(0), *numbers[3:]))
            objectives["critic"], models["critic"] = (
                critic_objective(method.baseline, None),
                make_scalar_model(1, layers=1),
            )
        return together(objectives), models, batch

    return objective_and_batch


def direct(loss, **options):
    """A direct loss, with all that can be added to it and, in rows without weight, numbers that are none."""

    def objective_and_batch():
        numbers = [np.random.default_rng(i).normal(size=(ROWS, 2)).astype(np.float32) for i in range(3)]
        weight = np.array([1, 1, 0, 1, 1, 0], np.float32)
        mask = np.arange(LENGTH) < LENGTHS[:, None]
        one, two, other = (SFTBatch(rows(i), random_tokens(9 + i, ROWS, LENGTH), mask) for i in range(3))
        reference = np.where(weight[:, None] > 0, numbers[0] - 9, np.nan).astype(np.float32)
        label = np.array([1, 0.5, 1, 0.2, 1, 1], np.float32)
        batch = DirectPairs(one, two, reference, label, numbers[1], numbers[2][:, 0], weight, other, reference[:, 0])
        added = dict(sft_weight=0.3, value_weight=-0.2, beta_scale=0.5)
        return direct_objective(loss, **added, **options), make_decoder(0, layers=1), batch

    return objective_and_batch


CASES = {
    "sft": sft,
    "direct, sums": direct(Sigmoid(), sft_length="sum"),
    "direct, means and the batch's mean": direct(BCO(beta=0.5), length="mean"),
    "direct, mismatched": direct(KTO(beta=0.5)),
    "direct, weights of responses": direct(RWR()),
    "direct, gaps of labels": direct(Squared(), gap_of_label=True),
    "bradley_terry": bradley_terry,
    "generative": generative,
    "tokens": policy("ppo"),
    "tokens, mean of rows": policy("ppo", surrogate=dict(reduce="seq_mean_token_mean"), regulariser=LossKL()),
    "pairs, clipped": policy("p3o"),
    "pairs, regression": policy("online_dpo"),
}


LONG = ("direct, means and the batch's mean", "direct, weights of responses", "direct, gaps of labels")
NIGHTLY = ("tokens", "pairs, clipped", "direct, mismatched")  # others of their kinds are in the tests of every day
MARKS = {**dict.fromkeys(LONG, [pytest.mark.long]), **dict.fromkeys(NIGHTLY, [pytest.mark.nightly])}


@pytest.mark.parametrize(
    "make", [pytest.param(make, id=name, marks=MARKS.get(name, [])) for name, make in CASES.items()]
)
def test_row_13_any_number_of_microbatches_gives_the_gradient_of_the_batch(make):
    objective, model, batch = make()
    batch = jax.tree.map(jnp.asarray, batch)

    def run(accumulate):
        with unoptimised():
            grads, metrics = jax.jit(lambda m, b: gradients(objective, m, b, accumulate))(model, batch)
        return {str(k): np.asarray(x) for k, x in jax.tree_util.tree_leaves_with_path(grads)}, jax.device_get(metrics)

    expected, metrics = run(1)
    assert all(np.linalg.norm(x) > 0 for x in expected.values())
    for accumulate in (2, 4, 6):  # divides, does not, one row each
        grads, others = run(accumulate)
        for name, x in expected.items():
            assert np.linalg.norm(grads[name] - x) < 1e-5 * np.linalg.norm(x), (accumulate, name)
        assert others.keys() == metrics.keys()
        for name, x in metrics.items():
            np.testing.assert_allclose(others[name], x, rtol=2e-5, atol=1e-6, err_msg=f"{name}, {accumulate}")


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_microbatch_has_whole_units_and_zeros_where_there_is_none(count):
    x = jnp.arange(12.0).reshape(12, 1) + 1
    cut = np.asarray(microbatches(x, count, 2))[..., 0].reshape(count, -1, 2)
    units = [tuple(unit) for part in cut for unit in part]
    there = [unit for unit in units if unit != (0.0, 0.0)]
    assert sorted(there) == [(i, i + 1) for i in range(1, 12, 2)] and len(units) - len(there) == -6 % count
    np.testing.assert_array_equal(cut[0, :, 0], [2 * count * k + 1 for k in range(cut.shape[1])])


@pytest.mark.parametrize(("count", "parts"), [(2, [[0, 2, 4], [1, 3, 5]]), (4, [[0, 4], [1, 5], [2, -1], [3, -1]])])
def test_a_microbatch_has_every_nth_row_and_zeros_where_there_is_none(count, parts):
    x = jnp.arange(12.0).reshape(6, 2) + 1
    expected = [[x[i] if i >= 0 else jnp.zeros(2) for i in part] for part in parts]
    np.testing.assert_array_equal(microbatches(x, count), expected)
