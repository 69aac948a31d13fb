"""Pure math: arrays in, sums and denominators out. Nothing here knows a model or a config."""

from prl_jax.losses.advantages import gae, group_advantage, kl_estimate, length_adaptive_lambda, token_rewards
from prl_jax.losses.lengths import overlong_penalty, relative_brevity
from prl_jax.losses.logprobs import chunked_cross_entropy, chunked_logprobs, lm_loss
from prl_jax.losses.pairwise_ppo import (
    even_reward,
    opponents,
    pair_regression_loss,
    pairwise_policy_loss,
    pairwise_rl_reward,
    win_rate,
)
from prl_jax.losses.ppo import entropy_loss, ppo_policy_loss, ppo_value_loss, reduce_tokens
from prl_jax.losses.preference import (
    bt_loss,
    bt_ties_loss,
    pairwise_genrm_full_loss,
    pairwise_genrm_loss,
    symmetrise,
    verdict_prob,
)
from prl_jax.masked import masked_whiten

__all__ = [
    "bt_loss",
    "bt_ties_loss",
    "chunked_cross_entropy",
    "chunked_logprobs",
    "entropy_loss",
    "even_reward",
    "gae",
    "group_advantage",
    "kl_estimate",
    "length_adaptive_lambda",
    "lm_loss",
    "masked_whiten",
    "opponents",
    "overlong_penalty",
    "pair_regression_loss",
    "pairwise_genrm_full_loss",
    "pairwise_genrm_loss",
    "pairwise_policy_loss",
    "pairwise_rl_reward",
    "ppo_policy_loss",
    "ppo_value_loss",
    "reduce_tokens",
    "relative_brevity",
    "symmetrise",
    "token_rewards",
    "verdict_prob",
    "win_rate",
]
