"""PPO on sequence rewards: the same update for Bradley-Terry scores and for win probabilities."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from prl_jax import masked
from prl_jax.errors import UserError
from prl_jax.losses import (
    entropy_loss,
    gae,
    kl_estimate,
    masked_whiten,
    ppo_policy_loss,
    ppo_value_loss,
    reduce_tokens,
    token_rewards,
)
from prl_jax.models import Decoder, ScalarModel
from prl_jax.sharding import constrain
from prl_jax.training.rollout import Experience, join_rows, response_logprobs, response_values
from prl_jax.training.state import JitUpdate, TrainState
from prl_jax.training.step import Metrics, Objective, apply_gradients, gradients
from prl_jax.types import LossOutput, Rollout


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """What the update does; methods 4.1.

    Attributes:
      epochs, minibatches: passes over a batch of rollouts, and into how many parts each pass cuts it.
      accumulate: microbatches of a minibatch.
      gamma, lam_actor, lam_critic: discount, and lambda of the advantages and of the critic's targets.
      clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
      dual: dual clip for negative advantages, 0 for none.
      clip_value: values are clipped around old values.
      value_weight, entropy_weight: factors of the value loss and of the entropy bonus.
      reduce: how token losses become one number, see `ppo_policy_loss`.
      whiten: whiten advantages over all valid tokens of the global batch.
      kl_placement: "reward" (a token reward) or "loss" (a loss term).
      kl_estimator: "k1", "k2" or "k3". In the reward only k1 leads to the optimum `reference exp(r / kl_coef)`.
      kl_coef: coefficient at the start.
      kl_target: sequence KL that an adaptive coefficient steers to (arXiv 1909.08593); 0 keeps it fixed.
      kl_horizon: rows over which the adaptive coefficient reacts.
      temperature: of sampling; all log-probabilities use it.
      missing_eos_penalty: subtracted from the score of a response without a stop token.
      mask_truncated: leaves such responses out of the policy loss.
      bootstrap_truncated: a truncated response is worth V after its last token, not 0.
    """

    epochs: int = 2
    minibatches: int = 2
    accumulate: int = 1
    gamma: float = 1.0
    lam_actor: float = 0.95
    lam_critic: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual: float = 0.0
    clip_value: float = 0.2
    value_weight: float = 1.0
    entropy_weight: float = 0.0
    reduce: str = "token_mean"
    whiten: bool = True
    kl_placement: str = "reward"
    kl_estimator: str = "k1"
    kl_coef: float = 0.05
    kl_target: float = 0.0
    kl_horizon: float = 10_000.0
    temperature: float = 1.0
    missing_eos_penalty: float = 0.0
    mask_truncated: bool = False
    bootstrap_truncated: bool = False

    def __post_init__(self):
        if self.kl_placement not in ("reward", "loss"):
            raise UserError(f"ppo: kl_placement={self.kl_placement!r}, expected 'reward' or 'loss'")
        if self.kl_placement == "loss" and self.kl_estimator == "k1":
            raise UserError("ppo: kl_estimator='k1' in the loss has no gradient in expectation; use 'k2' or 'k3' there")
        if self.temperature <= 0:
            raise UserError(f"ppo: temperature={self.temperature}, expected > 0; greedy rollouts teach nothing")
        if min(self.epochs, self.minibatches, self.accumulate) < 1:
            raise UserError("ppo: epochs, minibatches and accumulate are at least 1")


class PPOState(NamedTuple):
    """Policy and critic, each with its optimizer, and the KL coefficient."""

    policy: TrainState
    critic: TrainState
    kl_coef: Float[Array, ""]


class CriticContext(NamedTuple):
    """What the critic reads before the response: `[B, C]` tokens and mask, left-padded."""

    tokens: Int[Array, "B C"]
    mask: Bool[Array, "B C"]


def initial_state(policy: TrainState, critic: TrainState, config: PPOConfig) -> PPOState:
    """State before the first update."""
    return PPOState(policy, critic, jax.device_put(jnp.float32(config.kl_coef), policy.step.sharding))


@functools.partial(jax.jit, static_argnames="config")
def prepare(
    state: PPOState,
    reference: Decoder,
    rollout: Rollout,
    context: CriticContext,
    score: Float[Array, "B"],
    *,
    config: PPOConfig,
) -> tuple[Experience, Metrics]:
    """Freezes everything that the update needs, once per rollout.

    Args:
      state: the policy that sampled, and its critic.
      reference: the policy that the KL is taken to.
      rollout: what was sampled.
      context: what the critic reads before the response; the prompt, where it sees no more than the policy.
      score: `[B]` float32, a reward for each whole response.
    """
    masked.check_shapes(1, truncated=rollout.truncated, score=score)
    mask, length = rollout.mask, rollout.mask.shape[1]
    rows = join_rows(rollout.prompt, rollout.prompt_mask, rollout.response, mask)
    critic_rows = join_rows(context.tokens, context.mask, rollout.response, mask)
    logp, entropy = response_logprobs(state.policy.model, rows, rollout.response, mask, config.temperature)
    logp_ref, _ = response_logprobs(reference, rows, rollout.response, mask, config.temperature)
    values, after = response_values(state.critic.model, critic_rows, length)
    values = jnp.where(mask, values, 0.0)

    score = score.astype(jnp.float32) - config.missing_eos_penalty * rollout.truncated
    kl = kl_estimate(logp, logp_ref, kind=config.kl_estimator)
    beta = state.kl_coef if config.kl_placement == "reward" else 0.0
    rewards = token_rewards(score, kl, mask, beta)
    bootstrap = jnp.where(rollout.truncated & config.bootstrap_truncated, after, 0.0)
    advantages, returns = gae(
        rewards,
        values,
        mask,
        bootstrap=bootstrap,
        gamma=config.gamma,
        lam_actor=config.lam_actor,
        lam_critic=config.lam_critic,
    )
    if config.whiten:
        advantages = masked_whiten(advantages, mask)
    keep = mask & ~(rollout.truncated & config.mask_truncated)[:, None]
    experience = Experience(
        rows, critic_rows, rollout.response, mask, keep, logp, logp_ref, values, advantages, returns
    )
    sequence_kl = masked.masked_sum(logp - logp_ref, mask, axis=1)
    metrics = {
        "score": score.mean(),
        "kl": sequence_kl.mean(),
        "entropy": masked.masked_mean(entropy, mask),
        "response_length": mask.sum(1).mean(dtype=jnp.float32),
        "truncated": rollout.truncated.mean(dtype=jnp.float32),
        "sampler_gap": masked.masked_mean(jnp.abs(rollout.logp - logp), mask),
        "value_mean": masked.masked_mean(values, mask),
        "explained_variance": _explained(values, returns, mask),
    }
    return experience, metrics


def _explained(values, returns, mask) -> Float[Array, ""]:
    """Share of the variance of the returns that the values tell; 0 where the returns don't vary."""
    variance = masked.masked_var(returns, mask)
    return jnp.where(variance > 1e-12, 1.0 - masked.masked_var(returns - values, mask) / (variance + 1e-12), 0.0)


def ppo_objective(config: PPOConfig, kl_coef: Float[Array, ""]) -> Objective:
    """The loss of `(policy, critic)` on an `Experience`."""

    def terms(models: tuple[Decoder, ScalarModel], batch: Experience) -> dict[str, LossOutput]:
        policy, critic = models
        values, _ = response_values(critic, batch.critic_rows, batch.mask.shape[1])
        value = ppo_value_loss(values, batch.values_old, batch.returns, batch.mask, clip_value=config.clip_value)
        out = {"value_loss": LossOutput(value.sum, value.denominator, {"value_clip": value.aux["clip_fraction"]})}
        logp, entropy = response_logprobs(policy, batch.rows, batch.response, batch.mask, config.temperature)
        out["policy_loss"] = ppo_policy_loss(
            logp,
            batch.logp_old,
            batch.advantages,
            batch.loss_mask,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual=config.dual or None,
            reduce=config.reduce,
        )
        out["entropy_loss"] = entropy_loss(entropy, batch.loss_mask)
        kl = kl_estimate(logp, batch.logp_ref, kind=config.kl_estimator, mask=batch.loss_mask)
        out["kl_loss"] = LossOutput(*reduce_tokens(kl, batch.loss_mask, "token_mean"))
        return out

    def denominators(batch: Experience) -> dict[str, Array]:
        tokens = masked.masked_count(batch.loss_mask)
        return {
            "value_loss": masked.masked_count(batch.mask),
            "policy_loss": reduce_tokens(jnp.zeros_like(batch.logp_old), batch.loss_mask, config.reduce)[1],
            "entropy_loss": tokens,
            "kl_loss": tokens,
        }

    weights = {
        "value_loss": config.value_weight,
        "policy_loss": 1.0,
        "entropy_loss": config.entropy_weight,
        "kl_loss": kl_coef if config.kl_placement == "loss" else 0.0,
    }
    return Objective(terms, denominators, weights)


Update = Callable[[PPOState, Experience, Int[Array, "N"], Bool[Array, ""]], tuple[PPOState, Metrics]]


def make_update(
    config: PPOConfig,
    policy_optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation,
) -> JitUpdate:
    """A jitted update on one minibatch, `(state, experience, row indices, train_policy) -> (state, metrics)`.

    It donates the state. While `train_policy` is false the critic warms up and the policy stays what it is, with its
    optimizer; one compiled function serves both.
    """

    def update(state: PPOState, experience: Experience, index: Int[Array, "N"], train_policy: Bool[Array, ""]):
        rows = lambda x: constrain(x[index], "batch", *(None,) * (x.ndim - 1))  # noqa: E731
        batch = jax.tree.map(rows, experience)
        objective = ppo_objective(config, state.kl_coef)
        models = (state.policy.model, state.critic.model)
        (policy_grads, critic_grads), metrics = gradients(objective, models, batch, config.accumulate)
        critic, critic_norm = apply_gradients(state.critic, critic_grads, critic_optimizer)
        policy, policy_norm = apply_gradients(state.policy, policy_grads, policy_optimizer)
        policy = jax.tree.map(lambda new, old: jnp.where(train_policy, new, old), policy, state.policy)
        metrics = {**metrics, "critic_grad_norm": critic_norm, "grad_norm": policy_norm}
        return PPOState(policy, critic, state.kl_coef), metrics

    return JitUpdate(update)


def run_update(
    update: Update, state: PPOState, experience: Experience, key: jax.Array, config: PPOConfig, *, train_policy: bool
) -> tuple[PPOState, Metrics]:
    """All epochs and minibatches over one batch of rollouts; metrics are means over the updates.

    Rows are shuffled anew for each epoch. `clip_fraction_first` is that of the first minibatch, whose ratio is 1.
    """
    rows = experience.mask.shape[0]
    parts, seen = config.minibatches, []
    for epoch in range(config.epochs):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), rows).reshape(parts, rows // parts)
        for part in range(parts):
            state, metrics = update(state, experience, order[part], jnp.asarray(train_policy))
            seen.append(metrics)
    mean = jax.tree.map(lambda *x: sum(x) / len(x), *seen)
    return state, {**mean, "clip_fraction_first": seen[0]["clip_fraction"]}


def adapt_kl(state: PPOState, kl: Float[Array, ""], rows: int, config: PPOConfig) -> PPOState:
    """Steers the KL coefficient to the target (arXiv 1909.08593, section 2.2); no target leaves it as it is."""
    if config.kl_target <= 0:
        return state
    error = jnp.clip(kl / config.kl_target - 1.0, -0.2, 0.2)
    return state._replace(kl_coef=state.kl_coef * (1.0 + error * rows / config.kl_horizon))
