"""Pairwise-RL end to end on the built-in tasks, with Bradley-Terry and PPO beside it.

    prl run --config experiments/quickstart.py --workdir runs/quickstart
    prl run --config experiments/quickstart.py:smoke --workdir runs/smoke
    prl run --config experiments/quickstart.py:grpo --workdir runs/grpo

The last one has GRPO in the place of Pairwise-RL; any method of docs/methods.md may stand there.

SFT on systematically imperfect demonstrations; a Bradley-Terry and a generative pairwise judge on noisy pairs;
PPO on the scores of the first, pairwise PPO on the win probabilities of the second against the best of four SFT
samples; and an evaluation by the exact judge of the tasks.

Hardware: 2 CPU cores, 2 GB of memory.
Time: 5 minutes (smoke: 50 seconds), a little less on an idle machine.
Result: judges of 0.70 to 0.76 accuracy on noisy labels (the best possible judge .87, always picking the longer
response .49). Over seeds 0, 1, 2 Pairwise-RL wins .58, .61, .58 of the comparisons with SFT and BT + PPO .60, .60, .60;
with much less SFT both can lose ground, because tiny judges are fooled by what the policy moves to.
"""

from typing import Any

from ml_collections import ConfigDict

from prl_jax.methods import METHODS
from prl_jax.stages import config as c

# Layers of the model, steps of each stage, and the sizes that go with them. A short run is mostly compilation, whose
# time goes with the layers.
FULL = dict(layers=3, sft=800, bt=450, genrm=900, policy=40, rows=0, prompts=0, pairs=0, evaluation=512)
SMOKE = dict(layers=1, sft=20, bt=6, genrm=6, policy=2, rows=500, prompts=256, pairs=200, evaluation=64)


def get_config(arguments: str = "full") -> ConfigDict:
    """`full`, or `smoke`: the same pipeline, much too small and short to learn anything. With the name of a method
    (`grpo`, `smoke,p3o`) it stands in the place of Pairwise-RL."""
    words = arguments.split(",")
    unknown = [word for word in words if word not in ("full", "smoke", *METHODS)]
    if unknown or len(words) > 2:
        raise ValueError(f"{arguments!r}, expected 'full', 'smoke', or a method: {', '.join(METHODS)}")
    size = SMOKE if "smoke" in words else FULL
    method = next((word for word in words if word in METHODS), "pairwise_rl")
    lengths = dict(max_prompt=14, max_response=10)
    validation = c.source(split="validation", limit=size["pairs"] or 512)
    prompts = c.source(limit=size["prompts"] or 2048)

    def policy(name: str, **values: Any) -> dict[str, Any]:
        preset = METHODS[name]
        return c.online(
            name,
            judge=judge_of(name),
            prompts=prompts,
            prompts_per_step=256 // preset.group_size,
            duration=f"{size['policy']} steps",
            optimizer=dict(learning_rate=3e-4, schedule="linear"),
            evaluation=dict(every="20%", prompts=c.source(split="validation", limit=256), judge="gold"),
            **values,
        )

    # Scores range wider than win probabilities: this coefficient leads to about the same divergence.
    arms = {"ppo": policy("ppo", regulariser=dict(coefficient=0.25))}
    titles = {"ppo": dict(title="BT + PPO", judge="bt")}
    if method != "ppo":
        arm = "pairwise_ppo" if method == "pairwise_rl" else method
        arms[arm], titles[arm] = policy(method), dict(title=METHODS[method].title, judge=judge_of(method))
    stages = dict(
        sft=c.sft(
            duration=f"{size['sft']} steps", validation=validation, optimizer=dict(learning_rate=2e-3), **lengths
        ),
        bt=c.bradley_terry(
            init_from="sft",
            duration=f"{size['bt']} steps",
            validation=validation,
            optimizer=dict(learning_rate=2e-3),
            **lengths,
        ),
        genrm=c.generative(
            init_from="sft",
            duration=f"{size['genrm']} steps",
            batch_size=64,
            validation=validation,
            max_length=38,
            shared_positions=True,
            w_cons=0.05,
            optimizer=dict(learning_rate=1.2e-3),
        ),
        anchors=c.anchors(prompts=prompts),
        **arms,
        evaluation=c.evaluation(
            judges=("bt", "genrm"),
            pairs=c.source(split="test", limit=size["pairs"]),
            prompts=c.source(split="test", limit=size["evaluation"]),
            arms=titles,
        ),
    )
    return c.build(
        stages,
        title=f"Quickstart: {METHODS[method].title} against Bradley-Terry and PPO on the built-in tasks",
        model=dict(layers=size["layers"]),
        gold=dict(train_rows=size["rows"]),
    )


def judge_of(method: str) -> str:
    """Whom a method asks: the judge that scores, or the one that compares."""
    return "bt" if METHODS[method].method.reward.asks == "scores" else "genrm"
