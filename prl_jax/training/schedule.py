"""How the update of a policy uses a batch of rollouts, whatever the method."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prl_jax.errors import UserError
from prl_jax.methods import Method, Surrogate
from prl_jax.methods.surrogates import Frozen
from prl_jax.sampling import WHOLE, Support

FLAT_GROUPS = ("keep", "drop", "redraw")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How a batch of rollouts is used, and what of it counts.

    Attributes:
      group_size: responses to a prompt, which stand together.
      epochs, minibatches: passes over a batch of rollouts, and into how many parts each pass cuts it.
      accumulate: microbatches of a minibatch.
      temperature: of sampling; all log-probabilities use it.
      support: of sampling, the tokens that can be sampled; all log-probabilities leave out the others.
      missing_eos_penalty: subtracted from the reward of a response without a stop token.
      mask_truncated: leaves such responses out of what trains the policy.
      stop_kl: once the `approx_kl` of a minibatch, in nats a token, is above this, the remaining updates of the step do
        nothing; 0 for all updates.
      skip_updates: updates of a run that do nothing because their gradient is not finite or spikes, at most; with one
        more the run ends. 0 skips none.
      spike: a gradient spikes where its norm is above so many times the running mean of the norms; 0 never.
      overlong: `(buffer, penalty)`: over the last `buffer` tokens of the room a response pays up to `penalty`, see
        `losses.overlong_penalty`; () for nothing.
      length_weight: the factor of `losses.relative_brevity`, which the rewards of a group are given.
      flat_groups: what becomes of groups whose rewards are all the same: "keep", "drop" (they do not train the policy)
        or "redraw" (they are sampled again, and dropped if that does not help); dynamic sampling (arXiv 2503.14476).
      redraws: how often a group is sampled again, at most.
      reference_ema: the share of the way to the policy that the reference goes in each step; 0: it stays where it is.
      rollouts_ahead: whether the policy that samples is one step older than the one that learns from it.
      importance_cap: with it, the most that a token weighs, see `losses.truncated_importance`; 0 corrects nothing.
    """

    group_size: int = 1
    epochs: int = 2
    minibatches: int = 2
    accumulate: int = 1
    temperature: float = 1.0
    support: Support = WHOLE
    missing_eos_penalty: float = 0.0
    mask_truncated: bool = False
    stop_kl: float = 0.0
    skip_updates: int = 0
    spike: float = 0.0
    overlong: Sequence[Any] = ()
    length_weight: float = 0.0
    flat_groups: str = "keep"
    redraws: int = 1
    reference_ema: float = 0.0
    rollouts_ahead: bool = False
    importance_cap: float = 2.0

    def __post_init__(self) -> None:
        for name in ("group_size", "epochs", "minibatches", "accumulate", "redraws"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}, expected at least 1")
        if self.temperature <= 0:
            raise UserError(f"temperature={self.temperature}, expected above 0; greedy rollouts teach nothing")
        for name in ("missing_eos_penalty", "stop_kl", "skip_updates", "length_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}, expected at least 0")
        if not (self.spike == 0 or self.spike > 1):
            raise UserError(f"spike={self.spike}, expected 0 (never) or a number above 1")
        if self.spike and not self.skip_updates:
            raise UserError(f"spike={self.spike}: with skip_updates=0 no update is skipped; set it, or spike=0")
        if self.stop_kl and self.epochs * self.minibatches == 1:
            raise UserError(f"stop_kl={self.stop_kl}: a step has one update (epochs=1, minibatches=1); set it to 0")
        numbers = [float(x) for x in self.overlong if isinstance(x, int | float) and x > 0]
        if len(numbers) != len(self.overlong) or len(numbers) not in (0, 2):
            raise UserError(f"overlong={self.overlong}, expected () or (buffer, penalty): tokens and reward, above 0")
        object.__setattr__(self, "overlong", tuple(numbers))
        if self.length_weight and self.group_size == 1:
            raise UserError(f"length_weight={self.length_weight}: compares lengths in a group, and group_size is 1")

        if self.flat_groups not in FLAT_GROUPS:
            raise UserError(f"flat_groups={self.flat_groups!r}, expected one of {', '.join(map(repr, FLAT_GROUPS))}")
        if self.flat_groups != "keep" and self.group_size == 1:
            raise UserError(f"flat_groups={self.flat_groups!r}: one response is always a flat group; set group_size")
        if self.flat_groups != "redraw" and self.redraws != 1:
            raise UserError(f"redraws={self.redraws}: nothing is drawn again with flat_groups={self.flat_groups!r}")
        if not 0 <= self.reference_ema < 1:
            raise UserError(f"reference_ema={self.reference_ema}, expected at least 0 and below 1")
        if not (self.importance_cap == 0 or self.importance_cap >= 1):
            raise UserError(f"importance_cap={self.importance_cap}, expected 0 (none is corrected) or at least 1")
        if self.rollouts_ahead and self.flat_groups == "redraw":
            raise UserError(
                "rollouts_ahead=True: with flat_groups='redraw' a newer policy would draw again what an older one has "
                "drawn; set flat_groups='drop'"
            )

    @property
    def draws(self) -> int:
        """How often the responses to a prompt are drawn, at most."""
        return 1 + self.redraws if self.flat_groups == "redraw" else 1

    @property
    def distribution(self) -> tuple[float, Support]:
        """Temperature and support: the last arguments of `response_logprobs`."""
        return self.temperature, self.support

    @property
    def guarded(self) -> bool:
        """Whether an update may do nothing."""
        return self.stop_kl > 0 or self.skip_updates > 0


def check_together(method: Method, schedule: Schedule) -> None:
    """Raises `UserError`, which begins with the key, where a method and a schedule cannot work together."""
    method.check_group(schedule.group_size)
    for name, value in (("overlong", schedule.overlong), ("length_weight", schedule.length_weight)):
        if value and method.baseline.bootstraps:
            raise UserError(
                f"{name}={value}: with baseline.bootstrap_truncated a response without a stop token earns the critic's "
                "value, however long it is; set one of them to its default"
            )
    if schedule.missing_eos_penalty and method.baseline.bootstraps:
        raise UserError(
            f"missing_eos_penalty={schedule.missing_eos_penalty}: with baseline.bootstrap_truncated a response without "
            "a stop token earns the critic's value and no score to subtract it from; set one of them to 0"
        )
    if schedule.missing_eos_penalty and schedule.mask_truncated and not method.baseline.reads_values:
        raise UserError(
            f"missing_eos_penalty={schedule.missing_eos_penalty}: with mask_truncated nobody learns from responses "
            "without a stop token; set one of them to 0"
        )
    beside = dict(overlong=schedule.overlong, length_weight=schedule.length_weight)
    for name, value in {"missing_eos_penalty": schedule.missing_eos_penalty, **beside}.items():
        if value and (method.baseline.reads_differences or method.baseline.reads_greedy):
            raise UserError(
                f"{name}={value}: the baseline {method.baseline.kind!r} compares what judges say alone, and this would "
                "not be among it; set it to its default"
            )
    if schedule.flat_groups != "keep" and method.baseline.least_group == 1 and method.surrogate.unit == 1:
        raise UserError(
            f"flat_groups={schedule.flat_groups!r}: with the baseline {method.baseline.kind!r} responses that all earn "
            "the same teach something too; set it to 'keep'"
        )
    if schedule.flat_groups == "redraw" and method.reward.relative:
        raise UserError(
            f"flat_groups='redraw': the reward {method.reward.kind!r} depends on all responses of a step, and some "
            "would be drawn later; set it to 'drop'"
        )
    if schedule.stop_kl and not _measures_kl(method.surrogate):
        raise UserError(
            f"stop_kl={schedule.stop_kl}: the surrogate {method.surrogate.kind!r} does not measure how far the policy "
            "is from that which sampled (approx_kl); set it to 0"
        )


def _measures_kl(surrogate: Surrogate) -> bool:
    """Whether a surrogate logs `approx_kl`."""

    def logged() -> dict[str, tuple[jax.Array, jax.Array]]:
        tokens = jnp.zeros((2, 1), jnp.float32)
        return surrogate(tokens, Frozen(tokens, tokens, tokens, tokens == 0), jnp.float32(0)).aux

    return "approx_kl" in jax.eval_shape(logged)
