"""Gemma 3 4B (text) on a TPU slice of 16 chips: full fine-tuning.

    prl run --config experiments/gemma3_4b_v6e_4x4.py:MODEL,PAIRS.jsonl --workdir runs/gemma3

MODEL is the directory of a Gemma 3 4B language model (model_type gemma3_text); PAIRS.jsonl[.gz] has `prompt`, `chosen`,
`rejected`. SFT on the chosen responses, a generative judge on the pairs, pairwise PPO against the chosen responses;
every parameter is trained. The first 128 rows are kept for evaluation. Of 400 others and more, half train the judge, a
quarter trains the referee that tells the win rates, and a quarter gives the policy's prompts (`own_model.py`). Prompts
and responses have 512 tokens.

Hardware: 16 TPU v6e chips of 32 GB (v6e:4x4), the same command on each host.
Memory: 44 bytes per parameter of state (README, "Models"), 171 GB, cut over 16 chips: 10.7 GB each; with activations
the compiler plans at most 14 GB for any step function.
Time: not measured on TPUs; its step functions are compiled ahead of time in the tests, in 4 minutes on 2 CPUs.
Result: a win rate of 0.5 against SFT at the start; no run of this size has been made.
"""

from ml_collections import ConfigDict

from prl_jax.recipes.own import full_training


def get_config(arguments: str = "") -> ConfigDict:
    """`MODEL,PAIRS`: a model directory and a file of preference pairs."""
    return full_training(
        arguments,
        title="Gemma 3 4B: Pairwise-RL on 16 TPU v6e chips",
        batch_size=64,
        accumulate=2,
        mesh=dict(data=1, fsdp=-1, decode=4),
    )
