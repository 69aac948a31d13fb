"""Rows 3, 6, 9, 11, 12, 13, 14, 15 and 17 of the correctness list: what an update does with what it is given."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from correctness import world
from correctness.world import (
    CLIP_NORM,
    LENGTHS,
    PENALTY,
    PLAIN,
    PROMPTS,
    ROOM,
    SCORE,
    TEMPERATURE,
    TRUNCATED,
    VALID,
    Truth,
)
from fakes import make_decoder, make_rollout

from prl_jax.methods import LossKL
from prl_jax.sampling import SamplingConfig, generate, row_keys
from prl_jax.training.policy import critic_objective, policy_objective, prepare, run_updates, together
from prl_jax.training.rollout import CriticContext
from prl_jax.training.step import gradients

pytestmark = pytest.mark.slow
ALL, STOP = jnp.arange(4), 21
IN_LOSS = PLAIN.but(baseline=dict(clip=0.2), regulariser=LossKL(coefficient=0.5, entropy=0.01, estimator="k2"))


DEVIATION = 1.5  # of the returns, so far
CLIP = 0.2 * DEVIATION


def objective_of(setting, deviation=None):
    """The losses of policy and critic, with the coefficient at its start."""
    policy = policy_objective(*setting, jnp.float32(setting.method.regulariser.coefficient))
    return together({"policy": policy, "critic": critic_objective(setting.method.baseline, deviation)})


@pytest.fixture(scope="module")
def repeated(freeze, fresh, update):
    """Metrics of four updates on the same rows."""
    experience, state, seen = freeze()[0], fresh(), []
    for _ in range(4):
        state, metrics = update(state, experience, ALL)
        seen.append(jax.device_get(metrics))
    return seen


@pytest.fixture(scope="module")
def moved(rollout, freeze):
    """Gradients of both losses, in 1 and in 4 microbatches, for models that have left those of the rollout."""
    models = {"policy": make_decoder(3, layers=1), "critic": world.make_critic(4)}
    experience = freeze(IN_LOSS)[0]
    objective = objective_of(IN_LOSS, jnp.float32(DEVIATION))
    run = jax.jit(lambda models, batch, parts: gradients(objective, models, batch, parts), static_argnums=2)
    logp = world.chosen(world.response_laws(models["policy"], rollout, TEMPERATURE), rollout)
    return SimpleNamespace(
        one=jax.device_get(run(models, experience, 1)),
        four=jax.device_get(run(models, experience, 4)),
        experience=experience,
        logp=logp,
        values=world.response_values(models["critic"], rollout)[0],
    )


def test_row_03_stopping_is_trained(models, freeze, fresh, update):
    """Responses that are one stop token long, and better than expected: the policy stops more readily."""
    rollout = make_rollout(0, PROMPTS, [1] * 4, [False] * 4, room=ROOM)
    rollout = rollout._replace(response=rollout.response.at[:, 0].set(STOP))
    experience, _ = freeze(score=np.full(4, 10.0), rollout=rollout)
    state, _ = update(fresh(), experience, ALL)
    before, after = (
        world.chosen(world.response_laws(m, rollout, TEMPERATURE), rollout) for m in (models.policy, state.policy.model)
    )
    assert (after - before)[:, 0].mean() > 0.05


def test_row_06_policy_old_and_reference_log_probs_use_the_sampling_temperature(freeze, truth, repeated):
    experience, _ = freeze()
    np.testing.assert_allclose(experience.frozen.logp_old, truth.logp, atol=5e-5)
    np.testing.assert_allclose(experience.frozen.logp_ref, truth.logp_ref, atol=5e-5)
    first = repeated[0]  # the update's own: the same before the first step, token by token
    np.testing.assert_allclose([first["ratio"], first["approx_kl"]], [1.0, 0.0], atol=1e-5)


def test_row_09_old_log_probs_are_frozen_so_that_the_ratio_leaves_1(freeze, truth, repeated):
    """They are the trainer's own: the sampler of this rollout said 0 everywhere."""
    np.testing.assert_allclose(freeze()[0].frozen.logp_old, truth.logp, atol=5e-5)
    first, *later = repeated
    assert first.get("clip_fraction") == 0 and abs(first["ratio"] - 1) < 1e-5
    assert all(metrics["clip_fraction"] > 0.02 and metrics["approx_kl"] > 1e-4 for metrics in later)


def test_row_09_they_stay_frozen_over_epochs_and_minibatches(freeze, fresh, updates):
    setting = PLAIN.but(schedule=dict(epochs=3, minibatches=1))
    _, metrics = run_updates(updates, fresh(), freeze()[0], jax.random.key(0), *setting, train_policy=True)
    assert metrics.get("clip_fraction_first", 1) == 0 and metrics["clip_fraction"] > 0.02


def test_row_11_the_loss_holds_the_named_estimator(moved):
    d = moved.experience.frozen.logp_ref - moved.logp
    np.testing.assert_allclose(moved.one[1]["kl_loss"], (d**2 / 2)[VALID].mean(), rtol=1e-3)
    assert not np.isclose((d**2 / 2)[VALID].mean(), -d[VALID].mean(), rtol=0.1)


def test_row_12_minibatches_are_not_whitened_anew(freeze, repeated):
    """At a ratio of 1 the loss is minus the mean advantage, as it was frozen."""
    mean = freeze()[0].frozen.advantages[VALID].mean()
    assert abs(mean) > 0.05
    np.testing.assert_allclose(repeated[0]["policy_loss"], -mean, rtol=1e-3)


def test_row_13_any_number_of_microbatches_gives_the_same_gradient(moved):
    """Microbatches of 2, 5, 1 and 5 tokens."""
    (one, metrics), (four, others) = moved.one, moved.four
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(a).max())
    for name in metrics:
        np.testing.assert_allclose(metrics[name], others[name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_row_13_losses_are_sums_over_tokens_divided_once(moved):
    ratio = np.exp(moved.logp - moved.experience.frozen.logp_old)
    a = moved.experience.frozen.advantages
    policy = np.maximum(-a * ratio, -a * np.clip(ratio, 0.8, 1.2))[VALID]
    metrics = moved.one[1]
    np.testing.assert_allclose(metrics["policy_loss"], policy.sum() / sum(LENGTHS), rtol=1e-3)
    weights = {"policy_loss": 1.0, "value_loss": 1.0, "entropy_loss": 0.01, "kl_loss": 0.5}
    np.testing.assert_allclose(metrics["loss"], sum(w * metrics[k] for k, w in weights.items()), rtol=1e-4)
    of_rows = [loss.mean() for loss in np.split(policy, np.cumsum(LENGTHS)[:-1])]
    assert not np.isclose(np.mean(of_rows), policy.mean(), rtol=0.05)


def test_row_14_the_value_loss_is_clipped_around_old_values(moved):
    old, returns = moved.experience.critique.values_old, moved.experience.critique.returns
    clipped = old + np.clip(moved.values - old, -CLIP, CLIP)
    plain = np.square(moved.values - returns)[VALID], np.square(clipped - returns)[VALID]
    np.testing.assert_allclose(moved.one[1]["value_loss"], 0.5 * np.maximum(*plain).mean(), rtol=1e-4)
    assert (plain[0] < plain[1]).any() and (plain[0] > plain[1]).any()


@pytest.fixture(scope="module")
def narrow(models):
    """bfloat16 models whose blocks do nothing, so that their hidden states are the same bits in every program."""
    made = make_decoder(0, layers=1, dtype="bfloat16"), world.make_critic(1, dtype="bfloat16")
    reference = make_decoder(2, layers=1, dtype="bfloat16")
    for decoder in (made[0], made[1].decoder, reference):
        for matrix in (decoder.blocks.attention.o, decoder.blocks.mlp.down):
            matrix.weight[...] = jnp.zeros_like(matrix.weight[...])
    return SimpleNamespace(policy=made[0], critic=made[1], reference=reference)


_hidden = jax.jit(lambda model, rows: model.hidden(*rows))


def exact_states(model, rows) -> np.ndarray:
    hidden = _hidden(model, rows)
    assert hidden.dtype == jnp.bfloat16
    return np.asarray(hidden, np.float64)


def exact_laws(model, rows) -> np.ndarray:
    """`[B, T, V]` log-probabilities at the sampling temperature, in float64 from the hidden states on."""
    logits = exact_states(model, rows) @ np.asarray(model.output_embedding(), np.float64)
    return world.log_softmax(logits / TEMPERATURE)


def test_row_15_a_bfloat16_model_has_float32_log_probs_losses_and_advantages(narrow, rollout, fresh):
    """Not only their dtype: each equals what float64 makes of the same hidden states."""

    rows, starts = world.whole_rows(rollout)
    at = [(i, t, start + t - 1) for i, start in enumerate(starts) for t in range(LENGTHS[i])]
    laws = [exact_laws(model, rows) for model in (narrow.policy, narrow.reference)]
    found = exact_states(narrow.critic.decoder, rows) @ np.asarray(narrow.critic.scalar.weight[...], np.float64)
    found = found + float(narrow.critic.scalar.bias[...])
    logp, logp_ref, values = np.zeros((3, 4, ROOM))
    for i, t, place in at:
        logp[i, t], logp_ref[i, t] = (law[i, place, rollout.response[i, t]] for law in laws)
        values[i, t] = found[i, place]
    exact = Truth(logp, logp_ref, values, np.zeros(4))
    rewards = world.token_rewards(SCORE - PENALTY * TRUNCATED, world.BETA * (logp - logp_ref))
    advantages = world.plain_gae(exact, rewards, np.zeros(4), world.LAM_ACTOR)

    state = fresh()
    state = state._replace(
        policy=state.policy._replace(model=narrow.policy), critic=state.critic._replace(model=narrow.critic)
    )
    context = CriticContext(rollout.prompt, rollout.prompt_mask)
    experience, _ = prepare(state, narrow.reference, rollout, context, jnp.asarray(SCORE), **PLAIN._asdict())
    frozen, critique = experience.frozen, experience.critique
    for name, got, expected in (
        ("logp_old", frozen.logp_old, logp),
        ("logp_ref", frozen.logp_ref, logp_ref),
        ("values_old", critique.values_old, values),
    ):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, atol=2e-4, err_msg=name)
    assert frozen.advantages.dtype == critique.returns.dtype == jnp.float32
    np.testing.assert_allclose(frozen.advantages, advantages, atol=1e-3)

    shift = 0.125 + 8.5 * 2**-10  # right between two numbers of bfloat16
    shifted = experience._replace(frozen=frozen._replace(logp_old=frozen.logp_old - shift))
    both = {"policy": narrow.policy, "critic": narrow.critic}
    terms = jax.jit(objective_of(PLAIN).terms)(both, shifted)
    assert {x.dtype for x in jax.tree.leaves(terms)} == {jnp.dtype(jnp.float32)}
    policy, value = terms["policy_loss"], terms["value_loss"]
    np.testing.assert_allclose(policy.sum, -(advantages[VALID] * np.exp(shift)).sum(), rtol=1e-4)
    np.testing.assert_allclose(value.sum, 0.5 * np.square(values - critique.returns)[VALID].sum(), rtol=1e-4)
    np.testing.assert_allclose(policy.aux["ratio"][0] / policy.aux["ratio"][1], np.exp(shift), rtol=1e-4)


def test_row_15_the_sampler_of_a_bfloat16_model_works_in_float32(narrow, rollout):
    config = SamplingConfig(ROOM, (31,), 0, temperature=TEMPERATURE)
    keys = row_keys(jax.random.key(0), 0, 4)
    got = generate(narrow.policy, rollout.prompt, rollout.prompt_mask, keys, config=config)
    rows, starts = world.whole_rows(got)
    laws = exact_laws(narrow.policy, rows)
    for i, t in zip(*np.nonzero(got.mask), strict=True):
        np.testing.assert_allclose(got.logp[i, t], laws[i, starts[i] + t - 1, got.response[i, t]], atol=2e-4)
    assert got.logp.dtype == jnp.float32


def test_row_15_nothing_is_dropped_out_while_scoring(rollout, freeze):
    """What a row gets does not depend on its place in the batch."""
    order = np.array([2, 0, 3, 1])
    plain, _ = freeze()
    other, _ = freeze(score=SCORE[order], rollout=jax.tree.map(lambda x: x[order], rollout))
    for one, two in zip(
        (*plain.frozen, plain.critique.values_old), (*other.frozen, other.critique.values_old), strict=True
    ):
        np.testing.assert_allclose(two, one[order], atol=5e-5)


def test_row_17_gradients_are_clipped_by_the_norm_of_the_whole_tree(freeze, fresh, update):
    """The first moment after one update is `1 - b1` times the clipped gradient, of policy and critic each."""
    state, metrics = update(fresh(), freeze()[0], ALL)
    for part, name in ((state.policy, "grad_norm"), (state.critic, "critic_grad_norm")):
        assert metrics[name] > 2 * CLIP_NORM
        np.testing.assert_allclose(optax.tree.norm(optax.tree.get(part.opt_state, "mu")), 0.1 * CLIP_NORM, rtol=1e-4)
