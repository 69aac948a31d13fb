"""The state that a training step carries from one step to the next."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from prl_jax.methods import Critic, Method
from prl_jax.methods.rewards import Moments
from prl_jax.methods.scores import with_more
from prl_jax.models import Decoder, combine, split
from prl_jax.sharding import replicated, tree_shardings

Tree = TypeVar("Tree")


class TrainState(NamedTuple):
    """A model with its optimizer.

    Attributes:
      model: the parameters, as a module: a `Decoder` or a `ScalarModel`.
      opt_state: state of the optimizer, of what is trained of the model, sharded like it.
      step: int32 scalar, updates done.
    """

    model: Any  # the tests' check of annotations cannot read a NamedTuple that is generic in its model
    opt_state: Any
    step: jax.Array


def create_state(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    logical_axes: Mapping[str, tuple[str, ...]],
) -> TrainState:
    """A model that has no update behind it, with a fresh optimizer state for what is trained, sharded like it."""
    trained, _ = split(model)
    # Without out_shardings, jit would forget the parameters' sharding here.
    shardings = tree_shardings(jax.eval_shape(optimizer.init, trained), mesh, logical_axes)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings)(trained)
    return TrainState(model, opt_state, jax.device_put(jnp.zeros((), jnp.int32), replicated(mesh)))


def released(state: Tree) -> Tree:
    """The same state without what is trained, whose arrays are freed: shapes and shardings are in their place.

    What a checkpoint is restored onto, so that it needs no more memory than the state that it replaces.
    """
    trained, frozen = split(state)

    def release(x: jax.Array) -> jax.ShapeDtypeStruct:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        x.delete()
        return shape

    return combine(jax.tree.map(release, trained), frozen)


def copied(model: Tree) -> Tree:
    """The same model; what is trained of it has arrays of its own."""
    trained, frozen = split(model)
    return combine(jax.tree.map(jnp.copy, trained), frozen)


class Guard(NamedTuple):
    """The numbers that say whether an update runs; float32 scalars.

    Attributes:
      stopped: 1 where the remaining updates of the step do nothing, else 0.
      skipped: updates of the run that did nothing because of their gradient.
      norms: running means of the norms of gradients, by the names of their metrics; 0 before the first one.
    """

    stopped: Float[Array, ""]
    skipped: Float[Array, ""]
    norms: Mapping[str, Float[Array, ""]]


class PolicyState(NamedTuple):
    """The state that an update carries from one step to the next.

    Attributes:
      policy: with its optimizer.
      critic: likewise, where the method has values; else None.
      kl_coef: float32 scalar, the regulariser's coefficient.
      deviation: float32 scalar, the running deviation of the returns, 0 before the first ones; None where no value is
        clipped by it.
      past: earlier policies, the oldest first, where the opponents ask for them; at first they are all the start. No
        update reads them.
      guard: where updates may do nothing; else None.
      entropy: float32 scalar, the factor of the entropy bonus, where it changes from step to step; else None.
      scores: the moments of the scores that were met, where the reward normalises by them; else None. No update reads
        them.
      reference: the policy that the divergence is taken to, where it follows the policy; else None. No update reads it.
    """

    policy: TrainState
    critic: TrainState | None
    kl_coef: Float[Array, ""]
    deviation: Float[Array, ""] | None = None
    past: tuple[Decoder, ...] = ()
    guard: Guard | None = None
    entropy: Float[Array, ""] | None = None
    reference: Decoder | None = None
    scores: Moments | None = None


def initial_state(
    policy: TrainState,
    critic: TrainState | None,
    method: Method,
    *,
    number: Callable[[float], Any] | None = None,
    copy: Callable[[Decoder], Decoder] = copied,
    guarded: bool = False,
    follows: bool = False,
) -> PolicyState:
    """The state before the first update.

    Args:
      policy, critic: with their optimizers.
      method: what the state is for.
      number: makes a float32 number of the state; by default where the policy's step is.
      copy: makes an earlier policy, or a reference, of a model.
      guarded: whether updates may do nothing.
      follows: whether the reference follows the policy.
    """
    if number is None:
        number = lambda x: jax.device_put(jnp.float32(x), policy.step.sharding)  # noqa: E731
    # Values are clipped by a share of the deviation.
    clips = isinstance(method.baseline, Critic) and method.baseline.clip > 0
    deviation = number(0.0) if clips else None
    past = tuple(copy(policy.model) for _ in range(method.opponents.remembers))
    guard = None
    if guarded:
        norms = ("grad_norm",) if critic is None else ("critic_grad_norm", "grad_norm")
        guard = Guard(number(0.0), number(0.0), {name: number(0.0) for name in norms})
    entropy = number(method.regulariser.entropy) if method.regulariser.ends else None
    reference = copy(policy.model) if follows else None
    kl_coef = number(method.regulariser.coefficient)
    scores = Moments(number(0.0), number(0.0), number(0.0)) if method.reward.normalises else None
    return PolicyState(policy, critic, kl_coef, deviation, past, guard, entropy, reference, scores)


def learning(state: PolicyState) -> PolicyState:
    """The part of a state that updates read and change: without models that only stand by."""
    return state._replace(past=(), reference=None, scores=None)


def with_returns(state: PolicyState, deviation: Float[Array, ""]) -> PolicyState:
    """The state once it has met a batch whose returns have this deviation: a tenth of the running one is new."""
    if state.deviation is None:
        return state
    return state._replace(deviation=jnp.where(state.deviation == 0, deviation, 0.9 * state.deviation + 0.1 * deviation))


def with_scores(state: PolicyState, scores: Float[Array, "N"] | None) -> PolicyState:
    """The state once it has met these scores."""
    if state.scores is None or scores is None:
        return state
    moments = with_more(state.scores, scores)
    # What is added to keeps its place on the devices.
    return state._replace(scores=jax.tree.map(lambda old, new: 0.0 * old + new, state.scores, moments))


def steer_kl(state: PolicyState, kl: Float[Array, ""], rows: int, method: Method) -> PolicyState:
    """Steers the coefficient of the divergence to its target, where it has one; for steps that train the policy.

    The factor is the exponential of the relative error, at most a fifth, times the share of the horizon that the step's
    rows are: it stays positive whatever they are (arXiv 1909.08593, section 2.2, has its tangent at 1).
    """
    if not method.regulariser.steer:
        return state
    target, horizon = method.regulariser.steer
    error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
    return state._replace(kl_coef=state.kl_coef * jnp.exp(error * min(rows / horizon, 1.0)))


def scheduled(state: PolicyState, n: int, total: int, method: Method) -> PolicyState:
    """The state at the beginning of step `n` of `total`: where the coefficient of the divergence and the factor of the
    entropy bonus have ends, they are on their lines from the first step to the last."""
    regulariser = method.regulariser
    if not regulariser.ends or state.entropy is None:
        return state
    share = (n - 1) / max(total - 1, 1)
    numbers = (
        start + share * (end - start)
        for start, end in zip((regulariser.coefficient, regulariser.entropy), regulariser.ends, strict=True)
    )
    # What is added to keeps its place on the devices.
    kl_coef, entropy = (0.0 * old + new for old, new in zip((state.kl_coef, state.entropy), numbers, strict=True))
    return state._replace(kl_coef=kl_coef, entropy=entropy)


def remember(state: PolicyState, n: int, every: int) -> PolicyState:
    """The state after step `n`: each `every` steps the policy takes the place of the oldest of the earlier ones."""
    if not state.past or n % every:
        return state
    return state._replace(past=(*state.past[1:], copied(state.policy.model)))


def refreshed(state: PolicyState, n: int, every: int) -> PolicyState:
    """The state after step `n`: each `every` steps, if that is not 0, the reference becomes what the policy is."""
    if not every or n % every:
        return state
    return state._replace(reference=copied(state.policy.model))


class JitUpdate:
    """A jitted `(state, *arguments) -> (state, metrics)` that donates the state and gives the new one its shardings.

    What is frozen (`models.split`) is neither donated nor copied: the new state has the same arrays. Left to itself the
    compiler chooses the shardings: parameters would come back cut in another way than they went in, and the second call
    would compile once more.
    """

    def __init__(self, update: Callable[..., tuple[Any, Any]]):
        self._update = update
        self._compiled = functools.cache(self._jitted)

    def __call__(self, state: Any, *arguments: Any) -> tuple[Any, Any]:
        trained, frozen = split(state)
        trained, metrics = self._for(trained)(trained, frozen, *arguments)
        return combine(trained, frozen), metrics

    def trace(self, state: Any, *arguments: Any) -> jax.stages.Traced:
        """The same function for abstract arrays with shardings, ahead of time: `.lower().compile()` goes on."""
        trained, frozen = split(state)
        return self._for(trained).trace(trained, frozen, *arguments)

    def _for(self, trained: Any) -> Any:
        leaves, structure = jax.tree.flatten(trained)
        return self._compiled(structure, tuple(leaf.sharding for leaf in leaves))

    def _jitted(self, structure: Any, shardings: tuple[Any, ...]) -> Any:
        def trained_alone(trained: Any, frozen: Any, *arguments: Any) -> tuple[Any, Any]:
            state, metrics = self._update(combine(trained, frozen), *arguments)
            return split(state)[0], metrics

        trained_alone.__name__ = self._update.__name__  # what compiles is known by its own name
        return jax.jit(trained_alone, donate_argnums=0, out_shardings=(jax.tree.unflatten(structure, shardings), None))
