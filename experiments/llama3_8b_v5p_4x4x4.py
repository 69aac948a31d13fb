"""Llama 3 8B on a TPU slice of 64 chips with much memory: full fine-tuning.

    prl run --config experiments/llama3_8b_v5p_4x4x4.py:MODEL,PAIRS.jsonl --workdir runs/llama3

MODEL is the directory of a Llama 3 8B checkpoint; PAIRS.jsonl[.gz] has `prompt`, `chosen`,
`rejected`. SFT on the chosen responses, a generative judge on the pairs, pairwise PPO against the chosen responses;
every parameter is trained. The first 512 rows are kept for evaluation. Of 400 others and more, half train the judge, a
quarter trains the referee that tells the win rates, and a quarter gives the policy's prompts (`own_model.py`). Prompts
and responses have 512 tokens.

Hardware: 64 TPU v5p chips of 95 GB (v5p:4x4x4), the same command on each host.
Memory: 44 bytes per parameter of state (README, "Models"), 353 GB, cut over 64 chips: 5.5 GB each; with activations the
compiler plans at most 14 GB for any step function.
Time: not measured on TPUs; its step functions are compiled ahead of time in the tests, in 4 minutes on 2 CPUs.
Result: a win rate of 0.5 against SFT at the start; no run of this size has been made.
"""

from ml_collections import ConfigDict

from prl_jax.recipes.own import full_training


def get_config(arguments: str = "") -> ConfigDict:
    """`MODEL,PAIRS`: a model directory and a file of preference pairs."""
    return full_training(
        arguments,
        title="Llama 3 8B: Pairwise-RL on 64 TPU v5p chips",
        batch_size=256,
        accumulate=1,
        mesh=dict(data=1, fsdp=-1, decode=8),
    )
