"""Pure math: arrays in, sums and denominators out. Nothing here knows a model or a config."""

from prl_jax.losses.advantages import (
    difference_advantage,
    gae,
    group_advantage,
    kl_estimate,
    length_adaptive_lambda,
    token_rewards,
)
from prl_jax.losses.lengths import overlong_penalty, relative_brevity
from prl_jax.losses.logprobs import chunked_cross_entropy, chunked_logprobs, lm_loss
from prl_jax.losses.pairwise_ppo import (
    even_reward,
    mapped_wins,
    opponents,
    pair_regression_loss,
    pairwise_policy_loss,
    pairwise_rl_reward,
    win_rate,
)
from prl_jax.losses.policy_gradients import cispo_loss, reinforce_loss
from prl_jax.losses.ppo import entropy_loss, ppo_policy_loss, ppo_value_loss, reduce_tokens
from prl_jax.losses.preference import (
    bt_loss,
    bt_ties_loss,
    pairwise_genrm_full_loss,
    pairwise_genrm_loss,
    symmetrise,
    verdict_prob,
)
from prl_jax.losses.response_updates import pair_token_loss, single_regression_loss
from prl_jax.losses.shapes import centred_shape, log_tame, lsc_shape, minmax_shape, par_shape
from prl_jax.masked import masked_whiten

__all__ = [
    "bt_loss",
    "bt_ties_loss",
    "centred_shape",
    "chunked_cross_entropy",
    "chunked_logprobs",
    "cispo_loss",
    "difference_advantage",
    "entropy_loss",
    "even_reward",
    "gae",
    "group_advantage",
    "kl_estimate",
    "length_adaptive_lambda",
    "lm_loss",
    "log_tame",
    "lsc_shape",
    "mapped_wins",
    "masked_whiten",
    "minmax_shape",
    "opponents",
    "overlong_penalty",
    "pair_regression_loss",
    "pair_token_loss",
    "pairwise_genrm_full_loss",
    "pairwise_genrm_loss",
    "pairwise_policy_loss",
    "pairwise_rl_reward",
    "par_shape",
    "ppo_policy_loss",
    "ppo_value_loss",
    "reduce_tokens",
    "reinforce_loss",
    "relative_brevity",
    "single_regression_loss",
    "symmetrise",
    "token_rewards",
    "verdict_prob",
    "win_rate",
]
