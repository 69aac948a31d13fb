"""Over-optimisation on the built-in tasks: one reward model against ensembles of five, on pairs with 25 % label noise.

    prl run --config experiments/overoptimisation.py --workdir runs/overoptimisation

SFT; five Bradley-Terry models on the same noisy pairs, each in an order of its own; PPO with next to no KL penalty on
the first of them, on their mean, on the worst of them and on their mean less half their variance (arXiv 2210.10760,
2310.02743). One family of tasks, so that models this small learn anything from such pairs in minutes. `reward` in
metrics.jsonl is the score that was trained on, `exact_reward` the exact utility of the same responses.

`benchmarks/overoptimisation.py` runs it over seeds, adds best-of-n and draws the figure.

Hardware: 2 CPU cores, 2 GB of memory.
Time: 5 to 12 minutes a seed, on 2 CPU cores that were busy with other things too.
Result: over three seeds the exact utility of SFT, 0.50, becomes 0.24 with one judge (0.01, 0.45 and 0.26), 0.58 with
the mean of five (0.50, 0.57, 0.68), 0.53 with the worst of them (0.53, 0.55, 0.52) and 0.62 with the mean less half the
variance (0.63, 0.65, 0.58). benchmarks/README.md has the intervals.
"""

from typing import Any

from ml_collections import ConfigDict

from prl_jax.methods import METHODS
from prl_jax.stages import config as c

MEMBERS = tuple(f"bt{i}" for i in range(5))
# Whom each arm asks.
ARMS = {"single": "bt0", "mean": "mean_of_5", "worst": "worst_of_5", "uwo": "uwo_of_5"}


def get_config() -> ConfigDict:
    lengths = dict(max_prompt=14, max_response=10)
    validation = c.source(split="validation", limit=512)

    def judge() -> dict[str, Any]:
        return c.bradley_terry(
            init_from="sft",
            duration="250 steps",
            batch_size=64,
            validation=validation,
            center=0.01,  # one scale for all members
            optimizer=dict(learning_rate=2e-3),
            **lengths,
        )

    def policy(asked: str) -> dict[str, Any]:
        return c.online(
            "ppo",
            judge=asked,
            regulariser=dict(coefficient=0.01),
            prompts=c.source(limit=2048),
            prompts_per_step=128,
            duration="56 steps",
            optimizer=dict(learning_rate=7e-4),
            evaluation=dict(every="50%", prompts=c.source(split="validation", limit=128), judge="gold"),
        )

    stages = dict(
        sft=c.sft(duration="200 steps", validation=validation, optimizer=dict(learning_rate=2e-3), **lengths),
        **{name: judge() for name in MEMBERS},
        **{name: policy(asked) for name, asked in ARMS.items()},
        evaluation=c.evaluation(
            judges=(*MEMBERS, *tuple(ARMS.values())[1:]),
            pairs=c.source(split="test"),
            prompts=c.source(split="test", limit=256),
            samples=2,
            arms={name: dict(title=f"PPO, {asked}", judge=asked) for name, asked in ARMS.items()},
        ),
    )
    return c.build(
        stages,
        title="Over-optimisation on the built-in tasks: one Bradley-Terry model against ensembles of five",
        model=dict(layers=2),
        gold=dict(families=("next",), noise=0.25),
        judges=dict(
            mean_of_5=c.judge("ensemble", of=MEMBERS),
            worst_of_5=c.judge(of=MEMBERS, **METHODS["wco"].judge),
            uwo_of_5=c.judge(of=MEMBERS, **{**METHODS["uwo"].judge, "coefficient": 0.5}),
        ),
    )
