"""Several judges as one: identities of the combinations, both orders, disagreement."""

import jax
import numpy as np
import pytest
from fakes import user

from prl_jax.errors import UserError
from prl_jax.judges import (
    Combination,
    GoldJudge,
    Judged,
    Scored,
    ScoredPythonJudge,
    ScoringJudge,
    ensemble,
    judge_pairs,
)
from prl_jax.methods import Group, NoOpponent, Score, WinProbability
from prl_jax.training.compare import rewards_of

WAYS = [
    Combination("mean"),
    Combination("weighted", weights=(1.0, 2.0, 3.0)),
    Combination("min"),
    Combination("uwo", coefficient=0.5),
    Combination("lower_confidence", coefficient=0.5),
]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.kind)
PROMPTS, FIRST, SECOND = [user("p")] * 3, ["a", "bb", "c"], ["dd", "e", "ff"]
TINY = dict(atol=1e-6)


def sure(*p):
    """A judge with these probabilities in the order of FIRST, and 1 minus them of exchanged responses."""
    known = dict(zip(FIRST, p, strict=True))
    return GoldJudge(lambda prompt, a, b: known[a] if a in known else 1 - known[b])


class Biased:
    """A judge that favours slot 1, and merges logits: 3 and -1 become 1."""

    merge = "logit"

    def __init__(self, z_12=3.0):
        self.z_12 = z_12

    def __call__(self, prompts, first, second):
        return Judged(np.full(len(first), self.z_12, np.float32), np.full(len(first), 1.0, np.float32), self.merge)

    def counters(self):
        return {"asked": 2.0}


def lengths(scale):
    return ScoredPythonJudge(lambda prompts, responses: [scale * len(text) for text in responses], "lengths")


def p_first(members, way):
    return ensemble(members, way)(PROMPTS, FIRST, SECOND).p_first


@every_way
def test_members_that_agree_are_one_of_them(way):
    """And a single one is itself, whatever its form."""
    np.testing.assert_allclose(p_first([sure(0.9, 0.2, 0.5)] * 3, way), [0.9, 0.2, 0.5], **TINY)
    alone = Combination(way.kind, way.weights[:1], way.coefficient)
    np.testing.assert_allclose(p_first([Biased()], alone), 1 / (1 + np.exp(-1.0)), **TINY)
    scores = ensemble([lengths(2)] * 3, way).scored(PROMPTS, SECOND)
    np.testing.assert_allclose(scores.scores, [4, 2, 4])
    np.testing.assert_allclose(scores.deviation, 0, **TINY)


def test_each_combination_of_pairs_by_hand():
    """Members that agree on the first pair, do not on the second, and are nearly even on the third."""
    members = [sure(0.9, 0.9, 0.52), sure(0.7, 0.3, 0.5), sure(0.8, 0.3, 0.48)]
    margins = np.array([[0.4, 0.4, 0.02], [0.2, -0.2, 0.0], [0.3, -0.2, -0.02]])
    wanted = {
        "mean": [0.8, 0.5, 0.5],
        "weighted": [(0.9 + 1.4 + 2.4) / 6, (0.9 + 0.6 + 0.9) / 6, (0.52 + 1.0 + 1.44) / 6],
        "min": [0.7, 0.5, 0.5],
        "uwo": [0.8 - 0.5 * margins[:, 0].var(), 0.5, 0.5],
        "lower_confidence": [0.8 - 0.5 * margins[:, 0].std(), 0.5, 0.5],
    }
    for way in WAYS:
        np.testing.assert_allclose(p_first(members, way), wanted[way.kind], err_msg=way.kind, **TINY)
    judged = ensemble(members, WAYS[0])(PROMPTS, FIRST, SECOND)
    np.testing.assert_allclose(judged.deviation, margins.std(0), **TINY)
    assert isinstance(judged, Judged) and not isinstance(ensemble(members, WAYS[0]), ScoringJudge)


def test_each_combination_of_scores_by_hand():
    members = [lengths(1), lengths(2), lengths(6)]  # of two characters: 2, 4, 12
    wanted = [6, (2 + 8 + 36) / 6, 2, 6 - 0.5 * np.var([2, 4, 12]), 6 - 0.5 * np.std([2, 4, 12])]
    for way, value in zip(WAYS, wanted, strict=True):
        found = ensemble(members, way).scored(PROMPTS[:1], ["bb"])
        assert isinstance(found, Scored) and found.scores[0] == pytest.approx(value)
        assert found.deviation[0] == pytest.approx(np.std([2, 4, 12]))


@every_way
def test_exchanged_responses_have_the_opposite_answer(way):
    """So within a group one judgement serves both of its members."""
    judge = ensemble([sure(0.9, 0.9, 0.2), sure(0.6, 0.1, 0.3), sure(0.8, 0.5, 0.4)], way)
    there, back = judge(PROMPTS, FIRST, SECOND), judge(PROMPTS, SECOND, FIRST)
    np.testing.assert_allclose(there.z_12, -back.z_12, **TINY)
    np.testing.assert_array_equal(there.z_12, -there.z_21)
    assert there.p_first[0] > 0.5 > there.p_first[2]


def test_certainty_is_kept_and_what_is_no_number_shows():
    certain = p_first([sure(1.0, 0.0, 0.5)] * 2, Combination())
    np.testing.assert_allclose(certain, [1, 0, 0.5], **TINY)
    for way in (WAYS[0], *WAYS[2:]):
        assert np.isnan(ensemble([sure(0.9, 0.9, 0.9), Biased(np.nan)], way)(PROMPTS, FIRST, SECOND).z_12).all()


def test_what_was_cut_for_one_member_was_cut():
    class Short:
        merge = "probability"

        def __call__(self, prompts, first, second):
            return Judged(np.zeros(3, np.float32), np.zeros(3, np.float32), self.merge, np.array([False, True, False]))

        def scored(self, prompts, responses):
            return Scored(np.zeros(3, np.float32), np.array([True, False, False]))

    judge = ensemble([lengths(1), Short()], Combination())
    np.testing.assert_array_equal(judge(PROMPTS, FIRST, SECOND).cut, [False, True, False])
    np.testing.assert_array_equal(judge.scored(PROMPTS, FIRST).cut, [True, False, False])


def test_ensembles_of_ensembles():
    inner = ensemble([sure(0.9, 0.2, 0.5), sure(0.7, 0.4, 0.5)], Combination())
    outer = ensemble([inner, Biased(), ensemble([Biased()], Combination())], Combination("min"))
    np.testing.assert_allclose(outer(PROMPTS, FIRST, SECOND).p_first, [1 / (1 + np.exp(-1.0)), 0.5, 0.5], **TINY)
    assert outer.counters() == {"asked": 4.0}
    scoring = ensemble([ensemble([lengths(1), lengths(3)], Combination("min")), lengths(2)], Combination())
    np.testing.assert_allclose(scoring.scored(PROMPTS[:1], ["bb"]).scores, [3])


def test_a_step_knows_how_far_the_members_disagree():
    """Identical responses are even for all of them."""
    others = dict(group_size=2, anchors=[()] * 4, keys=jax.random.split(jax.random.key(0), 2))
    texts, prompts = ["a", "dd", "x", "x"], [user("p")] * 4
    judge = ensemble([sure(0.9, 0.5, 0.5), sure(0.5, 0.5, 0.5)], Combination())
    got = rewards_of([judge], Group(), WinProbability(), prompts, texts, **others)
    assert got.disagreement == pytest.approx(0.2 / 2)
    np.testing.assert_allclose(got.reward, [0.7, 0.3, 0.5, 0.5], **TINY)
    assert judge_pairs(sure(0.9, 0.5, 0.5), PROMPTS, FIRST, SECOND).deviation is None
    got = rewards_of(
        [ensemble([lengths(1), lengths(3)], Combination())], NoOpponent(), Score(), prompts, texts, **others
    )
    assert got.disagreement == pytest.approx(np.mean([1, 2, 1]))  # the same text once
    assert rewards_of([lengths(1)], NoOpponent(), Score(), prompts, texts, **others).disagreement is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(kind="median"), "combine='median', expected one of 'mean', 'weighted'"),
        (dict(weights=(1.0,)), "weights=.*: combine='mean' does not read them"),
        (dict(kind="weighted"), "weights=.*expected one for each member"),
        (dict(kind="weighted", weights=(1.0, -1.0)), "weights=.*at least 0"),
        (dict(kind="weighted", weights=(0.0, 0.0)), "weights=.*not all of them 0"),
        (dict(kind="min", coefficient=0.5), "coefficient=0.5: combine='min' does not read it"),
        (dict(kind="uwo"), "coefficient=0.0, expected more than 0"),
        (dict(kind="lower_confidence", coefficient=-1.0), "coefficient=-1.0, expected more than 0"),
    ],
)
def test_combinations_that_cannot_be_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        Combination(**values)


def test_as_many_weights_as_members():
    with pytest.raises(UserError, match="expected 2, one for each member"):
        ensemble([Biased(), Biased()], Combination("weighted", weights=(1.0, 2.0, 3.0)))
