"""Qwen3 0.6B on one GPU: adapters for judge, policy and critic on one frozen copy of the model.

    prl run --config experiments/qwen3_0_6b_lora_gpu.py:MODEL,PAIRS.jsonl --workdir runs/qwen3

MODEL is the directory of Qwen3-0.6B (config.json, safetensors, tokenizer); PAIRS.jsonl[.gz] has `prompt`, `chosen`,
`rejected`; the first 500 rows are kept for evaluation. A generative judge is trained on the pairs; pairwise PPO
compares with the chosen responses. Of 400 others and more, half train the judge, a quarter trains the referee that
tells the win rates, and a quarter gives the policy's prompts (`own_model.py`). Lengths are as long as the data need,
unless they are given.

Hardware: 1 GPU of 24 GB.
Memory: parameters 1.2 GB in bfloat16, shared by all; adapters with optimizer 0.7 GB for policy and critic. With prompts
and responses of 512 tokens, the compiler plans at most 22 GB for any step function, that which scores 64 rollouts
before the update.
Time: not measured on a GPU; its step functions are compiled ahead of time in the tests, in 1 minute on 2 CPUs.
Result: a win rate of 0.5 against the model at the start; no run of this size has been made.
"""

from ml_collections import ConfigDict

from prl_jax.recipes.own import own_pairs
from prl_jax.stages import config as c


def get_config(arguments: str = "") -> ConfigDict:
    """`MODEL,PAIRS`: a model directory and a file of preference pairs."""
    adapters = c.lora(rank=32, alpha=64.0)
    return own_pairs(
        arguments,
        title="Qwen3 0.6B: Pairwise-RL with adapters on one GPU",
        holdout=500,
        generative=dict(
            lora=adapters,
            duration="1 epochs",
            batch_size=64,
            accumulate=16,
            optimizer=dict(learning_rate=1e-4),
        ),
        online=dict(
            lora=adapters,
            prompts_per_step=64,
            judge_batch_size=32,
            duration="300 steps",
            accumulate=8,
            optimizer=dict(learning_rate=3e-5),
            critic=dict(warmup="10 steps", optimizer=dict(learning_rate=1e-4)),
            regulariser=dict(coefficient=0.03),
        ),
        evaluation_batch=64,
    )
