"""Your model, your preference pairs: a generative judge, anchors and pairwise PPO, with adapters on one frozen model.

    prl run --config experiments/own_model.py:MODEL,PAIRS.jsonl --workdir runs/own
    prl run --config experiments/own_model.py:MODEL,PAIRS.jsonl,rloo --workdir runs/own-rloo
    prl generate --model runs/own/pairwise_ppo --prompts PROMPTS.jsonl --out responses.jsonl
    prl export --workdir runs/own --stage pairwise_ppo --out my-model

MODEL is an instruction-tuned Hugging Face checkpoint directory (config.json, safetensors, tokenizer). PAIRS.jsonl[.gz]
has `prompt`, `chosen` and `rejected` in each row; the first 100 rows are kept for evaluation. Of 400 others and more,
the first quarter trains a second judge, `referee`, which tells the win rates; the second one gives the prompts of PPO,
with their chosen responses as anchors (LSC, which needs several of a prompt, meets samples of MODEL); the rest, half of
them, trains the judge that PPO asks. Fewer train one judge, which does both. The split is by row: pairs of one prompt
that stand next to each other mostly stay together.
A third word is a method of docs/methods.md that takes the place of Pairwise-RL (its stage then has the method's name),
with the judge that it needs: a Bradley-Terry judge `bt` where it asks for scores, three or two of them for a method
that asks several. A step has 64 responses, whatever the method.
Lengths, in tokens, are as long as the data need, unless they are given: `--config.huggingface.max_prompt=N`,
`.max_response=N`, and `--config.genrm.max_length=N` (and `referee`) for the judges' rows.

Hardware: 1 GPU that holds the model's parameters once, frozen and shared by policy, reference, critic and judge, and
the activations; a CPU for a model of a few million parameters.
Time: 35 minutes with a toy of three layers and 150 pairs of about a hundred tokens, on 2 CPU cores that were busy with
other things too; it took 2.3 GiB. Nothing large has been measured. The run says before its first stage how much memory
and time it will take, about.
Result: a win rate of 0.5 at the start; what it comes to depends on the pairs. With fewer than 400 of them, the win rate
in the report is told by the judge that the policy learned from: it says what the policy has learnt of its taste, not
whether that taste is yours. Read the samples.
"""

from ml_collections import ConfigDict

from prl_jax.methods import METHODS
from prl_jax.recipes.own import own_pairs, split_method
from prl_jax.stages import config as c


def get_config(arguments: str = "") -> ConfigDict:
    """`MODEL,PAIRS[,NAME]`: a model directory, a file of preference pairs, and a method."""
    pairs, named = split_method(arguments)
    method = named or "pairwise_rl"
    arm = "pairwise_ppo" if method == "pairwise_rl" else method
    adapters = c.lora(rank=16, alpha=32.0)
    judge = dict(
        lora=adapters,
        duration="1 epochs",
        batch_size=32,
        accumulate=8,
        optimizer=dict(learning_rate=1e-4),
    )
    return own_pairs(
        pairs,
        title=f"{METHODS[method].title} on your own model and pairs",
        holdout=100,
        method=method,
        arm=arm,
        generative=judge,
        bradley_terry=judge,
        critic=dict(warmup="5 steps", optimizer=dict(learning_rate=1e-4)),
        online=dict(
            lora=adapters,
            prompts_per_step=64 // METHODS[method].group_size,
            judge_batch_size=16,
            duration="100 steps",
            accumulate=8,
            optimizer=dict(learning_rate=3e-5),
        ),
        evaluation_batch=32,
    )
