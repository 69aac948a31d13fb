"""Methods that work in rounds on the built-in tasks: the policy is sampled, a judge ranks its samples, it learns from
them, and so on.

    prl run --config experiments/iterative.py:inpo --workdir runs/inpo
    prl run --config experiments/iterative.py:sppo,gold --workdir runs/sppo-gold
    prl run --config experiments/iterative.py:cream,smoke --workdir runs/smoke-cream
    prl run --config experiments/iterative.py:MODEL,PAIRS.jsonl,inpo --workdir runs/own-inpo

The first word is a method: sppo, dno, dno_prct, inpo, mnpo, irepo, cream, rso, vpo, curated, raft or self_rewarding. A
second one is its judge: `gold` (the exact judge of the tasks), `bt` or `genrm` (a Bradley-Terry or a generative judge);
without it a method has the judge that it needs. CREAM and self-rewarding take none: log-ratios of their own policies
rank, after one stage of DPO on the built-in pairs. `smoke` makes everything small and short, to see it work.

With MODEL, an instruction-tuned Hugging Face checkpoint directory, and PAIRS.jsonl, `prompt`, `chosen` and `rejected`
in each row, it trains adapters on your own prompts: of 500 rows and more, the first 100 are kept for the evaluation, a
quarter of the others trains the referee, which tells the win rates, a quarter gives the prompts, and the rest trains
the judge that ranks.

SFT, the judge, and then stages that repeat: `pairs_1`, `direct_1`, `pairs_2`, `direct_2`. A run that is interrupted
continues where it was, as always. Each round has its row in the table of the evaluation.

Hardware: 2 CPU cores, 2 GB of memory.
Time: 5 minutes for INPO with the exact judge, of which SFT takes most, on 2 CPU cores that were busy with other things
too; a trained judge takes 3 to 6 minutes more, and `smoke` a minute or two in all.
Result: of one seed (0) alone, on 2026-11-30, INPO with the exact judge wins .597 [.583, .612] of the comparisons with
samples of SFT after one round, at a divergence of 0.3 nats, and .633 [.616, .650] after two, at 0.8. Other methods, and
other judges, have not been measured.
"""

from ml_collections import ConfigDict

from prl_jax.recipes.built_in import words_of
from prl_jax.recipes.direct import JUDGES, built_in_rounds, own_rounds
from prl_jax.recipes.own import split_method
from prl_jax.recipes.rounds import ITERATIVE


def get_config(arguments: str = "") -> ConfigDict:
    """`NAME[,JUDGE][,smoke]`, a method, and who ranks its samples; or `MODEL,PAIRS[,NAME]`."""
    if "/" in arguments or "." in arguments:  # a model directory, or the end of a file's name
        pairs, name = split_method(arguments, ITERATIVE)
        return own_rounds(pairs, name or "inpo")
    name, judge, size = words_of(arguments, ITERATIVE, JUDGES)
    return built_in_rounds(name, judge, size)
