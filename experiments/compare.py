"""Does pairwise RL win, where, and by how much? Many runs on the built-in tasks, counted together.

    prl compare --config experiments/compare.py:quick --workdir runs/compare_quick --seeds 2 --repetitions 2
    prl compare --config experiments/compare.py --workdir runs/compare --seeds 3 --repetitions 5
    prl run --config experiments/compare.py:main,pairwise --workdir runs/one

The last line is one run of it. Arms: Pairwise-RL against anchors (with what the critic sees, how many orders are asked
and who the anchors are varied), against a peer, and against a group; BT + PPO, PAR, GRPO and RLOO on either judge, DPO
on the judges' pairs, and the best of eight samples of SFT by either judge. Conditions: `main`, and one thing changed at
a time. Every online arm takes 40 steps of 256 responses. `compare.py:main,pairwise,ppo` compares these arms under this
condition; `matched` adds their further coefficients, for a comparison at one divergence.

Hardware: 2 CPU cores, 2 GB of memory for each of --jobs.
Time: quick 10 minutes; each arm and set of the main comparison 4 to 8 minutes.
Result: of 3 sets with 3 repetitions, which cannot tell the arms apart, Pairwise-RL wins .615 of the comparisons with
SFT, BT + PPO .601, the best of eight samples by the pairwise judge .636 and by BT .623
(benchmarks/results/comparison.md). With `--quick` intervals are wider than any difference.
"""

from ml_collections import ConfigDict

from prl_jax.comparing import Comparison
from prl_jax.recipes.comparison import cell_config, comparison


def get_config(arguments: str = "main,pairwise") -> ConfigDict:
    """`CONDITION,ARM[,coefficient=X][,repetitions=N][,quick]`."""
    return cell_config(arguments)


def get_comparison(arguments: str = "", *, seeds: int = 3, repetitions: int = 5) -> Comparison:
    """`[quick][,CONDITION ...][,ARM ...][,matched][,all]`."""
    return comparison(arguments, seeds=seeds, repetitions=repetitions)
