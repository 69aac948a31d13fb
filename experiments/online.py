"""Any method of docs/methods.md on the built-in tasks, with the judge that it needs or another one.

    prl run --config experiments/online.py:p3o --workdir runs/p3o
    prl run --config experiments/online.py:p3o,bt --workdir runs/p3o-bt
    prl run --config experiments/online.py:uwo,smoke --workdir runs/smoke-uwo

The first word is a method. A second one is its judge: `bt` (Bradley-Terry), `genrm` (generative), `ensemble` (three
Bradley-Terry judges as one) or `gold` (the exact judge of the tasks, for methods that compare). Without it a method has
the judge that its row of the table asks for: a Bradley-Terry judge where it needs scores, else a generative one; UWO
and WCO have their ensembles, PaCo-GRPO two judges. `smoke` makes everything small and short, to see it work.

SFT, that judge, anchors for methods that meet them, the method with the pieces of its row, and an evaluation by the
exact judge of the tasks. To change a piece: `--config.p3o.surrogate.clip=0.1`.

Hardware: 2 CPU cores, 2 GB of memory.
Time: 17 minutes for GRPO, 23 for Pairwise P3O and 34 for the tournament, on 2 CPU cores that several other programs
were busy on too (a load of 7 to 15); `smoke` takes a minute or two.
Result: of one seed (0) alone, on 2026-11-30, as shares of the comparisons with samples of the SFT policy that are won.
Pairwise P3O wins .596 [.579, .614] at a divergence of 1.1 nats, and the tournament, whose row has no divergence at all,
.434 [.410, .458] at 3.4; both ask a generative judge that is right on .707 of the pairs. GRPO wins .415 [.390, .439] at
4.2 nats, by a Bradley-Terry judge that is right on .687. On validation prompts these two are ahead at first (GRPO .565
at step 8 of 40) and fall behind later, while GRPO's mean score goes from 0.73 to 1.03: where little holds the policy
back, a judge of this size is overoptimised. `--config.grpo.result=best` keeps the best evaluation.
"""

from ml_collections import ConfigDict

from prl_jax.methods import METHODS
from prl_jax.recipes.built_in import FULL, SMOKE, Arm, built_in_tasks
from prl_jax.recipes.judges import WORDS, asked


def get_config(arguments: str = "") -> ConfigDict:
    """`NAME[,JUDGE][,smoke]`: a method, and its judge."""
    words = arguments.split(",")
    name, *judges = [word for word in words if word != "smoke"] or [""]
    if name not in METHODS or len(judges) > 1:
        raise ValueError(
            f"{arguments!r}: expected NAME[,JUDGE][,smoke], a judge of {', '.join(WORDS)}, and a method of "
            f"{', '.join(METHODS)}"
        )
    return built_in_tasks(
        {name: Arm(name, asked(name, *judges), METHODS[name].title)},
        SMOKE if "smoke" in words else FULL,
        title=f"{METHODS[name].title} on the built-in tasks",
    )
