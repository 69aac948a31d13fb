"""Updates that may do nothing, which is decided where the numbers are: the host never waits for them.

Once the policy has gone far enough in a step, what remains of the step is left out; and so is an update whose gradient
would do harm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from prl_jax.models import combine, split
from prl_jax.training.schedule import Schedule
from prl_jax.training.state import Guard, PolicyState, TrainState
from prl_jax.training.step import Metrics, apply_gradients

Learners = dict[str, TrainState]
NORMS = {"policy": "grad_norm", "critic": "critic_grad_norm"}  # the metric of each learner's gradient
_RAN, _STOPPED, _SKIPPED = "updates_run", "stopped_updates", "skipped_updates"


class Guarded:
    """Updates of models by their gradients, as far as a schedule lets them.

    Args:
      optimizers: of the models that learn, by the names of `NORMS`.
      schedule: `stop_kl`, `skip_updates` and `spike` of it.
    """

    def __init__(self, optimizers: Mapping[str, optax.GradientTransformation], schedule: Schedule):
        self._optimizers, self._schedule = optimizers, schedule

    def __call__(
        self,
        learners: Learners,
        guard: Guard | None,
        compute: Callable[[Learners], tuple[dict[str, Any], Metrics]],
    ) -> tuple[Learners, Guard | None, Metrics]:
        """One update.

        Args:
          learners: who learns.
          guard: None where every update runs.
          compute: returns the gradients of the learners, by their names, and metrics.

        Returns:
          The learners, the guard, and the metrics; of a guarded update that did nothing these are 0. Beside them it
          counts itself: whether it ran, whether the step was stopped before it, and the updates skipped in the run.
        """
        if guard is None:
            grads, metrics = compute(learners)
            learners, norms = self._apply(learners, grads)
            return learners, None, {**metrics, **norms}
        trained, frozen = split(learners)
        begins = guard.stopped == 0
        gradients = lambda trained: compute(combine(trained, frozen))  # noqa: E731
        if self._schedule.stop_kl:
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradients, trained))
            grads, metrics = jax.lax.cond(begins, gradients, lambda _: nothing, trained)
        else:
            grads, metrics = gradients(trained)
        norms = {NORMS[name]: optax.tree.norm(grads[name]) for name in learners}
        runs = begins & self._sound(guard, metrics["loss"], norms)
        apply = lambda trained: split(self._apply(combine(trained, frozen), grads)[0])[0]  # noqa: E731
        trained = jax.lax.cond(runs, apply, lambda trained: trained, trained)
        metrics = {name: jnp.where(runs, x, 0.0) for name, x in {**metrics, **norms}.items()}
        counts = {_RAN: runs.astype(jnp.float32)}
        if self._schedule.stop_kl:
            counts[_STOPPED] = guard.stopped
        guard = self._after(guard, begins, runs, metrics, norms)
        if self._schedule.skip_updates:
            counts[_SKIPPED] = guard.skipped
        return combine(trained, frozen), guard, {**metrics, **counts}

    def _apply(self, learners: Learners, grads: Mapping[str, Any]) -> tuple[Learners, Metrics]:
        """The updated learners, and the norms of their gradients."""
        updated, norms = {}, {}
        for name in sorted(learners):
            updated[name], norms[NORMS[name]] = apply_gradients(learners[name], grads[name], self._optimizers[name])
        return updated, norms

    def _sound(self, guard: Guard, loss: Float[Array, ""], norms: Metrics) -> Bool[Array, ""]:
        """Whether a gradient can be trusted; whether it spikes shows beside earlier ones alone."""
        if not self._schedule.skip_updates:
            return jnp.array(True)
        sound = jnp.isfinite(loss)
        for name, norm in norms.items():
            mean = guard.norms[name]
            spikes = (self._schedule.spike > 0) & (mean > 0) & (norm > self._schedule.spike * mean)
            sound &= jnp.isfinite(norm) & ~spikes
        return sound

    def _after(
        self, guard: Guard, begins: Bool[Array, ""], runs: Bool[Array, ""], metrics: Metrics, norms: Metrics
    ) -> Guard:
        """The guard behind an update, which began unless the step was stopped, and ran if its gradient was sound.

        A tenth of a running mean is new; gradients of 0, of batches that teach nothing, do not count.
        """
        means = dict(guard.norms)
        for name, norm in norms.items():
            mean = means[name]
            moved = jnp.where(mean == 0, norm, 0.9 * mean + 0.1 * norm)
            means[name] = jnp.where(runs & (norm > 0), moved, mean)
        stopped = guard.stopped
        if self._schedule.stop_kl and "approx_kl" in metrics:
            stopped = jnp.where(metrics["approx_kl"] > self._schedule.stop_kl, 1.0, stopped)
        return Guard(stopped, guard.skipped + jnp.where(begins & ~runs, 1.0, 0.0), means)


def begun(state: PolicyState) -> PolicyState:
    """The state at the first update of a step."""
    if state.guard is None:
        return state
    return state._replace(guard=state.guard._replace(stopped=0.0 * state.guard.stopped))


def averaged(seen: Sequence[Metrics]) -> Metrics:
    """The metrics of a step from those of its updates: means over the updates that ran, the share of those before
    which the step was stopped, and how many have been skipped since the run began."""
    mean = jax.tree.map(lambda *x: sum(x) / len(x), *seen)
    if _RAN not in mean:
        return mean
    ran = mean.pop(_RAN)
    shares = {name: mean.pop(name) for name in (_STOPPED,) if name in mean}
    counts = {name: seen[-1][name] for name in (_SKIPPED,) if mean.pop(name, None) is not None}
    return {name: x / jnp.where(ran > 0, ran, 1.0) for name, x in mean.items()} | shares | counts
