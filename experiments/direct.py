"""Any direct preference loss of docs/methods.md on the built-in tasks: DPO and its family, without a reward model.

    prl run --config experiments/direct.py:dpo --workdir runs/dpo
    prl run --config experiments/direct.py:dpo,genrm --workdir runs/dpo-samples
    prl run --config experiments/direct.py:kto,smoke --workdir runs/smoke-kto
    prl run --config experiments/direct.py:MODEL,PAIRS.jsonl,kto --workdir runs/own-kto

The first word is a method. Without a second one it learns from the built-in pairs, whose responses other writers made;
with `gold` (the exact judge of the tasks), `bt` or `genrm` (a Bradley-Terry or a generative judge, trained on those
pairs) it learns from the best and the worst of four samples of the SFT policy, as that judge ranks them. Methods that
read win rates or scores (SPPO; RWR, MM-DPO) always do. `smoke` makes everything small and short, to see it work.

With MODEL, an instruction-tuned Hugging Face checkpoint directory, and PAIRS.jsonl, `prompt`, `chosen` and `rejected`
in each row (and what else the loss reads), it trains adapters on your own pairs; a third word names the method, DPO
without one. The first 100 rows are kept for the evaluation, and of 400 others and more a quarter trains a judge, the
referee, which tells the win rates; with fewer it learns from the same pairs as the policy.

SFT, what the method needs, the method with the loss of its row, and an evaluation by the exact judge of the tasks. To
change the loss: `--config.dpo.loss.beta=0.3`; a pair's references: `--config.dpo.references="('sft',)"`.

Hardware: 2 CPU cores, 2 GB of memory.
Time: 4 minutes for DPO on the built-in pairs, of which SFT takes most, on 2 CPU cores that were busy with other things
too; 5 with samples that a generative judge ranks, and `smoke` a minute or two.
Result: of one seed (0) alone, on 2026-11-30, DPO on the built-in pairs wins .588 [.568, .608] of the comparisons with
samples of SFT at a divergence of 1.5 nats, and on samples that a generative judge has ranked, which is right on .707 of
the pairs, .547 [.531, .563] at 0.5. More steps on samples are worse: with the exact judge, ten epochs at a learning
rate of 3e-4 came to .138 at 25 nats, and three at a tenth of it to .584. Other methods have not been measured.
"""

from ml_collections import ConfigDict

from prl_jax.methods.direct_table import DIRECT
from prl_jax.recipes.built_in import words_of
from prl_jax.recipes.direct import JUDGES, built_in_direct, judge_of, own_direct
from prl_jax.recipes.own import split_method


def get_config(arguments: str = "") -> ConfigDict:
    """`NAME[,JUDGE][,smoke]`, a method, and who ranks the samples that it learns from; or `MODEL,PAIRS[,NAME]`."""
    if "/" in arguments or "." in arguments:  # a model directory, or the end of a file's name
        pairs, name = split_method(arguments, DIRECT)
        return own_direct(pairs, name or "dpo")
    name, judge, size = words_of(arguments, DIRECT, JUDGES)
    return built_in_direct(name, judge or judge_of(name), size)
