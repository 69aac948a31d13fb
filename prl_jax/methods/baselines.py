"""Piece 4: what is subtracted from a reward before it moves the policy."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prl_jax.losses import gae, group_advantage, ppo_value_loss
from prl_jax.masked import masked_whiten
from prl_jax.methods.checks import check_range
from prl_jax.types import LossOutput


class Values(NamedTuple):
    """The values of a critic: `[N, T]` before each token of the response, `[N]` behind the last one."""

    before: Float[Array, "N T"]
    after: Float[Array, "N"]


class Rewards(NamedTuple):
    """Rewards of `N` responses of up to `T` tokens; the responses to one prompt stand together.

    Attributes:
      tokens: `[N, T]` float32, with the score on the last token of a response.
      mask: `[N, T]` bool, tokens of responses.
      trained: `[N, T]` bool, those of them that train the policy.
      truncated: `[N]` bool, responses that ran out of room.
      group_size: how many responses a prompt has.
    """

    tokens: Float[Array, "N T"]
    mask: Bool[Array, "N T"]
    trained: Bool[Array, "N T"]
    truncated: Bool[Array, "N"]
    group_size: int


@runtime_checkable
class Baseline(Protocol):
    """Rewards in, advantages out.

    Attributes:
      kind: its name in configs.
      reads_values: whether it has a critic, with an optimizer, a warm-up and memory of its own. Whoever needs a field
        of the critic asks for the class `Critic` instead, whose fields the type checker knows.
      least_group: how many responses a prompt needs at least.
      bootstraps: whether a truncated response earns a value in place of its score.
    """

    kind: ClassVar[str]
    reads_values: ClassVar[bool]
    least_group: ClassVar[int]

    @property
    def bootstraps(self) -> bool: ...

    def __call__(
        self, rewards: Rewards, values: Values | None
    ) -> tuple[Float[Array, "N T"], Float[Array, "N T"] | None]:
        """Advantages, 0 off the mask, and the critic's targets, None without a critic; both without gradient."""
        ...


@dataclasses.dataclass(frozen=True)
class Critic:
    """A value model and generalised advantage estimation (arXiv 1506.02438, equation 16).

    Attributes:
      gamma: the discount of later rewards.
      lam_actor: lambda of the advantages.
      lam_critic: lambda of the critic's targets.
      whiten: whether advantages are whitened over all tokens of the batch that train the policy. A divergence in the
        reward is whitened with them; one in the loss is then weighed against advantages of deviation 1, whatever the
        size of the rewards.
      bootstrap_truncated: whether a truncated response is worth V behind its last token, in place of its score.
      clip: how far a value may move from its old one at once, as a share of the running deviation of the returns; 0 for
        any distance.
      weight: the factor of the value loss.
      sees_opponent: whether the critic reads the opponent that the response is compared with.
    """

    kind: ClassVar[str] = "critic"
    reads_values: ClassVar[bool] = True
    least_group: ClassVar[int] = 1
    gamma: float = 1.0
    lam_actor: float = 0.95
    lam_critic: float = 1.0
    whiten: bool = True
    bootstrap_truncated: bool = False
    clip: float = 0.0
    weight: float = 1.0
    sees_opponent: bool = False

    def __post_init__(self) -> None:
        check_range(self, ("gamma", "lam_actor", "lam_critic"), 0.0, 1.0)
        check_range(self, ("clip",), 0.0, float("inf"))
        check_range(self, ("weight",), 0.0, float("inf"), above=True)

    @property
    def bootstraps(self) -> bool:
        return self.bootstrap_truncated

    def __call__(self, rewards, values):
        bootstrap = jnp.where(rewards.truncated & self.bootstrap_truncated, values.after, 0.0)
        lambdas = dict(lam_actor=self.lam_actor, lam_critic=self.lam_critic)
        advantages, returns = gae(
            rewards.tokens, values.before, rewards.mask, bootstrap=bootstrap, gamma=self.gamma, **lambdas
        )
        return masked_whiten(advantages, rewards.trained) if self.whiten else advantages, returns

    def loss(
        self,
        values: Float[Array, "N T"],
        values_old: Float[Array, "N T"],
        returns: Float[Array, "N T"],
        mask: Bool[Array, "N T"],
        deviation: Float[Array, ""] | None = None,
    ) -> LossOutput:
        """The value loss of tokens `[N, T]`, see `losses.ppo_value_loss`; `deviation` is that of the returns."""
        clip = None if deviation is None else self.clip * deviation
        return ppo_value_loss(values, values_old, returns, mask, clip_value=clip)


class _OfResponses:
    """Baselines without a critic: each response has one advantage, which all of its tokens get."""

    reads_values: ClassVar[bool] = False

    @property
    def bootstraps(self) -> bool:
        return False

    def __call__(self, rewards, values):
        whole = jnp.where(rewards.mask, rewards.tokens, 0.0).sum(-1).reshape(-1, rewards.group_size)
        counts = rewards.trained.any(-1).reshape(whole.shape)
        advantages = self.of_groups(whole, counts).reshape(-1, 1)
        return jnp.where(rewards.mask, advantages, 0.0), None

    def of_groups(self, rewards: Float[Array, "B G"], counts: Bool[Array, "B G"]) -> Float[Array, "B G"]:
        """Advantages of `B` groups of `G` responses; `counts` has those that train the policy."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class GroupMean(_OfResponses):
    """Minus the mean of the rewards of all responses to the prompt."""

    kind: ClassVar[str] = "group_mean"
    least_group: ClassVar[int] = 2

    def of_groups(self, rewards, counts):
        return group_advantage(rewards, counts, kind="mean")


@dataclasses.dataclass(frozen=True)
class LeaveOneOut(_OfResponses):
    """Minus the mean of the rewards of the other responses to the prompt (RLOO, arXiv 2402.14740)."""

    kind: ClassVar[str] = "leave_one_out"
    least_group: ClassVar[int] = 2

    def of_groups(self, rewards, counts):
        return group_advantage(rewards, counts, kind="leave_one_out")


@dataclasses.dataclass(frozen=True)
class Standardised(_OfResponses):
    """Minus the mean of the rewards of all responses to the prompt, over their deviation (GRPO, arXiv 2402.03300).

    Attributes:
      ddof: 1 for the deviation of the sample, 0 for that of the population.
      eps: what is added to the deviation.
    """

    kind: ClassVar[str] = "standardised"
    least_group: ClassVar[int] = 2
    ddof: int = 1
    eps: float = 1e-4

    def __post_init__(self) -> None:
        check_range(self, ("ddof",), 0, 1)
        check_range(self, ("eps",), 0.0, float("inf"))

    def of_groups(self, rewards, counts):
        return group_advantage(rewards, counts, kind="standardised", ddof=self.ddof, eps=self.eps)


@dataclasses.dataclass(frozen=True)
class Constant(_OfResponses):
    """Minus a number.

    Attributes:
      value: the number, such as the reward of an even match.
    """

    kind: ClassVar[str] = "constant"
    least_group: ClassVar[int] = 1
    value: float = 0.0

    def of_groups(self, rewards, counts):
        return jnp.where(counts, rewards - self.value, 0.0)
