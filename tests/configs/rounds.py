"""Pairs of a policy's own samples and policies that learn from pairs, in a few steps each, for the tests.

    prl run --config tests/configs/rounds.py --workdir DIR

Hardware: 1 CPU core. Time: a minute, nearly all of it compilation. Result: nothing learns anything.
"""

from ml_collections import ConfigDict

from prl_jax.stages import config as c


def get_config() -> ConfigDict:
    """Two rounds: pairs by scores, a direct loss; pairs in both orders of two policies, a loss of win rates against two
    references."""
    lengths, few = dict(max_prompt=12, max_response=6), dict(batch_size=16, save_every="1 steps", log_every="1 steps")
    held_out = c.source(split="validation", limit=12)
    # Nearly random texts never end of themselves: a quarter of all tokens ends them.
    made = dict(prompts=c.source(limit=24), batch_size=16, sampling=dict(stop_token_ids=tuple(range(0, 256, 4))))
    pairs = lambda name, **values: c.source(kind="stage", path=name, **values)  # noqa: E731
    made_in = lambda name, weight: c.part(weight, kind="stage", path=name)  # noqa: E731
    stages = dict(
        sft=c.sft(duration="3 steps", validation=held_out, **lengths, **few),
        bt=c.bradley_terry(init_from="sft", duration="2 steps", validation=held_out, **lengths, **few),
        genrm=c.generative(init_from="sft", duration="2 steps", validation=held_out, max_length=32, **few),
        pairs=c.pairs(judge="bt", samples=3, **made),
        direct=c.direct(
            "kto", data=pairs("pairs"), validation=held_out, accumulate=2, duration="3 steps", **lengths, **few
        ),
        pairs_2=c.pairs(
            policy="direct",
            others=("sft",),
            judge="genrm",
            agrees_with="bt",
            samples=2,
            include_reference=True,
            select=dict(kind="all", keep=2),
            replay=("pairs",),
            replay_share=0.3,
            **made,
        ),
        direct_2=c.direct(
            "sppo",
            init_from="direct",
            references=("direct", "sft"),
            reference_weights=(0.75, 0.25),
            data=c.source(kind="mix", mix=dict(new=made_in("pairs_2", 3.0), old=made_in("pairs", 1.0))),
            validation=pairs("pairs_2", limit=4),
            duration="3 steps",
            **lengths,
            **few,
        ),
        evaluation=c.evaluation(
            judges=("bt",),
            prompts=c.source(split="test", limit=8),
            samples=1,
            bootstrap=20,
            batch_size=16,
            arms=dict(direct=dict(title="KTO", judge="bt"), direct_2=dict(title="SPPO", judge="bt")),
        ),
    )
    return c.build(
        stages,
        title="Rounds",
        gold=dict(families=("sort", "rev"), train_rows=64, validation_rows=32, test_rows=32),
        model=dict(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=32),
    )
