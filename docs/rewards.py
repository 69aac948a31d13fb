"""Writes `docs/rewards.md`: how a verdict becomes a reward, which method does it how, and what it costs.

python docs/rewards.py

The figures are drawn by `docs/rewards_figures.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from prl_jax.costs.models import AbstractModels, bytes_per_device, held_bytes  # noqa: E402
from prl_jax.losses import symmetrise  # noqa: E402
from prl_jax.methods import METHODS, Group, Judgements, Preset, WinProbability, baselines  # noqa: E402
from prl_jax.sharding import make_mesh  # noqa: E402
from prl_jax.stages import KINDS, online_costs  # noqa: E402
from prl_jax.stages.kind import Checking  # noqa: E402
from prl_jax.stages.online_section import judges_of, method_in  # noqa: E402

FILE = ROOT / "docs" / "rewards.md"
# A judge's probabilities that slot 1 wins, of rows in slot 1 and columns in slot 2: it likes slot 1 a little too much.
VERDICTS = ((0.5, 0.7, 0.85, 0.95), (0.4, 0.5, 0.75, 0.9), (0.3, 0.4, 0.5, 0.8), (0.15, 0.2, 0.35, 0.5))

HEAD = """# From verdicts to rewards

<!-- Written by docs/rewards.py from the table of methods and what the pieces return; don't edit it. -->

A judge compares two responses to a prompt, and says how probable it is that the one in slot 1 is better. A policy
learns from one number for each response. Between the two stand choices that papers make in passing and that decide what
is learned: who meets whom, in which order, how several verdicts become one reward, and what is subtracted from it. Here
each choice is a piece or a key, so that they can be combined and compared. [methods.md](methods.md) has every piece
with its keys; this page says what they do.

## Step by step

1. **Opponents.** Each response to a prompt meets opponents: other responses to it, anchors that were kept for the
   prompt, or a response that is sampled for it at each step. A method that takes scores of single responses may meet
   nobody.
2. **Orders.** A comparison is judged with the response in slot 1, and again with it in slot 2 (`orders="both"`), or in
   one of the two, at half the price. Judges tend to favour a slot. In both orders that favour cancels, up to the curve
   of the sigmoid; in one order it stays, and within a group whoever stands in the favoured slot more often gains by it.
3. **One probability.** `P(y beats y') = (p_12 + 1 - p_21) / 2`, or the mean of the logits, as the judge was trained
   (`reward.merge`).
4. **Map.** What a probability is worth (`reward.map`): itself, its logarithm, its logit, or just who won.
5. **Aggregation.** Over the opponents the mean, the worst case, or the sign (`reward.over`). With scores the shape
   comes first, against the opponents' scores where it compares.
6. **Switches of the stage.** A penalty for running out of room, `overlong`, `length_weight`, and the divergence where
   it is part of the reward (`reward_kl`).
7. **Baseline.** What is subtracted: a constant, the mean of the group, a critic. The result is the advantage.
8. **Surrogate.** How the advantage moves the policy, and where it stops.

"""

EXAMPLE = """## An example

Four responses to a prompt, each against the three others, in both orders. The judge says for slot 1 (rows) against
slot 2 (columns):

{verdicts}
Both orders together, the mean as reward, and advantages of the group:

{rewards}
"""

FIGURES = """## The pieces in figures

`python docs/rewards_figures.py` draws them; every number is what the piece returns.

### Opponents

Rows are four responses to a prompt, columns are whom they may meet: each other (y1 to y4), three anchors (a1 to a3), or
a response that is sampled for the prompt. A cell says in which slot the response stands: 1, 2, or once in each. What is
drawn at random is one example.

![Whom each of four responses meets, for each kind of opponents](rewards/opponents.svg)

### Maps of a probability

One opponent, and a judge without a preference for a slot, for which `verdicts` is the same as `hard`. `logit` and `log`
go on beyond the frame. They stretch the ends, where judges are the least reliable; the hard maps make a step of the
middle, where labels are the noisiest.

![Reward against the probability of a win, for each map](rewards/maps.svg)

### Shapes of a score

One opponent of score 0, for which `centred` is the same as `score`. What saturates cannot be driven up without end by
a judge that is wrong far from its data. `minmax` and `running_norm` depend on other scores too; here these are all
those of the line.

![Reward against the score, for each kind of reward that asks for scores](rewards/shapes.svg)

### Baselines

A group with the rewards in the first picture, each response being one token. The critic says 0.5 everywhere, the greedy
response earns 0.5, and the batch is this one group.

![Advantages of the four responses, for each baseline](rewards/baselines.svg)

### Surrogates

The pull on a response's log-probability, minus the derivative of the loss: where it is 0, nothing moves. The loss
itself would say less: `cispo` and `reinforce` weigh log-probabilities with a factor that has no gradient. The lower row
has losses of whole responses, which hold the divergence themselves (with a coefficient of 1 here, so that it shows):
their pull shrinks as the response moves away from the reference, and turns once that costs more than it earns. Pairs
have a second response with the opposite advantage, which moves the other way.

![Pull against the ratio of probabilities, for each surrogate and both signs of the advantage](rewards/surrogates.svg)

"""

ROWS = """## Which method is which row

Orders are those in which a comparison is judged; a method without comparisons asks for scores. What differs from the
defaults of a piece stands in brackets.

"""

COSTS = """## What each costs

Counted by the code that estimates a run, for `experiments/online.py:NAME` with the judge that the method needs. The
setting: 256 responses a step, prompts of 14 tokens, responses of 10, rows of a generative judge of 38 and of a
Bradley-Terry judge of 24 tokens; one anchor for a prompt, four where a quantile of them is taken.

- *Rows a response*: rows that judges read in a step, at most, over the responses that train the policy. Identical
  responses are a tie that nobody is asked about, so there may be fewer.
- *Tokens a response*: these rows times their length.
- *Sampled*: responses that are sampled for each that trains the policy; an opponent or a baseline may need one more for
  the prompt.
- *Memory*: what the stage holds all the time, in copies of the policy's parameters in float32: the policy with the two
  moments of its optimizer is 3, the reference 1, a critic 3, each judge 1. Gradients, activations and caches come on
  top; `prl plan` and the first lines of a run have them.

"""
COMPARED = """
In a group of G responses, comparing all with all takes G - 1 rows a response in both orders, and half of that in one.
A ring (`circular`) and neighbours (`peer`) take 1, one opponent for all takes 2, and a member of the group as that
opponent a little less. So only `group` becomes dearer for each response as groups grow.
"""


def page() -> str:
    """The whole page."""
    return "".join([HEAD, _example(), FIGURES, ROWS, _methods(), "\n", COSTS, _costs(), COMPARED])


def _example() -> str:
    p, names = jnp.asarray(VERDICTS, jnp.float32), [f"y{i + 1}" for i in range(len(VERDICTS))]
    met = Group().mask(jnp.ones((1, *p.shape), bool), jax.random.split(jax.random.key(0), 1))[0]
    z_ya = jnp.log(p) - jnp.log1p(-p)
    judged = Judgements(met, z_ya, z_ya.T)
    wins, rewards = symmetrise(judged.z_ya, judged.z_ay), WinProbability()(judged)
    lists = {"reward": rewards, "reward, `hard`": WinProbability(map="hard")(judged)}
    mask = jnp.ones((len(names), 1), bool)
    given = baselines.Rewards(rewards[:, None], mask, mask, jnp.zeros(len(names), bool), len(names))
    for piece in (baselines.GroupMean(), baselines.LeaveOneOut(), baselines.Standardised()):
        lists[f"`{piece.kind}`"] = piece(given, None)[0][:, 0]
    numbers = lambda row: [f"{x + 0.0:.2f}" for x in np.asarray(row)]  # noqa: E731
    blank = lambda i, row: ["" if i == j else x for j, x in enumerate(numbers(row))]  # noqa: E731
    verdicts = _table(["slot 1", *names], [[name, *blank(i, p[i])] for i, name in enumerate(names)])
    columns = [numbers(values) for values in lists.values()]
    rows = [[name, *blank(i, wins[i]), *(c[i] for c in columns)] for i, name in enumerate(names)]
    return EXAMPLE.format(verdicts=verdicts, rewards=_table(["", *(f"beats {n}" for n in names), *lists], rows))


def _methods() -> str:
    head = ["method", "meets", "orders", "reward", "baseline", "surrogate", "regulariser"]
    return _table(head, [_row(name, preset) for name, preset in METHODS.items()])


def _row(name: str, preset: Preset) -> list[str]:
    method = preset.method
    orders = method.opponents.orders if method.reward.asks == "pairs" else "scores"
    kinds = (method.reward, method.baseline, method.surrogate, method.regulariser)
    return [f"[`{name}`](methods.md)", _piece(method.opponents), orders, *map(_piece, kinds)]


def _piece(piece: Any) -> str:
    changed = [f for f in dataclasses.fields(piece) if getattr(piece, f.name) != f.default and f.name != "orders"]
    words = ", ".join(f"`{field.name}={getattr(piece, field.name)!r}`" for field in changed)
    return f"`{piece.kind}`" + (f" ({words})" if words else "")


def _costs() -> str:
    rows = [[f"`{name}`", *map(str, cost(name))] for name in METHODS]
    head = ["method", "responses to a prompt", "judges", "rows a response", "tokens a response", "sampled", "memory"]
    return _table(head, rows)


def cost(name: str) -> tuple[int, str, str, str, str, str]:
    """The row of a method in the table of costs, without its name."""
    config = _experiment().get_config(name)
    section, method = config[name], method_in(config[name])
    models = AbstractModels(config, make_mesh(devices=jax.devices()[:1]), Checking(config, KINDS).card)
    asked = online_costs.judged_rows(config, section, method)
    judges = [judge for word in judges_of(section) for judge in models.judge(word)]
    responses = section.prompts_per_step * section.group_size
    held = {}
    for part in online_costs.held(models, name):
        held |= held_bytes(part)
    copies = sum(held.values()) / bytes_per_device(models.policy(section.policy).model)
    rows, tokens = asked * len(judges), asked * sum(judge.length for judge in judges)
    names = ", ".join(f"`{word}`" for word in judges_of(section))
    more = method.opponents.candidates == "sampled" or method.baseline.reads_greedy
    sampled = 1 + section.prompts_per_step * more / responses
    return section.group_size, names, *(f"{x:.3g}" for x in (rows / responses, tokens / responses, sampled, copies))


@functools.cache
def _experiment() -> Any:
    spec = importlib.util.spec_from_file_location("online", ROOT / "experiments" / "online.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    FILE.write_text(page())
