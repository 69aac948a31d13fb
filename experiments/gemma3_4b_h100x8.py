"""Gemma 3 4B (text) on one host of 8 GPUs: full fine-tuning.

    prl run --config experiments/gemma3_4b_h100x8.py:MODEL,PAIRS.jsonl --workdir runs/gemma3

MODEL is the directory of a Gemma 3 4B language model (model_type gemma3_text); PAIRS.jsonl[.gz] has `prompt`, `chosen`,
`rejected`. SFT on the chosen responses, a generative judge on the pairs, pairwise PPO against the chosen responses;
every parameter is trained.

Hardware: 8 GPU H100 of 80 GB.
Memory: 36 bytes a parameter of state (README, "Models"), 140 GB, cut over 8 GPUs: 17.5 GB each; with activations the
compiler plans at most 29 GB for any step function.
Time: not measured on GPUs; its step functions are compiled ahead of time in the tests, in 2 minutes on 2 CPUs.
Result: a win rate of 0.5 against SFT at the start; no run of this size has been made.
"""

from ml_collections import ConfigDict

from prl_jax.stages.recipes import own_pairs


def get_config(arguments: str = "./model,pairs.jsonl") -> ConfigDict:
    """`MODEL,PAIRS`: a model directory and a file of preference pairs."""
    lengths = dict(max_prompt=512, max_response=512)
    supervised = dict(duration="1 epochs", batch_size=64, accumulate=4)
    return own_pairs(
        arguments,
        title="Gemma 3 4B: Pairwise-RL on eight GPUs",
        holdout=500,
        sft=dict(**supervised, **lengths, optimizer=dict(learning_rate=1e-5)),
        generative=dict(**supervised, max_length=1792, optimizer=dict(learning_rate=5e-6)),
        ppo=dict(
            prompts_per_step=128,
            judge_batch_size=64,
            duration="500 steps",
            critic_warmup="20 steps",
            policy_optimizer=dict(learning_rate=1e-6, warmup="10 steps"),
            critic_optimizer=dict(learning_rate=5e-6, warmup="10 steps"),
            algorithm=dict(accumulate=4, e_hi=0.28, kl_coef=0.03),
        ),
        evaluation_batch=64,
        mesh=dict(data=1, fsdp=-1, tensor=1),
        huggingface=lengths,
    )
