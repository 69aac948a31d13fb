"""Rewards by comparison against a plain Python reference."""

import jax
import numpy as np
import pytest
from fakes import UtilityJudge, user

from prl_jax.errors import UserError
from prl_jax.training.opponents import compare

GROUP = 4
TEXTS = ["p"] * GROUP + ["q"] * GROUP
PROMPTS = [user(text) for text in TEXTS]
RESPONSES = ["a", "bb", "a", "dddd", "ee", "fff", "g", "hhhh"]  # the first prompt has a pair of identical ones


def utility(prompt: str, response: str) -> float:
    return 0.3 * len(response) * (1 if prompt == "p" else -2) + 0.01 * ord(response[:1] or "-")


def judge(bias: float = 0.6) -> UtilityJudge:
    """A judge that likes slot 1: whoever asks in one order only gets another answer."""
    return UtilityJudge(utility, bias)


def sigmoid(z: float) -> float:
    return 1.0 / (1.0 + np.exp(-z))


def win(prompt: str, response: str, other: str, bias: float = 0.6) -> float:
    """Probability that a response beats another, averaged over both orders."""
    if response == other:
        return 0.5
    gap = utility(prompt, response) - utility(prompt, other)
    return (sigmoid(gap + bias) + 1.0 - sigmoid(-gap + bias)) / 2.0


def opponents(kind: str, i: int) -> list[int]:
    start = i - i % GROUP
    return [i ^ 1] if kind == "peer" else [j for j in range(start, start + GROUP) if j != i]


@pytest.mark.parametrize("kind", ["peer", "group"])
def test_groups_equal_plain_python(kind):
    asked = judge()
    got = compare(asked, kind, PROMPTS, RESPONSES, group_size=GROUP, anchors=[()] * 8)
    for i, (text, response) in enumerate(zip(TEXTS, RESPONSES, strict=True)):
        expected = [win(text, response, RESPONSES[j]) for j in opponents(kind, i)]
        np.testing.assert_allclose(got.reward[i], np.mean(expected), rtol=1e-5)
        assert got.mask[i].sum() == len(expected)
        orders = sigmoid(got.z_ya[i][got.mask[i]]), sigmoid(got.z_ay[i][got.mask[i]])
        np.testing.assert_allclose(sorted((orders[0] + 1 - orders[1]) / 2), sorted(expected), rtol=1e-5)
    # Each unordered pair is asked once, the identical one never.
    pairs = {
        (text, frozenset((RESPONSES[i], RESPONSES[j]))) for i, text in enumerate(TEXTS) for j in opponents(kind, i)
    }
    asked_pairs = [(text, frozenset(pair)) for text, *pair in asked.asked]
    if kind == "group":  # "a" stands twice in the first group, so two of its pairs are asked twice
        assert len(asked_pairs) == 6 - 1 + 6
    else:
        assert len(asked_pairs) == 4
    assert set(asked_pairs) == {pair for pair in pairs if len(pair[1]) == 2}


@pytest.mark.parametrize("size", [2, 3, 8])
def test_rewards_of_a_group_add_up_to_half_its_size(size):
    """Whatever one member wins, another loses."""
    count = 24 // size * size
    texts = ["".join(chr(97 + (i * k) % 7) for k in range(i % 5)) for i in range(count)]
    prompts = [user("pq"[i // size % 2]) for i in range(count)]
    for kind in ("peer", "group") if size % 2 == 0 else ("group",):
        got = compare(judge(), kind, prompts, texts, group_size=size, anchors=[()] * count)
        np.testing.assert_allclose(got.reward.reshape(-1, size).sum(1), size / 2, rtol=1e-5)
        assert np.std(got.reward) > 0.05


def test_anchors_equal_plain_python_with_several_anchors_a_prompt():
    anchors = [("bb",), ("a", "cccc", ""), ("xx", "y"), ("dddd",), ("e",), ("e", "fff"), ("g", "g"), ("zzz",)]
    asked = judge()
    got = compare(asked, "anchor", PROMPTS, RESPONSES, group_size=GROUP, anchors=anchors)
    for i, row in enumerate(anchors):
        expected = [win(TEXTS[i], RESPONSES[i], anchor) for anchor in row]
        np.testing.assert_allclose(got.reward[i], np.mean(expected), rtol=1e-5)
        np.testing.assert_array_equal(got.mask[i], np.arange(3) < len(row))
        z_ya = [0.0 if a == RESPONSES[i] else judge().z(TEXTS[i], RESPONSES[i], a) for a in row]
        z_ay = [0.0 if a == RESPONSES[i] else judge().z(TEXTS[i], a, RESPONSES[i]) for a in row]
        np.testing.assert_allclose(got.z_ya[i, : len(row)], z_ya, rtol=1e-5)
        np.testing.assert_allclose(got.z_ay[i, : len(row)], z_ay, rtol=1e-5)
    assert all(one != other for _, one, other in asked.asked) and len(asked.asked) == 9
    assert got.reward[3] == got.reward[6] == 0.5 and got.reward.dtype == np.float32


def test_a_pool_is_drawn_anew_with_each_key_and_shared_by_the_group():
    anchors = [("aa", "bbb", "c", "dddd", "ee")] * GROUP + [("x", "yy")] * GROUP
    keys = jax.random.split(jax.random.key(0), (20, 2))
    met = np.zeros((2, 5))
    for row_keys in keys:
        got = compare(judge(), "pool", PROMPTS, RESPONSES, group_size=GROUP, anchors=anchors, keys=row_keys, draws=2)
        assert (got.mask.sum(1) == 2).all() and (got.mask == np.repeat(got.mask[::GROUP], GROUP, 0)).all()
        for i, drawn in enumerate(got.mask):
            expected = np.mean([win(TEXTS[i], RESPONSES[i], anchors[i][j]) for j in np.flatnonzero(drawn)])
            np.testing.assert_allclose(got.reward[i], expected, rtol=1e-5)
        met += got.mask[::GROUP]
    assert (met[0] > 2).all() and (met[1] == [20, 20, 0, 0, 0]).all()


def test_row_20_a_constant_preference_for_a_slot_moves_no_ranking():
    fair, biased = (
        compare(judge(bias), "group", PROMPTS, RESPONSES, group_size=GROUP, anchors=[()] * 8).reward
        for bias in (0.0, 1.5)
    )
    assert np.abs(fair - biased).max() > 0.01
    for group in (slice(0, 4), slice(4, 8)):
        np.testing.assert_array_equal(np.argsort(fair[group], kind="stable"), np.argsort(biased[group], kind="stable"))


@pytest.mark.parametrize(
    ("form", "transform"),
    [("id", lambda p: p), ("centred", lambda p: p - 0.5), ("logit", lambda p: np.log(p / (1 - p))), ("log", np.log)],
)
def test_forms_transform_the_win_probability(form, transform):
    got = compare(judge(), "peer", PROMPTS, RESPONSES, group_size=2, anchors=[()] * 8, form=form)
    expected = [transform(win(t, r, RESPONSES[i ^ 1])) for i, (t, r) in enumerate(zip(TEXTS, RESPONSES, strict=True))]
    np.testing.assert_allclose(got.reward, expected, rtol=1e-4, atol=1e-6)


def test_a_bradley_terry_judge_with_one_anchor_is_par():
    """`sigmoid(r(y) - r(a))` (arXiv 2502.18770)."""
    got = compare(judge(0.0), "anchor", PROMPTS, RESPONSES, group_size=GROUP, anchors=[("cc",)] * 8)
    rewards = [utility(t, r) - utility(t, "cc") for t, r in zip(TEXTS, RESPONSES, strict=True)]
    np.testing.assert_allclose(got.reward, jax.nn.sigmoid(np.array(rewards, np.float32)), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("peer", 3, "'peer': group_size=3, expected a multiple of 2"),
        ("peer", 1, "'peer': group_size=1"),
        ("group", 1, "'group': group_size=1"),
        ("rival", 4, r"opponents='rival', expected one of \('anchor', 'peer', 'group', 'pool'\)"),
        ("anchor", 4, "'anchor': a prompt has no anchor; run an anchors stage"),
        ("pool", 4, "'pool': a prompt has no anchor; run an anchors stage"),
    ],
)
def test_mistakes_are_named(kind, size, message):
    anchors = [("a",)] * 7 + [()]
    with pytest.raises(UserError, match=message):
        compare(judge(), kind, PROMPTS, RESPONSES, group_size=size, anchors=anchors)
