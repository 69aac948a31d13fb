"""A method: pieces that can work together."""

from __future__ import annotations

import dataclasses

from prl_jax.errors import UserError
from prl_jax.methods.baselines import Baseline, Critic
from prl_jax.methods.opponents import Opponents
from prl_jax.methods.regularisers import Regulariser, RewardKL
from prl_jax.methods.rewards import Reward
from prl_jax.methods.surrogates import PairRegression, Surrogate


@dataclasses.dataclass(frozen=True)
class Method:
    """Five of the six pieces; the first one, the preference model, is a judge of the run.

    Attributes:
      opponents: whom a response is compared with.
      reward: how judgements become a reward.
      baseline: what is subtracted from it.
      surrogate: the loss that moves the policy.
      regulariser: what holds it back.

    Raises:
      UserError: pieces that cannot work together, with the reason.
    """

    opponents: Opponents
    reward: Reward
    baseline: Baseline
    surrogate: Surrogate
    regulariser: Regulariser

    def __post_init__(self) -> None:
        opponents, reward, baseline = self.opponents, self.reward, self.baseline
        surrogate, regulariser = self.surrogate, self.regulariser
        if reward.compares and opponents.candidates == "none":
            raise UserError(
                f"opponents={opponents.kind!r}: the reward {reward.kind!r} compares responses; name opponents"
            )
        if opponents.candidates != "none" and not reward.compares:
            raise UserError(
                f"opponents={opponents.kind!r}: the reward {reward.kind!r} compares with nobody; name 'none'"
            )
        if regulariser.inside and not surrogate.inside:
            raise UserError(
                f"regulariser={regulariser.kind!r}: the surrogate {surrogate.kind!r} has no divergence inside; use "
                "'reward_kl' or 'loss_kl'"
            )
        if surrogate.inside and not regulariser.inside:
            raise UserError(
                f"regulariser={regulariser.kind!r}: the surrogate {surrogate.kind!r} holds the divergence itself; use "
                "'inside_kl'"
            )
        if surrogate.whole and not baseline.whole:
            raise UserError(
                f"baseline={baseline.kind!r}: the surrogate {surrogate.kind!r} sees whole responses, and this baseline "
                "has an advantage of each token; use 'constant'"
            )
        if surrogate.whole and not baseline.keeps_gaps:
            raise UserError(
                f"baseline={baseline.kind!r}: the surrogate {surrogate.kind!r} takes rewards for what they are, and "
                "this baseline stretches them; use 'constant' or 'group_mean'"
            )
        if baseline.reads_differences and not (opponents.complete and reward.antisymmetric):
            raise UserError(
                f"baseline={baseline.kind!r} needs each comparison within the group: the opponents 'group', and a "
                "reward that is a mean by which one response wins what the other loses"
            )
        if baseline.reads_greedy and reward.relative:
            raise UserError(
                f"baseline={baseline.kind!r}: the reward {reward.kind!r} depends on the other responses of a step, and "
                "the likeliest ones are not among them; use another reward"
            )
        if len(reward.judges) > 1 and getattr(opponents, "beaten", 0.0):
            raise UserError("opponents.beaten: the reward asks several judges, and who has beaten an anchor one; set 0")
        if baseline.reads_differences and isinstance(regulariser, RewardKL):
            raise UserError(
                f"regulariser={regulariser.kind!r}: the baseline {baseline.kind!r} sees differences of rewards alone, "
                "and no divergence among them; use 'loss_kl'"
            )
        if baseline.reads_greedy and opponents.candidates in ("group", "sampled"):
            raise UserError(
                f"baseline={baseline.kind!r}: with opponents={opponents.kind!r} the likeliest response has no reward "
                "of its own; use the opponents 'none', 'anchors' or 'pool'"
            )
        if isinstance(surrogate, PairRegression) and not (reward.probability and opponents.multiple == 2):
            raise UserError(
                f"surrogate={surrogate.kind!r} predicts which of two neighbours wins: it needs the opponents "
                "'peer' and a reward that is a probability"
            )
        if reward.asks == "scores" and opponents.orders != "both":
            raise UserError(
                f"opponents={opponents.kind!r} is judged in one order (orders={opponents.orders!r}), and scores, which "
                f"the reward {reward.kind!r} asks for, have none; use opponents with orders='both', such as 'group'"
            )
        if isinstance(baseline, Critic) and baseline.sees_opponent and opponents.candidates != "anchors":
            raise UserError(
                f"baseline.sees_opponent: with opponents={opponents.kind!r} no anchor stands for the prompt before a "
                "response is written; set it to false"
            )

    def check_opponents(self, group_size: int, anchors: int) -> None:
        """Raises `UserError` where a response meets fewer opponents than the reward needs.

        Args:
          group_size: responses to a prompt.
          anchors: anchors that are kept for a prompt.
        """
        met, least = self.opponents.per_response(group_size, anchors), self.reward.least_opponents
        if self.reward.compares and met < least:
            kept = f", of {anchors} kept for a prompt" if self.opponents.candidates == "anchors" else ""
            raise UserError(
                f"opponents={self.opponents.kind!r}: the reward {self.reward.kind!r} needs at least {least} opponents "
                f"of a response, and it meets {met}{kept}; give it more, or take another reward"
            )

    def check_group(self, group_size: int) -> None:
        """Raises `UserError` where a prompt has not as many responses as the pieces need."""
        pieces = (self.opponents, self.baseline, self.surrogate)
        least = max(self.baseline.least_group, self.opponents.least_group, self.surrogate.unit)
        multiple = max(self.opponents.multiple, self.surrogate.unit)
        if group_size < least or group_size % multiple:
            even = "" if multiple == 1 else ", and an even number"
            names = ", ".join(repr(piece.kind) for piece in pieces)
            raise UserError(
                f"group_size={group_size}: {names} need at least {least} responses to a prompt{even}; set group_size"
            )
