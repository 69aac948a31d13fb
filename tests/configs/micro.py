"""Every kind of stage in a few steps each, for the tests.

    prl run --config tests/configs/micro.py --workdir DIR
    prl run --config tests/configs/micro.py:short --workdir DIR

Hardware: 1 CPU core. Time: a minute (short: half of it), nearly all of it compilation. Result: nothing learns anything.
"""

from ml_collections import ConfigDict

from prl_jax.stages import config as c


def get_config(variant: str = "all") -> ConfigDict:
    """`all`: both judges, both kinds of anchors, PPO on scores and on each kind of opponent. `short`: one of each kind,
    long enough to be interrupted in the middle. `decided`: the same, with a judge that tells responses apart, so that
    rewards differ by more than rounding does."""
    steps = 6 if variant == "all" else 16
    lengths = dict(max_prompt=12, max_response=6)
    often = dict(log_every="1 steps", save_every="2 steps", evaluate_every="5 steps", batch_size=16)
    prompts = c.source(limit=24)
    policy = dict(
        prompts=prompts,
        prompts_per_step=8,
        duration="4 steps",
        save_every="2 steps",
        evaluation=dict(every="2 steps", prompts=c.source(split="validation", limit=8)),
    )
    critic = dict(critic=dict(warmup="1 steps"))
    # Of nearly random texts the exact judge thinks all the same. In two batches, larger than those of a step.
    held_out = c.source(split="validation", limit=16)
    judged = policy["evaluation"] | dict(judge="bt", prompts=held_out, batch_size=12)
    stages = dict(
        sft=c.sft(duration=f"{steps} steps", validation=c.source(split="validation", limit=20), **lengths, **often),
        bt=c.bradley_terry(init_from="sft", duration="4 steps", **lengths, **often),
        genrm=c.generative(
            init_from="sft",
            duration=f"{steps} steps",
            max_length=32,
            soft_labels=True,
            result="last" if variant == "decided" else "best",
            optimizer=dict(learning_rate=0.03) if variant == "decided" else {},
            **often,
        ),
        anchors=c.anchors(prompts=prompts, samples=3, keep=2, batch_size=16),
        pairwise_ppo=c.online(
            "pairwise_rl",
            result="best",
            baseline=dict(sees_opponent=True, clip=0.2),
            regulariser=dict(steer=(0.2, 100.0)),
            **critic,
            **policy | dict(duration=f"{steps - 2} steps", evaluation=judged),
        ),
    )
    if variant == "all":
        peers, group = policy | dict(prompts_per_step=4, group_size=2), policy | dict(prompts_per_step=2, group_size=4)
        stages |= dict(
            references=c.anchors(prompts=prompts, choice="reference"),
            ppo=c.online("ppo", judge="bt", **critic, **policy),
            peer_ppo=c.online("pairwise_rl", judge="gold", opponents=dict(kind="peer"), **critic, **peers),
            group_ppo=c.online(
                "pairwise_rl", opponents=dict(kind="group"), reward=dict(map="centred"), **critic, **group
            ),
        )
    titles = dict(ppo=dict(title="BT + PPO", judge="bt"), pairwise_ppo=dict(title="Pairwise-RL", judge="genrm"))
    stages["evaluation"] = c.evaluation(
        judges=("bt", "genrm"),
        prompts=c.source(split="test", limit=16),
        samples=2,
        bootstrap=50,
        batch_size=16,
        arms={name: arm for name, arm in titles.items() if name in stages},
    )
    return c.build(
        stages,
        title="Micro",
        gold=dict(families=("sort", "rev"), train_rows=64, validation_rows=32, test_rows=32),
        model=dict(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=32),
    )
