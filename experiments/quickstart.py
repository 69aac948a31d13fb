"""Pairwise-RL end to end on the built-in tasks."""

from ml_collections import ConfigDict

from prl_jax.stages import config as c


def get_config(variant: str = "full") -> ConfigDict:
    """`full`, or `smoke`: the same pipeline in less time."""
    lengths = dict(max_prompt=16, max_response=10)
    stages = dict(
        sft=c.sft(duration="300 steps", optimizer=dict(learning_rate=2e-3), **lengths),
        bt=c.bradley_terry(
            init_from="sft", duration="450 steps", batch_size=128, optimizer=dict(learning_rate=2e-3), **lengths
        ),
        genrm=c.generative(
            init_from="sft",
            duration="750 steps",
            batch_size=64,
            max_length=40,
            shared_positions=True,
            optimizer=dict(learning_rate=3e-3),
        ),
        anchors=c.anchors(),
        ppo=c.ppo(judge="bt", reward="score", anchors="", opponents="anchor"),
        pairwise_ppo=c.ppo(judge="genrm", value_init=0.5),
        evaluation=c.evaluation(
            judges=("bt", "genrm"),
            arms=dict(
                ppo=dict(title="BT + PPO", judge="bt"),
                pairwise_ppo=dict(title="Pairwise-RL", judge="genrm"),
            ),
        ),
    )
    return c.build(stages, title="Quickstart: built-in tasks")
