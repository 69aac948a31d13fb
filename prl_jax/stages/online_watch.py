"""Signs of the judge that a policy learns from: certainty, identical responses, and errors where the truth is known.

Host work on texts that are there already, while the devices update the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from prl_jax.data.gold import parse, stated_content, utility
from prl_jax.evaluation import against_truth, saturation
from prl_jax.judges import Judge, Judged, ScoringJudge, judge_pairs
from prl_jax.methods import Judgements, Method
from prl_jax.runs.judges import JUDGES
from prl_jax.stages.online_samples import Step
from prl_jax.stages.online_section import watched_by
from prl_jax.text.chat import Prompt, prompt_text


class Truth(NamedTuple):
    """Somebody who is believed about the responses of a policy.

    Attributes:
      judge: is asked about pairs.
      worth: `(prompts, responses) -> [N]`, the score of each response; None of a judge that has none.
      sorts: `(prompt, response 1, response 2) -> names` of what the pair is one of.
    """

    judge: Judge
    worth: Callable[[Sequence[Prompt], Sequence[str]], Float[np.ndarray, "N"]] | None
    sorts: Callable[[Prompt, str, str], tuple[str, ...]] = lambda prompt, first, second: ()


class Comparisons(NamedTuple):
    """`K` comparisons of a step.

    Attributes:
      rows, columns: `[K]`, which response of the step it is, and which of its candidates the other one.
      prompts, first, second: their texts.
      p: `[K]` float64, the judge's P(the first is better); where it gives scores, the sigmoid of their difference.
      met: whether the second ones are opponents, which the reward depends on; else neighbours in the group.
    """

    rows: Int[np.ndarray, "K"]
    columns: Int[np.ndarray, "K"]
    prompts: list[Prompt]
    first: list[str]
    second: list[str]
    p: Float[np.ndarray, "K"]
    met: bool


def truth_of(config: ConfigDict, section: ConfigDict, judges: Mapping[str, Judge]) -> Truth | None:
    """Returns the judge that the section believes about its responses; None where nobody is known to be right."""
    name = watched_by(section)
    if not name:
        return None
    judge = judges[name]
    if JUDGES[config.judges[name].kind].built_in_tasks:
        return Truth(judge, _utilities, _sorts)
    return Truth(judge, _scores(judge) if isinstance(judge, ScoringJudge) else None)


def watched(method: Method, group_size: int, truth: Truth | None, done: Step) -> dict[str, float]:
    """The metrics of a step that are about its judge, as the README lists them."""
    found, seen = {}, comparisons(method, group_size, done)
    if seen is not None and seen.met:
        pairs = zip(seen.first, seen.second, strict=True)
        found["identical_to_opponent"] = float(np.mean([one == other for one, other in pairs]))
    if seen is not None and done.judged[0].z_ya is not None:
        found["judge_saturation"] = saturation(seen.p)
    if truth is not None:
        found |= _against(truth, method, done, seen)
    return found


def comparisons(method: Method, size: int, done: Step) -> Comparisons | None:
    """The pairs that the judge compared; where it gave scores to responses without opponents, each with its neighbour
    in the group of `size`. None where there is nothing to compare, and of several judges, who have no common answer."""
    judged = done.judged[0]
    if len(done.judged) > 1:
        return None
    rows, columns = np.nonzero(np.asarray(judged.mask))
    met, within = bool(len(rows)), method.opponents.candidates == "group"
    if not met and size > 1 and judged.scores is not None:
        rows, within = np.arange(len(done.responses)), True
        columns = (rows + 1) % size
    if not len(rows):
        return None
    neighbours = rows - rows % size + columns  # where candidates are of the group
    first, prompts = [done.responses[i] for i in rows], [done.prompts[i] for i in rows]
    if within:
        second = [done.responses[i] for i in neighbours]
    else:
        second = [done.anchors[i][m] for i, m in zip(rows, columns, strict=True)]
    if judged.z_ya is not None and judged.z_ay is not None:
        z_12, z_21 = (np.asarray(z)[rows, columns] for z in (judged.z_ya, judged.z_ay))
        p = Judged(z_12, z_21, judged.merge).p_first
    else:
        scores = np.asarray(judged.scores, np.float64)
        others = np.asarray(judged.opponent_scores)[rows, columns] if met else scores[neighbours]
        p = 0.5 + 0.5 * np.tanh(0.5 * (scores[rows] - others))
    return Comparisons(rows, columns, prompts, first, second, p, met)


def _against(truth: Truth, method: Method, done: Step, seen: Comparisons | None) -> dict[str, float]:
    """How right the judge is about a step, and what the responses are worth beside their reward.

    The exact reward of a method that asks about pairs is what the same reward would be if the truth had judged; of one
    that asks for scores, the mean of exact scores.
    """
    found, right = {}, None
    if seen is not None:
        right = judge_pairs(truth.judge, seen.prompts, seen.first, seen.second)
        differ = np.array([one != other for one, other in zip(seen.first, seen.second, strict=True)], bool)
        texts = zip(seen.prompts, seen.first, seen.second, strict=True)
        sorts = [truth.sorts(*pair) if other else () for pair, other in zip(texts, differ, strict=True)]
        names = sorted({name for pair in sorts for name in pair})
        groups = {name: np.array([name in pair for pair in sorts])[differ] for name in names}
        found |= against_truth(seen.p[differ], right.p_first[differ], groups)
    if method.reward.asks == "scores":
        if truth.worth is not None:
            found["exact_reward"] = float(np.mean(truth.worth(done.prompts, done.responses)))
    elif seen is not None and right is not None:
        mask = done.judged[0].mask
        z_ya, z_ay = np.zeros((2, *mask.shape), np.float32)
        z_ya[seen.rows, seen.columns], z_ay[seen.rows, seen.columns] = right.z_12, right.z_21
        judged = Judgements(mask, jnp.asarray(z_ya), jnp.asarray(z_ay), merge=right.merge)
        found["exact_reward"] = float(np.mean(method.reward(judged)))
    return found


def _scores(judge: ScoringJudge) -> Callable[[Sequence[Prompt], Sequence[str]], Float[np.ndarray, "N"]]:
    return lambda prompts, responses: judge.scored(prompts, responses).scores


def _utilities(prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[np.ndarray, "N"]:
    return np.array([utility(prompt_text(x), text) for x, text in zip(prompts, responses, strict=True)], np.float64)


def _sorts(prompt: Prompt, first: str, second: str) -> tuple[str, ...]:
    """The family of the task, and whether the contents differ or the form alone."""
    same = stated_content(first) == stated_content(second)
    return parse(prompt_text(prompt)).family, "form" if same else "content"
