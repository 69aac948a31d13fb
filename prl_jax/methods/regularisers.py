"""Piece 6: what holds the policy near its reference, and its entropy up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prl_jax.errors import UserError
from prl_jax.losses import entropy_loss, kl_estimate, reduce_tokens
from prl_jax.methods.checks import check_range, check_word
from prl_jax.types import LossOutput


@runtime_checkable
class Regulariser(Protocol):
    """A Kullback-Leibler divergence to the reference, with a coefficient that may be steered, and entropy.

    Attributes:
      kind: its name in configs.
      inside: whether the surrogate itself holds the divergence.
      coefficient: the factor of the divergence, at the start.
      steer: `(target, horizon)`: the coefficient is steered so that a response's divergence comes to the target, in
        nats, over about so many responses; () keeps the coefficient.
      entropy: the factor of the entropy bonus, at the start.
      ends: the coefficient and the factor of the entropy bonus at the last step, to which they go linearly from the
        first one; () keeps both.
    """

    kind: ClassVar[str]
    inside: ClassVar[bool]

    @property
    def coefficient(self) -> float: ...

    @property
    def steer(self) -> tuple[float, ...]: ...

    @property
    def entropy(self) -> float: ...

    @property
    def ends(self) -> tuple[float, ...]: ...

    @property
    def reads_reference(self) -> bool:
        """Whether the policy is held to the reference at all."""
        ...

    def reference(self, logp_old: Float[Array, "N T"], logp_ref: Float[Array, "N T"]) -> Float[Array, "N T"]:
        """Log-probs of what the policy is held to, from those of the policy that sampled and of the reference."""
        ...

    def reward(
        self, logp: Float[Array, "N T"], logp_ref: Float[Array, "N T"], coefficient: Float[Array, ""]
    ) -> Float[Array, "N T"]:
        """Returns what each token adds to the reward."""
        ...

    def terms(
        self,
        logp: Float[Array, "N T"],
        logp_ref: Float[Array, "N T"],
        entropy: Float[Array, "N T"],
        mask: Bool[Array, "N T"],
        reduce: str,
    ) -> Mapping[str, LossOutput]:
        """Terms of the loss beside the surrogate, reduced as the surrogate is; of those that have a weight."""
        ...

    def weights(
        self, coefficient: Float[Array, ""], entropy: Float[Array, ""] | None = None
    ) -> Mapping[str, float | Float[Array, ""]]:
        """Factors of the terms; `entropy` is that of the entropy bonus where it changes, else None."""
        ...


@dataclasses.dataclass(frozen=True)
class _KL:
    """The parts that all regularisers share: the entropy bonus, and how the coefficient starts and is steered."""

    inside: ClassVar[bool] = False
    coefficient: float = 0.05
    steer: tuple[float, ...] = ()
    entropy: float = 0.0
    ends: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_range(self, ("coefficient", "entropy"), 0.0, float("inf"))
        object.__setattr__(self, "ends", tuple(map(float, self.ends)))
        if self.ends and (len(self.ends) != 2 or min(self.ends) < 0):
            raise UserError(f"ends={self.ends}, expected () or (coefficient, entropy), both at least 0")
        if self.ends and self.steer:
            raise UserError(f"ends={self.ends} with steer: the coefficient follows one of them; set the other to ()")
        object.__setattr__(self, "steer", tuple(map(float, self.steer)))
        if self.steer and (len(self.steer) != 2 or min(self.steer) <= 0):
            raise UserError(f"steer={self.steer}, expected () or (target, horizon): nats and responses, both above 0")
        if self.steer and not self.coefficient:
            raise UserError("coefficient=0 with steer: a coefficient of 0 stays 0; start above it")

    @property
    def reads_reference(self) -> bool:
        return self.coefficient > 0 or any(self.ends[:1])

    def reference(self, logp_old, logp_ref):
        return logp_ref

    def reward(self, logp, logp_ref, coefficient):
        return jnp.zeros_like(logp)

    def terms(self, logp, logp_ref, entropy, mask, reduce):
        return {"entropy_loss": entropy_loss(entropy, mask, reduce=reduce)} if self._rewards_entropy else {}

    def weights(self, coefficient, entropy=None):
        return {"entropy_loss": self.entropy if entropy is None else entropy} if self._rewards_entropy else {}

    @property
    def _rewards_entropy(self) -> bool:
        """Whether there is an entropy bonus, at any step."""
        return self.entropy > 0 or any(self.ends[1:])


@dataclasses.dataclass(frozen=True)
class RewardKL(_KL):
    """The divergence as a reward: each token pays its own log-ratio (k1), and, by its advantage, later ones."""

    kind: ClassVar[str] = "reward_kl"

    def reward(self, logp, logp_ref, coefficient):
        return -coefficient * kl_estimate(logp, logp_ref, kind="k1")


@dataclasses.dataclass(frozen=True)
class LossKL(_KL):
    """The divergence as a term of the loss, token by token: no token pays for later ones.

    Attributes:
      estimator: how a token's divergence is estimated: "k2", whose gradient is that of the divergence, or "k3", see
        `losses.kl_estimate`. (The gradient of k1 is 0 in expectation.)
    """

    kind: ClassVar[str] = "loss_kl"
    estimator: str = "k3"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word(self, "estimator", ("k2", "k3"))

    def terms(self, logp, logp_ref, entropy, mask, reduce):
        kl = kl_estimate(logp, logp_ref, self.estimator, mask=mask)
        others = super().terms(logp, logp_ref, entropy, mask, reduce)
        return {**others, "kl_loss": LossOutput(*reduce_tokens(kl, mask, reduce))}

    def weights(self, coefficient, entropy=None):
        return {**super().weights(coefficient, entropy), "kl_loss": coefficient}


@dataclasses.dataclass(frozen=True)
class InsideKL(_KL):
    """The divergence inside the surrogate, which compares log-ratios to the reference itself."""

    kind: ClassVar[str] = "inside_kl"
    inside: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, ("coefficient",), 0.0, float("inf"), above=True)
        if self.ends and not self.ends[0]:
            raise UserError(f"ends={self.ends}: the coefficient inside the surrogate stays above 0")


@dataclasses.dataclass(frozen=True)
class Mixture(InsideKL):
    """The divergence inside the surrogate, to a geometric mixture of the reference and the policy that sampled.

    Attributes:
      previous: the weight of the policy that sampled; the reference has the remainder. 1 is a step of mirror descent
        from there (SPPO, arXiv 2405.00675), and between 0 and 1 the step is that of INPO (arXiv 2407.00617), which is
        held to both.
    """

    kind: ClassVar[str] = "mixture"
    previous: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, ("previous",), 0.0, 1.0)
        if self.steer and self.previous == 1:
            raise UserError(f"steer={self.steer}: with previous=1 the reference holds nothing back; set it to ()")

    @property
    def reads_reference(self) -> bool:
        return self.previous < 1

    def reference(self, logp_old, logp_ref):
        return self.previous * logp_old + (1.0 - self.previous) * logp_ref
