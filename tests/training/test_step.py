"""The generic step: one division after everything is added, for every number of microbatches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import copy, make_decoder, on_mesh, one_device, random_tokens
from running import guarded_steps

from prl_jax.losses import reduce_tokens
from prl_jax.models import LOGICAL_AXES, LoraConfig, ScalarModel, combine, split, with_adapters
from prl_jax.optim import make_optimizer
from prl_jax.processes import put_batch
from prl_jax.training.reward_model import bradley_terry_objective
from prl_jax.training.sft import SFT
from prl_jax.training.state import TrainState, create_state
from prl_jax.training.step import Objective, gradients, make_train_step
from prl_jax.tree import flatten
from prl_jax.types import LossOutput, ScoredPairs, SFTBatch, TokenRows

ROWS, LENGTH = 8, 6


def toy_batch() -> dict[str, jax.Array]:
    """Masks of very unequal size: two rows of one term are empty, one token row is full."""
    rng = np.random.default_rng(0)
    lengths = np.array([6, 1, 0, 3, 2, 0, 5, 1])
    return {
        "x": jnp.asarray(rng.normal(size=(ROWS, LENGTH)), jnp.float32),
        "y": jnp.asarray(rng.normal(size=(ROWS, LENGTH)), jnp.float32),
        "mask": jnp.asarray(np.arange(LENGTH) < lengths[:, None]),
        "weight": jnp.asarray([0, 1, 1, 0.5, 0, 0, 0, 2], jnp.float32),
    }


def toy_terms(model, batch) -> dict[str, LossOutput]:
    error = batch["x"] * model["slope"] + model["offset"] - batch["y"]
    tokens = batch["mask"].sum(dtype=jnp.float32)
    squares = jnp.sum(jnp.where(batch["mask"], error**2, 0.0))
    biggest = jnp.sum(jnp.where(batch["mask"], jnp.abs(error), 0.0))
    pull = jnp.sum(batch["weight"] * jnp.abs(error).sum(1))
    sequences = LossOutput(*reduce_tokens(error, batch["mask"], "seq_mean_token_mean"))
    return {
        "fit": LossOutput(squares, tokens, {"absolute": (biggest, tokens)}),
        "pull": LossOutput(pull, batch["weight"].sum()),
        "sequences": sequences,
    }


def toy_denominators(batch) -> dict[str, jax.Array]:
    return {
        "fit": batch["mask"].sum(dtype=jnp.float32),
        "pull": batch["weight"].sum(),
        "sequences": batch["mask"].any(1).sum(dtype=jnp.float32),
    }


TOY = Objective(toy_terms, toy_denominators, {"fit": 1.0, "pull": 0.3, "sequences": -0.2})
MODEL = {"slope": jnp.float32(0.4), "offset": jnp.float32(-1.0)}


@pytest.mark.parametrize("accumulate", [1, 2, 3, 5, 8])
def test_row_13_accumulation_is_exact_for_terms_with_denominators_of_their_own(accumulate):
    batch = toy_batch()

    def whole(model):  # each term divided by its own denominator over the whole batch
        return sum(TOY.weights[k] * term.sum / term.denominator for k, term in toy_terms(model, batch).items())

    value, expected = jax.value_and_grad(whole)(MODEL)
    grads, metrics = gradients(TOY, MODEL, batch, accumulate)
    for name in MODEL:
        np.testing.assert_allclose(grads[name], expected[name], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    for name, term in toy_terms(MODEL, batch).items():
        np.testing.assert_allclose(metrics[name], term.sum / term.denominator, rtol=1e-5)
    absolute = toy_terms(MODEL, batch)["fit"].aux["absolute"]
    np.testing.assert_allclose(metrics["absolute"], absolute[0] / absolute[1], rtol=1e-5)


def test_row_13_a_mean_of_means_would_be_another_loss():
    """The batch of the test above does tell the two apart."""
    batch = toy_batch()
    halves = [jax.tree.map(lambda x, i=i: x[4 * i : 4 * i + 4], batch) for i in (0, 1)]
    means = [gradients(TOY, MODEL, half)[0]["slope"] for half in halves]
    assert abs(float(sum(means) / 2 - gradients(TOY, MODEL, batch)[0]["slope"])) > 0.01


def test_a_batch_without_anything_to_learn_from_gives_zeros():
    batch = {**toy_batch(), "mask": jnp.zeros((ROWS, LENGTH), bool), "weight": jnp.zeros(ROWS)}
    grads, metrics = gradients(TOY, MODEL, batch, 2)
    assert all(float(x) == 0 for x in jax.tree.leaves((grads, metrics)))


def sft_batch() -> SFTBatch:
    lengths = np.array([6, 2, 3, 6, 4, 2, 5, 3])
    tokens = random_tokens(0, ROWS, LENGTH + 1)
    valid = np.arange(LENGTH) < lengths[:, None]
    positions = np.broadcast_to(np.arange(LENGTH), valid.shape)
    rows = TokenRows(*(jnp.asarray(x, jnp.int32) for x in (tokens[:, :-1], positions, valid)))
    return SFTBatch(rows, jnp.asarray(tokens[:, 1:]), jnp.asarray(valid & (np.arange(LENGTH) >= 1)))


@pytest.fixture(scope="module")
def sft_gradients():
    model, batch = make_decoder(layers=1), sft_batch()
    return jax.jit(lambda model, batch: gradients(SFT, model, batch))(model, batch)


def test_sft_denominators_are_those_of_its_terms():
    model, batch = make_decoder(layers=1), sft_batch()
    term = jax.jit(SFT.terms)(model, batch)["nll"]
    assert float(SFT.denominators(batch)["nll"]) == float(term.denominator) == float(batch.mask.sum())
    np.testing.assert_allclose(term.value, term.sum / batch.mask.sum(), rtol=1e-6)


def test_steps_lower_the_loss_and_tell_the_norm_before_clipping(sft_gradients):
    optimizer = make_optimizer(learning_rate=0.02, total_steps=10, clip_norm=0.01)
    model, batch = make_decoder(layers=1), sft_batch()
    mesh = one_device()
    batch = put_batch(jax.device_get(batch), mesh)
    state = create_state(on_mesh(model, mesh), optimizer, mesh, LOGICAL_AXES)
    assert state.step.dtype == jnp.int32 and int(state.step) == 0
    shardings = [x.sharding for x in jax.tree.leaves(state)]
    step, losses = make_train_step(SFT, optimizer), []
    for _ in range(6):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        if len(losses) == 1:
            expected = optax.tree.norm(sft_gradients[0])
            np.testing.assert_allclose(metrics["grad_norm"], expected, rtol=1e-4)
            assert float(expected) > 0.05
    assert all(later < earlier for earlier, later in zip(losses, losses[1:], strict=False))
    assert int(state.step) == 6
    # The compiler chose none of the new state's shardings, or the second step would have compiled once more.
    assert [x.sharding for x in jax.tree.leaves(state)] == shardings
    np.testing.assert_allclose(losses[0], sft_gradients[1]["nll"], rtol=1e-5)


def test_a_step_is_the_optimizers_update():
    optimizer = optax.sgd(0.1)
    grads, metrics = gradients(TOY, MODEL, toy_batch())
    state = TrainState(copy(MODEL), optimizer.init(MODEL), jnp.int32(3))
    state, stepped = make_train_step(TOY, optimizer, accumulate=2)(state, toy_batch())
    for name in MODEL:
        np.testing.assert_allclose(state.model[name], MODEL[name] - 0.1 * grads[name], rtol=1e-5)
    np.testing.assert_allclose(stepped["loss"], metrics["loss"], rtol=1e-5)
    assert int(state.step) == 4


def test_the_guard_notices_a_step_that_is_handed_arrays_of_the_host():
    optimizer = optax.sgd(0.1)
    state, step = TrainState(copy(MODEL), optimizer.init(MODEL), jnp.int32(3)), make_train_step(TOY, optimizer)
    with guarded_steps(), pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        step(state, jax.device_get(toy_batch()))


def test_dropout_of_adapters_draws_anew_for_each_key_step_and_row_alone():
    mesh = one_device()
    lora = LoraConfig(rank=2, dropout=0.5)
    decoder = with_adapters(on_mesh(make_decoder(layers=1), mesh), lora, mesh, key=jax.random.key(0))
    trained, frozen = split(decoder)
    # Not the same number everywhere: what all tokens share cancels in the softmax of attention, and leaves rounding.
    draw = np.random.default_rng(2)
    decoder = combine(
        jax.tree.map(lambda x: x + 0.5 * jnp.asarray(draw.normal(size=x.shape), x.dtype), trained), frozen
    )
    row = random_tokens(0, 1, LENGTH)
    rows = TokenRows(*(jnp.asarray(np.repeat(x, 3, 0)) for x in (row, np.arange(LENGTH)[None], np.ones_like(row))))
    same = SFTBatch(rows, rows.tokens, jnp.ones((3, LENGTH), bool))
    pairs = ScoredPairs(rows, rows, jnp.ones(3), jnp.ones(3))
    objectives = SFT, bradley_terry_objective()
    sft, bradley_terry = (jax.jit(functools.partial(gradients, one), static_argnums=2) for one in objectives)

    def norm(dropout: jax.Array | None = None, batch: SFTBatch = same) -> float:
        return float(optax.tree.norm(sft(decoder, batch, 1, dropout=dropout)[0]))

    one, other = jax.random.split(jax.random.key(1))
    assert norm(one) == norm(one) and len({round(x, 4) for x in (norm(), norm(one), norm(other))}) == 3
    # The rows are the same: with one mask for all of them their gradient would be that of the first alone.
    assert abs(norm(one) - norm(one, jax.tree.map(lambda x: x[:1], same))) > 1e-4
    # Microbatches are memory and time alone, whether they divide the rows or not.
    scalar = ScalarModel(decoder, bias=0.0)
    scalar.scalar = jax.tree.map(lambda x: x + 0.01, scalar.scalar)
    for grads_of, model, batch in ((sft, decoder, same), (bradley_terry, scalar, pairs)):
        whole = flatten(grads_of(model, batch, 1, dropout=one)[0])
        largest = max(float(np.abs(grad).max()) for name, grad in whole.items() if ".lora." in name)
        assert largest > 1e-5, "else both sides of a pair, which are the same, drop the same"
        for accumulate in (2, 3):
            for name, grad in flatten(grads_of(model, batch, accumulate, dropout=one)[0]).items():
                np.testing.assert_allclose(grad, whole[name], rtol=1e-4, atol=1e-4 * largest, err_msg=name)
    optimizer = make_optimizer(learning_rate=0.0001, total_steps=9)
    step = make_train_step(SFT, optimizer, dropout=one)
    state, losses = create_state(copy(decoder), optimizer, mesh, LOGICAL_AXES), []
    for _ in range(2):
        state, metrics = step(state, same)
        losses.append(float(metrics["grad_norm"]))
    assert abs(losses[0] - losses[1]) > 1e-3
