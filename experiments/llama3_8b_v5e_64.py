"""Llama 3 8B on a TPU slice of 64 chips: full fine-tuning.

    prl run --config experiments/llama3_8b_v5e_64.py:MODEL,PAIRS.jsonl --workdir runs/llama3

MODEL is the directory of a Llama 3 8B checkpoint; PAIRS.jsonl[.gz] has `prompt`, `chosen`, `rejected`. SFT on the
chosen responses, a generative judge on the pairs, pairwise PPO against the chosen responses; every parameter is
trained.

Hardware: 64 TPU v5e chips of 16 GB (v5e:8x8), the same command on each host.
Memory: 36 bytes a parameter of state (README, "Models"), 289 GB, cut over 64 chips: 4.5 GB each; with activations the
compiler plans at most 12.5 GB for any step function.
Time: not measured on TPUs; its step functions are compiled ahead of time in the tests, in 2 minutes on 2 CPUs.
Result: a win rate of 0.5 against SFT at the start; no run of this size has been made.
"""

from ml_collections import ConfigDict

from prl_jax.stages.recipes import own_pairs


def get_config(arguments: str = "./model,pairs.jsonl") -> ConfigDict:
    """`MODEL,PAIRS`: a model directory and a file of preference pairs."""
    lengths = dict(max_prompt=512, max_response=512)
    supervised = dict(duration="1 epochs", batch_size=128, accumulate=2)
    return own_pairs(
        arguments,
        title="Llama 3 8B: Pairwise-RL on 64 TPU chips",
        holdout=500,
        sft=dict(**supervised, **lengths, optimizer=dict(learning_rate=1e-5)),
        generative=dict(**supervised, max_length=1792, optimizer=dict(learning_rate=5e-6)),
        ppo=dict(
            prompts_per_step=256,
            judge_batch_size=128,
            duration="500 steps",
            critic_warmup="20 steps",
            policy_optimizer=dict(learning_rate=1e-6, warmup="10 steps"),
            critic_optimizer=dict(learning_rate=5e-6, warmup="10 steps"),
            algorithm=dict(accumulate=2, e_hi=0.28, kl_coef=0.03),
        ),
        evaluation_batch=128,
        mesh=dict(data=1, fsdp=-1, tensor=1),
        huggingface=lengths,
    )
