"""What a step shows of its judge: on texts of the built-in tasks, where the truth is known."""

import jax
import numpy as np
import pytest
from fakes import UtilityJudge, user, with_pieces

from prl_jax.data.gold import preference, utility
from prl_jax.judges import GoldJudge, Scored
from prl_jax.methods import METHODS, Judgements
from prl_jax.stages import config as c
from prl_jax.stages.online_samples import Step
from prl_jax.stages.online_watch import comparisons, truth_of, watched
from prl_jax.training.compare import rewards_of

GOLD = GoldJudge(preference)
PROMPTS = [user("sort dbca!")] * 2 + [user("rev dbca.")] * 2
RESPONSES = ["ABCD", "abcd", "acbd", "acbd"]  # right, form alone, wrong twice
ANCHORS = [("ABCD", "FEAD")] * 2 + [("acbd", "abcd")] * 2


def config_of(method="spo", **section):
    return c.build(dict(sft=c.sft(), policy=c.online(method, judge="house", **section)), judges=JUDGES)


JUDGES = dict(house=c.judge("python", path="rules.py:f"), answers=c.judge("verifier", answers=c.source(path="a.jsonl")))


def step(method, judge, responses=tuple(RESPONSES)):
    """A step of two prompts with two responses each, judged as a stage does it."""
    asks = dict(group_size=2, anchors=ANCHORS, keys=jax.random.split(jax.random.key(0), 2))
    rewarded = rewards_of([judge], method.opponents, method.reward, PROMPTS, list(responses), **asks)
    empty = dict(
        greedy=None, rollout=None, stopped=None, truncated_prompts=0, cut_judgements=0, disagreement=None, longest=4
    )
    return Step(PROMPTS, list(responses), ANCHORS, rewarded.judged, rewarded.reward, **empty)


def truth(method="spo", name="gold", judge=GOLD, **section):
    config = config_of(method, **section)
    return truth_of(config, config.policy, {name: judge})


def test_a_judge_that_is_exact_is_always_right_and_its_reward_is_the_exact_one():
    method = METHODS["spo"].method
    found = watched(method, 2, truth(), step(method, GOLD))
    assert found["judge_accuracy"] == 1 and found["judge_ece"] == pytest.approx(0, abs=1e-6)
    assert found["identical_to_opponent"] == 0.5  # of the second prompt
    assert found["exact_reward"] == pytest.approx(0.5)


def test_a_judge_that_is_always_wrong_is_named_by_family_and_by_what_differs():
    method = with_pieces(METHODS["spo"].method, opponents=METHODS["pairwise_rl"].method.opponents)
    wrong = GoldJudge(lambda prompt, first, second: preference(prompt, second, first))
    found = watched(method, 2, truth(), step(method, wrong))
    assert {key: value for key, value in found.items() if key.startswith("judge_accuracy")} == {
        "judge_accuracy": 0, "judge_accuracy/content": 0, "judge_accuracy/form": 0,
        "judge_accuracy/sort": 0, "judge_accuracy/rev": 0,
    }  # fmt: skip
    p = [[preference(x[0].content, a, b) for b in row] for x, a, row in zip(PROMPTS, RESPONSES, ANCHORS, strict=True)]
    assert found["exact_reward"] == pytest.approx(np.mean(p))
    assert found["judge_saturation"] == np.mean([[max(q, 1 - q) > 0.98 for q in row] for row in p])


def test_scores_are_compared_within_the_group_and_their_truth_is_the_utility():
    method = METHODS["grpo"].method

    class Lengths(UtilityJudge):
        def scored(self, prompts, responses):
            return Scored(np.array([len(text) for text in responses], np.float32), np.zeros(len(prompts), bool))

    lengths = Lengths(lambda prompt, text: len(text))
    responses = ["ABCD", "ABCD~~", "acbd", "acbd"]
    done = step(method, lengths, responses)
    found = watched(method, 2, truth("grpo"), done)
    assert "identical_to_opponent" not in found and "judge_saturation" not in found  # a score has no bound
    assert found["judge_accuracy"] == 0  # filler is not better
    worth = [utility(prompt[0].content, text) for prompt, text in zip(PROMPTS, responses, strict=True)]
    assert found["exact_reward"] == pytest.approx(np.mean(worth))
    seen = comparisons(method, 2, done)
    np.testing.assert_allclose(seen.p, 1 / (1 + np.exp([2.0, -2.0, 0.0, 0.0])))
    assert comparisons(method, 1, done) is None and "judge_accuracy" not in watched(method, 1, truth("grpo"), done)


def test_several_judges_have_no_common_answer():
    method, done = METHODS["spo"].method, step(METHODS["spo"].method, GOLD)
    two = done._replace(judged=done.judged * 2)
    assert watched(method, 2, truth(), two) == {}


def test_without_a_truth_the_judge_alone_is_described():
    method = METHODS["spo"].method
    own = truth(prompts=c.source(kind="jsonl", path="own.jsonl"))
    assert own is None
    assert watched(method, 2, own, step(method, GOLD)).keys() == {"identical_to_opponent", "judge_saturation"}


def test_a_judge_of_the_config_is_believed_about_own_prompts():
    """It scores, and knows no families."""
    method = METHODS["spo"].method

    class Right(UtilityJudge):
        def scored(self, prompts, responses):
            return Scored(np.array([float(text == "ABCD") for text in responses], np.float32), np.zeros(4, bool))

    right = Right(lambda prompt, text: float(text == "ABCD"))
    own = truth(name="answers", judge=right, watch="answers", prompts=c.source(kind="jsonl", path="own.jsonl"))
    found = watched(method, 2, own, step(method, GOLD))
    assert found["judge_accuracy"] == 1 and not [key for key in found if "/" in key]
    assert own.worth(PROMPTS, RESPONSES).tolist() == [1, 0, 0, 0]
    assert isinstance(step(method, GOLD).judged[0], Judgements)
