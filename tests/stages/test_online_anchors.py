"""Anchors whose place a response takes."""

import jax.numpy as jnp
import numpy as np
import pytest
from correctness.world import make_setup, policy_state
from fakes import UtilityJudge, make_decoder

from prl_jax.methods import Judgements
from prl_jax.stages.online_anchors import KeptAnchors, probabilities
from prl_jax.stages.online_samples import roll_out

TEXTS = [("a", "b"), ("c",), ("d", "e")]


def judged(wins: list[list[float]], mask: list[list[bool]]) -> Judgements:
    p = np.array(wins)
    z = jnp.asarray(np.log(p / (1 - p)), jnp.float32)
    return Judgements(jnp.asarray(mask), z, -z)


def test_who_beats_an_anchor_clearly_takes_the_place_of_the_one_that_is_beaten_the_most():
    kept = KeptAnchors(TEXTS, 0.8)
    wins = [[0.6, 0.7], [0.85, 0.9], [0.79, 0.5], [0.1, 0.5]]
    met = [[True, True], [True, True], [True, False], [True, False]]
    whole, responses = np.zeros(4, bool), ["one", "two", "three", "four"]
    assert kept.learn(np.array([2, 1]), responses, whole, judged(wins, met), 2) == 1
    assert [list(kept[i]) for i in range(3)] == [["a", "b"], ["c"], ["d", "two"]]
    # Whom nobody has met stays, however the judge would answer.
    assert kept.learn(np.array([2]), ["x", "y"], whole[:2], judged([[0.7, 0.99]] * 2, [[True, False]] * 2), 2) == 0


def test_cut_and_empty_responses_stand_for_no_prompt_and_a_record_changes_once():
    kept, met = KeptAnchors(TEXTS, 0.8), [[True]] * 3
    wins = judged([[0.9], [0.95], [0.85]], met)
    assert kept.learn(np.array([1, 1, 1]), ["", "cut", "whole"], np.array([False, True, False]), wins, 1) == 1
    assert list(kept[1]) == ["whole"]
    assert kept.learn(np.array([1, 1, 1]), ["x", "best", "z"], np.zeros(3, bool), wins, 1) == 1
    assert list(kept[1]) == ["best"]


def test_a_continued_stage_has_the_anchors_of_the_one_that_was_stopped():
    kept, again = KeptAnchors(TEXTS, 0.6), KeptAnchors(TEXTS, 0.6)
    kept.learn(np.array([1]), ["better"], np.zeros(1, bool), judged([[0.9]], [[True]]), 1)
    again.set_state(kept.get_state())
    assert [list(again[i]) for i in range(len(again))] == [["a", "b"], ["better"], ["d", "e"]]
    assert TEXTS[1] == ("c",)


def test_scores_say_who_has_won_too():
    given = Judgements(jnp.ones((1, 2), bool), scores=jnp.array([1.0]), opponent_scores=jnp.array([[1.0, -1.0]]))
    np.testing.assert_allclose(probabilities(given), [[0.5, 1 / (1 + np.exp(-2.0))]], rtol=1e-6)


def test_the_next_step_meets_the_new_anchors():
    policy, likes_long = make_decoder(0, layers=1), UtilityJudge(lambda prompt, response: 0.8 * len(response))
    setup = make_setup(policy, opponents=dict(kind="anchors"), group_size=2)
    kept = KeptAnchors([("",)] * 4, 0.6)
    setup = setup._replace(anchors=kept, judges=[likes_long])
    done = roll_out(setup, policy_state(policy), np.arange(4), 1)
    left = kept.learn(np.arange(4), done.responses, np.zeros(8, bool), done.judged[0], 2)
    groups = np.array(done.responses, object).reshape(4, 2)
    longest = [max(group, key=len) for group in groups]
    assert left == sum(map(bool, longest)) > 0
    after = roll_out(setup, policy_state(policy), np.arange(4), 2)
    assert [len(texts[0]) for texts in after.anchors[::2]] == [len(text) for text in longest]


@pytest.mark.parametrize("kind", ["anchors", "pool"])
def test_without_the_key_anchors_stay(kind):
    setup = make_setup(make_decoder(0, layers=1), opponents=dict(kind=kind))
    assert setup.method.opponents.beaten == 0.0
