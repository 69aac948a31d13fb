"""Piece 4: what is subtracted from a reward before it moves the policy."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prl_jax.losses import difference_advantage, gae, group_advantage, ppo_value_loss
from prl_jax.masked import masked_var, masked_whiten
from prl_jax.methods.checks import check_range, check_word
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
      differences: `[N, G]` float32, by how much a response is better than each member of its group that it met, and
        `[N, G]` bool, whom it met; None where nobody asks.
      greedy: `[N]` float32, the reward of the likeliest response to the prompt; None where nobody asks.
    """

    tokens: Float[Array, "N T"]
    mask: Bool[Array, "N T"]
    trained: Bool[Array, "N T"]
    truncated: Bool[Array, "N"]
    group_size: int
    differences: tuple[Float[Array, "N G"], Bool[Array, "N G"]] | None = None
    greedy: Float[Array, "N"] | None = None


@runtime_checkable
class Baseline(Protocol):
    """Rewards in, advantages out.

    Attributes:
      kind: its name in configs.
      reads_values: whether it has a critic, with an optimizer, a warm-up and memory of its own. Whoever needs a field
        of the critic asks for the class `Critic` instead, whose fields the type checker knows.
      reads_differences: whether it needs each comparison of a group, and not their reward alone.
      reads_greedy: whether it needs the reward of the likeliest response to the prompt, which is sampled for it.
      whole: whether all tokens of a response have one advantage.
      keeps_gaps: whether the gap of two advantages is that of the rewards.
      least_group: how many responses a prompt needs at least.
      bootstraps: whether a truncated response earns a value in place of its score.
    """

    kind: ClassVar[str]
    reads_values: ClassVar[bool]
    reads_differences: ClassVar[bool]
    reads_greedy: ClassVar[bool]
    whole: ClassVar[bool]
    keeps_gaps: ClassVar[bool]
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
    reads_differences: ClassVar[bool] = False
    reads_greedy: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    keeps_gaps: ClassVar[bool] = False
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


class _WithoutValues:
    """Baselines without a critic."""

    reads_values: ClassVar[bool] = False
    reads_differences: ClassVar[bool] = False
    reads_greedy: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    keeps_gaps: ClassVar[bool] = False
    least_group: ClassVar[int] = 1

    @property
    def bootstraps(self) -> bool:
        return False


class _OfResponses(_WithoutValues):
    """Baselines by which each response has one advantage, which all of its tokens get."""

    def __call__(self, rewards, values):
        whole = jnp.where(rewards.mask, rewards.tokens, 0.0).sum(-1).reshape(-1, rewards.group_size)
        counts = rewards.trained.any(-1).reshape(whole.shape)
        advantages = self.of_groups(whole, counts, rewards).reshape(-1, 1)
        return jnp.where(rewards.mask, advantages, 0.0), None

    def of_groups(
        self, whole: Float[Array, "B G"], counts: Bool[Array, "B G"], rewards: Rewards
    ) -> Float[Array, "B G"]:
        """Advantages of `B` groups of `G` responses.

        Args:
          whole: the rewards of whole responses.
          counts: the responses that train the policy.
          rewards: all that is known of them.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class GroupMean(_OfResponses):
    """Minus the mean of the rewards of all responses to the prompt."""

    kind: ClassVar[str] = "group_mean"
    keeps_gaps: ClassVar[bool] = True
    least_group: ClassVar[int] = 2

    def of_groups(self, whole, counts, rewards):
        return group_advantage(whole, counts, kind="mean")


@dataclasses.dataclass(frozen=True)
class LeaveOneOut(_OfResponses):
    """Minus the mean of the rewards of the other responses to the prompt (RLOO, arXiv 2402.14740)."""

    kind: ClassVar[str] = "leave_one_out"
    least_group: ClassVar[int] = 2

    def of_groups(self, whole, counts, rewards):
        return group_advantage(whole, counts, kind="leave_one_out")


SCALES = ("group", "batch")


@dataclasses.dataclass(frozen=True)
class Standardised(_OfResponses):
    """Minus the mean of the rewards of all responses to the prompt, over a deviation (GRPO, arXiv 2402.03300).

    Attributes:
      scale: whose deviation it is: that of the "group", or that of the rewards of the whole "batch".
      ddof: 1 for the deviation of the sample, 0 for that of the population.
      eps: what is added to the deviation.
      limit: how far an advantage may be from 0; 0 for any distance.
    """

    kind: ClassVar[str] = "standardised"
    least_group: ClassVar[int] = 2
    scale: str = "group"
    ddof: int = 1
    eps: float = 1e-4
    limit: float = 0.0

    def __post_init__(self) -> None:
        check_word(self, "scale", SCALES)
        check_range(self, ("ddof",), 0, 1)
        check_range(self, ("eps", "limit"), 0.0, float("inf"))

    def of_groups(self, whole, counts, rewards):
        if self.scale == "group":
            found = group_advantage(whole, counts, kind="standardised", ddof=self.ddof, eps=self.eps)
        else:
            deviation = jnp.sqrt(masked_var(whole, counts, ddof=self.ddof))
            found = group_advantage(whole, counts, kind="mean") / jnp.maximum(deviation + self.eps, 1e-12)
        return jnp.clip(found, -self.limit, self.limit) if self.limit else found


@dataclasses.dataclass(frozen=True)
class Difference(_OfResponses):
    """By how much the response is better than the others to the prompt, over the root mean square of all differences.

    Differences of the reward alone: what a divergence adds to it is not among them.

    Attributes:
      eps: what is added inside the root.

    Source: Think-RM (arXiv 2505.16265). With differences of scores it is `Standardised(eps=0)`.
    """

    kind: ClassVar[str] = "difference"
    reads_differences: ClassVar[bool] = True
    least_group: ClassVar[int] = 2
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_range(self, ("eps",), 0.0, float("inf"))

    def of_groups(self, whole, counts, rewards):
        assert rewards.differences is not None
        d, met = (x.reshape(*whole.shape, -1) for x in rewards.differences)
        return difference_advantage(d, met & counts[:, :, None] & counts[:, None], eps=self.eps)


@dataclasses.dataclass(frozen=True)
class Greedy(_OfResponses):
    """Minus the reward of the likeliest response to the prompt, which is sampled for it (ReMax, arXiv 2310.10505)."""

    kind: ClassVar[str] = "greedy"
    reads_greedy: ClassVar[bool] = True
    keeps_gaps: ClassVar[bool] = True

    def of_groups(self, whole, counts, rewards):
        assert rewards.greedy is not None
        return jnp.where(counts, whole - rewards.greedy.reshape(whole.shape), 0.0)


@dataclasses.dataclass(frozen=True)
class Batch(_WithoutValues):
    """The reward of a token and those after it, whitened over all tokens of the batch (REINFORCE++, arXiv 2501.03262).

    Attributes:
      whiten: whether it is whitened; without, nothing is subtracted at all.
    """

    kind: ClassVar[str] = "batch"
    whole: ClassVar[bool] = False
    whiten: bool = True

    def __call__(self, rewards, values):
        tokens = jnp.where(rewards.mask, rewards.tokens, 0.0)
        earned = jnp.flip(jnp.cumsum(jnp.flip(tokens, -1), -1), -1)
        return masked_whiten(earned, rewards.trained) if self.whiten else jnp.where(rewards.mask, earned, 0.0), None


@dataclasses.dataclass(frozen=True)
class Constant(_OfResponses):
    """Minus a number.

    Attributes:
      value: the number, such as the reward of an even match.
    """

    kind: ClassVar[str] = "constant"
    keeps_gaps: ClassVar[bool] = True
    value: float = 0.0

    def of_groups(self, whole, counts, rewards):
        return jnp.where(counts, whole - self.value, 0.0)
