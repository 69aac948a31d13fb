"""One update for every method whose policy samples: what stays fixed, the terms of the loss, and the step.

A method is pieces (`prl_jax.methods`); which method it is, nothing here asks.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from prl_jax import masked
from prl_jax.losses import overlong_penalty, reduce_tokens, relative_brevity, token_rewards
from prl_jax.methods import Critic, Method, Values
from prl_jax.methods.baselines import Rewards
from prl_jax.methods.surrogates import Frozen
from prl_jax.models import Decoder, ScalarModel
from prl_jax.sharding import constrain
from prl_jax.training.guard import Guarded, Learners, averaged, begun
from prl_jax.training.rollout import (
    CriticContext,
    Critique,
    Experience,
    join_rows,
    response_logprobs,
    response_values,
)
from prl_jax.training.schedule import Schedule
from prl_jax.training.state import Guard, JitUpdate, PolicyState, TrainState, learning
from prl_jax.training.step import Metrics, Objective, gradients
from prl_jax.types import LossOutput, Rollout


@functools.partial(jax.jit, static_argnames=("method", "schedule"))
def prepare(
    state: PolicyState,
    reference: Decoder,
    rollout: Rollout,
    context: CriticContext | None,
    reward: Float[Array, "N"],
    kept: Bool[Array, "N"] | None = None,
    *,
    differences: tuple[Float[Array, "N G"], Bool[Array, "N G"]] | None = None,
    greedy: Float[Array, "N"] | None = None,
    method: Method,
    schedule: Schedule,
) -> tuple[Experience, Metrics]:
    """Freezes everything that the update needs, once per rollout.

    Args:
      state: the policy that sampled, and its critic.
      reference: the policy that the divergence is taken to.
      rollout: what was sampled.
      context: what the critic reads before the response; None without a critic.
      reward: `[N]` float32, of each whole response.
      kept: `[N]`, the responses that train the policy; None for all.
      differences, greedy: what some baselines read beside it, see `Rewards`.
      method, schedule: what the update does.
    """
    masked.check_shapes(1, truncated=rollout.truncated, reward=reward)
    mask, truncated, baseline = rollout.mask, rollout.truncated, method.baseline
    rows = join_rows(rollout.prompt, rollout.prompt_mask, rollout.response, mask)
    logp, entropy = response_logprobs(state.policy.model, rows, rollout.response, mask, *schedule.distribution)
    logp_ref, _ = response_logprobs(reference, rows, rollout.response, mask, *schedule.distribution)
    score = reward.astype(jnp.float32) - schedule.missing_eos_penalty * truncated
    by_length = _length_terms(mask, schedule)
    score = sum(by_length.values(), score)
    earned = jnp.where(truncated & baseline.bootstraps, 0.0, score)  # a value takes its place
    tokens = token_rewards(earned, -method.regulariser.reward(logp, logp_ref, state.kl_coef), mask, 1.0)
    trained = mask & ~(truncated & schedule.mask_truncated)[:, None]
    if kept is not None:
        trained &= kept[:, None]
    rewards = Rewards(tokens, mask, trained, truncated, schedule.group_size, differences, greedy)
    values, critic_rows = None, None
    if baseline.reads_values:
        assert state.critic is not None and context is not None
        critic_rows = join_rows(context.tokens, context.mask, rollout.response, mask)
        before, after = response_values(state.critic.model, critic_rows, mask.shape[1])
        values = Values(jnp.where(mask, before, 0.0), after)
    advantages, returns = baseline(rewards, values)
    critique = None
    if values is not None and critic_rows is not None and returns is not None:
        critique = Critique(critic_rows, values.before, returns)
    frozen = Frozen(logp, method.regulariser.reference(logp, logp_ref), advantages, trained)
    weights = None
    if schedule.rollouts_ahead and schedule.importance_cap:
        frozen, weights = method.surrogate.corrected(frozen, rollout.logp, schedule.importance_cap)
    experience = Experience(rows, rollout.response, mask, frozen, critique)
    sequence_kl = masked.masked_sum(logp - logp_ref, mask, axis=1)
    metrics = {
        "score": score.mean(),
        "kl": sequence_kl.mean(),
        "entropy": masked.masked_mean(entropy, mask),
        "response_length": mask.sum(1).mean(dtype=jnp.float32),
        "truncated": truncated.mean(dtype=jnp.float32),
        "sampler_gap": masked.masked_mean(jnp.abs(rollout.logp - logp), mask),
    }
    metrics |= {name: jnp.abs(term).mean() for name, term in by_length.items()}
    if schedule.rollouts_ahead:
        metrics["sampler_kl"] = masked.masked_mean(rollout.logp - logp, mask)
    if weights is not None:
        metrics["importance"] = masked.masked_mean(weights, trained)
        metrics["importance_capped"] = masked.masked_mean(jnp.float32(weights >= schedule.importance_cap), trained)
    if critique is not None:
        metrics["value_mean"] = masked.masked_mean(critique.values_old, mask)
        metrics["explained_variance"] = _explained(critique.values_old, critique.returns, mask)
        metrics["return_deviation"] = jnp.sqrt(masked.masked_var(critique.returns, mask))
    return experience, metrics


def _length_terms(mask: Bool[Array, "N T"], schedule: Schedule) -> dict[str, Float[Array, "N"]]:
    """Terms that the length of a response adds to its score; metrics have their mean sizes under the same names."""
    lengths, terms = mask.sum(1), {}
    if schedule.overlong:
        terms["overlong_penalty"] = -overlong_penalty(lengths, mask.shape[1], *schedule.overlong)
    if schedule.length_weight:
        groups = lengths.reshape(-1, schedule.group_size)
        terms["length_term"] = schedule.length_weight * relative_brevity(groups).reshape(-1)
    return terms


def _explained(values, returns, mask) -> Float[Array, ""]:
    """Returns the share of the variance of the returns that the values explain; 0 where the returns don't vary."""
    variance = masked.masked_var(returns, mask)
    return jnp.where(variance > 1e-12, 1.0 - masked.masked_var(returns - values, mask) / (variance + 1e-12), 0.0)


def policy_objective(
    method: Method, schedule: Schedule, kl_coef: Float[Array, ""], entropy: Float[Array, ""] | None = None
) -> Objective:
    """The loss of a policy on an `Experience`: the surrogate, and the terms of the regulariser; see `PolicyState` for
    the numbers."""
    surrogate, regulariser = method.surrogate, method.regulariser
    beside = regulariser.weights(kl_coef, entropy)

    def terms(policy: Decoder, batch: Experience) -> dict[str, LossOutput]:
        frozen = batch.frozen
        logp, entropy = response_logprobs(policy, batch.rows, batch.response, batch.mask, *schedule.distribution)
        loss = surrogate(logp, frozen, kl_coef)
        return {
            "policy_loss": loss,
            **regulariser.terms(logp, frozen.logp_ref, entropy, frozen.mask, surrogate.reduce),
        }

    def denominators(batch: Experience) -> dict[str, Array]:
        mask = batch.frozen.mask
        denominator = reduce_tokens(jnp.zeros(mask.shape, jnp.float32), mask, surrogate.reduce)[1]
        return {"policy_loss": surrogate.denominator(mask), **dict.fromkeys(beside, denominator)}

    return Objective(terms, denominators, {"policy_loss": 1.0, **beside}, unit=surrogate.unit)


def critic_objective(baseline: Critic, deviation: Float[Array, ""] | None) -> Objective:
    """The loss of a critic on an `Experience`; see `PolicyState` for the deviation of the returns."""

    def terms(critic: ScalarModel, batch: Experience) -> dict[str, LossOutput]:
        critique = batch.critique
        assert critique is not None
        values, _ = response_values(critic, critique.rows, batch.mask.shape[1])
        loss = baseline.loss(values, critique.values_old, critique.returns, batch.mask, deviation)
        return {"value_loss": LossOutput(loss.sum, loss.denominator, {"value_clip": loss.aux["clip_fraction"]})}

    def denominators(batch: Experience) -> dict[str, Array]:
        return {"value_loss": masked.masked_count(batch.mask)}

    return Objective(terms, denominators, {"value_loss": baseline.weight})


class Updates(NamedTuple):
    """Jitted updates on one minibatch, `(state, experience, row indices) -> (state, metrics)`; each donates the state.

    Attributes:
      train: of the policy, and of the critic where there is one.
      warm_up: of the critic alone, `((its state, guard), deviation, experience, row indices) -> ((its state, guard),
        metrics)`; None without a critic.
      drift: of the reference, `(reference, policy) -> (reference, {})`, donates the reference; None where it does not
        drift.
    """

    train: JitUpdate
    warm_up: JitUpdate | None
    drift: JitUpdate | None = None


def make_updates(
    method: Method,
    schedule: Schedule,
    policy_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation | None = None,
) -> Updates:
    """The updates of a method; a critic needs an optimizer of its own."""
    baseline, optimizers = method.baseline, {"policy": policy_optimizer}
    if isinstance(baseline, Critic):
        assert critic_optimizer is not None
        optimizers["critic"] = critic_optimizer
    guarded = Guarded(optimizers, schedule)

    def rows(experience: Experience, index: Int[Array, "M"]) -> Experience:
        return jax.tree.map(lambda x: constrain(x[index], "batch", *(None,) * (x.ndim - 1)), experience)

    def learn(
        learners: Learners, guard: Guard | None, objectives: dict[str, Objective], batch: Experience
    ) -> tuple[Learners, Guard | None, Metrics]:
        """One update of the models that the objectives are of."""

        def compute(learners: Learners) -> tuple[dict[str, Any], Metrics]:
            models = {name: learner.model for name, learner in learners.items()}
            return gradients(together(objectives), models, batch, schedule.accumulate)

        return guarded(learners, guard, compute)

    def update(state: PolicyState, experience: Experience, index: Int[Array, "M"]) -> tuple[PolicyState, Metrics]:
        objective = policy_objective(method, schedule, state.kl_coef, state.entropy)
        objectives, learners = {"policy": objective}, {"policy": state.policy}
        if isinstance(baseline, Critic):
            assert state.critic is not None
            objectives["critic"], learners["critic"] = critic_objective(baseline, state.deviation), state.critic
        learners, guard, metrics = learn(learners, state.guard, objectives, rows(experience, index))
        return state._replace(policy=learners["policy"], critic=learners.get("critic"), guard=guard), metrics

    def drift(reference: Decoder, policy: Decoder) -> tuple[Decoder, Metrics]:
        share = schedule.reference_ema
        return jax.tree.map(lambda old, new: old + share * (new - old), reference, policy), {}

    drifting = JitUpdate(drift) if schedule.reference_ema else None
    if not isinstance(baseline, Critic):
        return Updates(JitUpdate(update), None, drifting)

    def warm_up(
        state: tuple[TrainState, Guard | None],
        deviation: Float[Array, ""] | None,
        experience: Experience,
        index: Int[Array, "M"],
    ) -> tuple[tuple[TrainState, Guard | None], Metrics]:
        critic, guard = state
        objectives = {"critic": critic_objective(baseline, deviation)}
        learners, guard, metrics = learn({"critic": critic}, guard, objectives, rows(experience, index))
        return (learners["critic"], guard), metrics

    return Updates(JitUpdate(update), JitUpdate(warm_up), drifting)


def together(objectives: dict[str, Objective]) -> Objective:
    """Several objectives as one, of models that are called as the objectives are."""

    def terms(models, batch) -> dict[str, LossOutput]:
        found: dict[str, LossOutput] = {}
        for name, objective in objectives.items():
            found |= objective.terms(models[name], batch)
        return found

    def denominators(batch) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for objective in objectives.values():
            found |= objective.denominators(batch)
        return found

    weights = {name: weight for objective in objectives.values() for name, weight in objective.weights.items()}
    return Objective(terms, denominators, weights, unit=max(objective.unit for objective in objectives.values()))


def run_updates(
    updates: Updates,
    state: PolicyState,
    experience: Experience,
    key: Key[Array, ""],
    method: Method,
    schedule: Schedule,
    *,
    train_policy: bool,
) -> tuple[PolicyState, Metrics]:
    """All epochs and minibatches over one batch of rollouts; metrics are means over the updates.

    Rows are shuffled anew for each epoch, in units of the surrogate. `clip_fraction_first` is that of the first
    minibatch, whose ratio is 1. While `train_policy` is false the critic learns alone, and without one nothing happens:
    nothing of the policy is computed.
    """
    if not train_policy and updates.warm_up is None:
        return state, {}
    unit, seen = method.surrogate.unit, []
    before, state = state, learning(begun(state))
    units = experience.mask.shape[0] // unit
    for epoch in range(schedule.epochs):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), units)
        order = (order[:, None] * unit + jnp.arange(unit)[None]).reshape(schedule.minibatches, -1)
        for part in range(schedule.minibatches):
            if train_policy:
                state, metrics = updates.train(state, experience, order[part])
            else:
                assert updates.warm_up is not None
                alone = (state.critic, state.guard)
                (critic, guard), metrics = updates.warm_up(alone, state.deviation, experience, order[part])
                state = state._replace(critic=critic, guard=guard)
            seen.append(metrics)
    mean = averaged(seen)
    first = {"clip_fraction_first": seen[0]["clip_fraction"]} if "clip_fraction" in seen[0] else {}
    standing = dict(past=before.past, reference=before.reference, scores=before.scores)
    return state._replace(**standing), {**mean, **first}
