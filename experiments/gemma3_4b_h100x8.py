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

from prl_jax.stages import config as c

HOLDOUT = 500  # first rows of PAIRS, for validation and the final table


def get_config(arguments: str = "./model,pairs.jsonl") -> ConfigDict:
    """`MODEL,PAIRS`: a model directory and a file of preference pairs."""
    model, separator, pairs = arguments.partition(",")
    if not (model and separator and pairs):
        raise ValueError(f"{arguments!r}: expected MODEL,PAIRS: a model directory and a .jsonl file of pairs")
    source = lambda **rows: c.source(kind="jsonl", path=pairs, **rows)  # noqa: E731
    held_out, train = source(limit=HOLDOUT), source(skip=HOLDOUT)
    lengths = dict(max_prompt=512, max_response=512)
    stages = dict(
        sft=c.sft(
            init_from=model,
            data=train,
            validation=held_out,
            duration="1 epochs",
            batch_size=64,
            accumulate=4,
            optimizer=dict(learning_rate=1e-5),
            **lengths,
        ),
        genrm=c.generative(
            init_from=model,
            data=train,
            validation=held_out,
            template="question-v1",
            max_length=1792,
            duration="1 epochs",
            batch_size=64,
            accumulate=4,
            w_cons=0.05,
            optimizer=dict(learning_rate=5e-6),
        ),
        anchors=c.anchors(prompts=train, choice="reference"),
        pairwise_ppo=c.ppo(
            judge="genrm",
            prompts=train,
            prompts_per_step=128,
            judge_batch_size=64,
            duration="500 steps",
            critic_warmup="20 steps",
            value_init=0.5,
            policy_optimizer=dict(learning_rate=1e-6, warmup="10 steps"),
            critic_optimizer=dict(learning_rate=5e-6, warmup="10 steps"),
            algorithm=dict(accumulate=4, e_hi=0.28, kl_coef=0.03),
            evaluation=dict(every="10%", prompts=held_out, judge="genrm"),
        ),
        evaluation=c.evaluation(
            judges=("genrm",),
            pairs=held_out,
            prompts=held_out,
            judge="genrm",
            batch_size=64,
            arms=dict(pairwise_ppo=dict(title="Pairwise-RL", judge="genrm")),
        ),
    )
    return c.build(
        stages,
        title="Gemma 3 4B: Pairwise-RL on eight GPUs",
        model=dict(dtype="bfloat16", remat=True),
        mesh=dict(data=1, fsdp=-1, tensor=1),
        huggingface=lengths,
    )
