"""Rewards of judges that are asked, against a plain Python reference."""

import dataclasses

import jax
import numpy as np
import pytest
from fakes import UtilityJudge, user

from prl_jax.errors import UserError
from prl_jax.judges import Scored
from prl_jax.methods import PAR, Anchors, Group, NoOpponent, Peer, Pool, Score, WinProbability, opponents, scores
from prl_jax.stages import config as c
from prl_jax.stages.online_costs import judged_rows
from prl_jax.stages.online_section import method_in
from prl_jax.training.compare import rewards_of

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


def ask(judge, piece, prompts, responses, *, size=GROUP, anchors=None, keys=None, reward=None):
    """Rewards, with what is the same in most tests left out."""
    count = len(responses)
    keys = jax.random.split(jax.random.key(0), count // size) if keys is None else keys
    anchors = [()] * count if anchors is None else anchors
    options = dict(group_size=size, anchors=anchors, keys=keys)
    return rewards_of([judge], piece, reward or WinProbability(), prompts, responses, **options)


def met_by(kind: str, i: int) -> list[int]:
    start = i - i % GROUP
    return [i ^ 1] if kind == "peer" else [j for j in range(start, start + GROUP) if j != i]


@pytest.mark.parametrize("piece", [Peer(), Group()], ids=lambda piece: piece.kind)
def test_groups_equal_plain_python(piece):
    asked, kind = judge(), piece.kind
    got = ask(asked, piece, PROMPTS, RESPONSES)
    mask = np.asarray(got.judged[0].mask)
    for i, (text, response) in enumerate(zip(TEXTS, RESPONSES, strict=True)):
        expected = [win(text, response, RESPONSES[j]) for j in met_by(kind, i)]
        np.testing.assert_allclose(got.reward[i], np.mean(expected), rtol=1e-5)
        assert mask[i].sum() == len(expected) == piece.per_response(GROUP, 0)
        orders = sigmoid(got.judged[0].z_ya[i][mask[i]]), sigmoid(got.judged[0].z_ay[i][mask[i]])
        np.testing.assert_allclose(sorted((orders[0] + 1 - orders[1]) / 2), sorted(expected), rtol=1e-5)
    # Each unordered pair is asked once, the identical one never.
    pairs = {(text, frozenset((RESPONSES[i], RESPONSES[j]))) for i, text in enumerate(TEXTS) for j in met_by(kind, i)}
    asked_pairs = [(text, frozenset(pair)) for text, *pair in asked.asked]
    if kind == "group":  # "a" stands twice in the first group, so two of its pairs are asked twice
        assert len(asked_pairs) == 6 - 1 + 6
    else:
        assert len(asked_pairs) == 4
    assert set(asked_pairs) == {pair for pair in pairs if len(pair[1]) == 2}


def test_everybody_sees_orders_that_are_merged_as_the_reward_does():
    """The reward, and what is measured of its judgements: how a judge merges them counts where the reward leaves it."""
    for merge in ("", "probability", "logit"):
        got = ask(judge(), Group(), PROMPTS, RESPONSES, reward=WinProbability(merge=merge))
        (judged,) = got.judged
        assert judged.merge == (merge or "probability")
        np.testing.assert_allclose(WinProbability()(judged), got.reward)
    assert np.abs(got.reward - ask(judge(), Group(), PROMPTS, RESPONSES).reward).max() > 0.01


@pytest.mark.parametrize("size", [2, 3, 8])
def test_rewards_of_a_group_add_up_to_half_its_size(size):
    """Whatever one member wins, another loses."""
    count = 24 // size * size
    texts = ["".join(chr(97 + (i * k) % 7) for k in range(i % 5)) for i in range(count)]
    prompts = [user("pq"[i // size % 2]) for i in range(count)]
    for piece in (Peer(), Group()) if size % 2 == 0 else (Group(),):
        got = ask(judge(), piece, prompts, texts, size=size)
        np.testing.assert_allclose(got.reward.reshape(-1, size).sum(1), size / 2, rtol=1e-5)
        assert np.std(got.reward) > 0.05


def test_anchors_equal_plain_python_with_several_anchors_a_prompt():
    anchors = [("bb",), ("a", "cccc", ""), ("xx", "y"), ("dddd",), ("e",), ("e", "fff"), ("g", "g"), ("zzz",)]
    asked = judge()
    got = ask(asked, Anchors(), PROMPTS, RESPONSES, anchors=anchors)
    for i, row in enumerate(anchors):
        expected = [win(TEXTS[i], RESPONSES[i], anchor) for anchor in row]
        np.testing.assert_allclose(got.reward[i], np.mean(expected), rtol=1e-5)
        np.testing.assert_array_equal(got.judged[0].mask[i], np.arange(3) < len(row))
        z_ya = [0.0 if a == RESPONSES[i] else judge().z(TEXTS[i], RESPONSES[i], a) for a in row]
        z_ay = [0.0 if a == RESPONSES[i] else judge().z(TEXTS[i], a, RESPONSES[i]) for a in row]
        np.testing.assert_allclose(got.judged[0].z_ya[i, : len(row)], z_ya, rtol=1e-5)
        np.testing.assert_allclose(got.judged[0].z_ay[i, : len(row)], z_ay, rtol=1e-5)
    assert all(one != other for _, one, other in asked.asked) and len(asked.asked) == 9
    assert got.reward[3] == got.reward[6] == 0.5 and got.reward.dtype == np.float32


def test_a_pool_is_drawn_anew_with_each_key_and_shared_by_the_group():
    anchors = [("aa", "bbb", "c", "dddd", "ee")] * GROUP + [("x", "yy")] * GROUP
    keys = jax.random.split(jax.random.key(0), (20, 2))
    met = np.zeros((2, 5))
    for row_keys in keys:
        got = ask(judge(), Pool(draws=2), PROMPTS, RESPONSES, anchors=anchors, keys=row_keys)
        mask = np.asarray(got.judged[0].mask)
        assert (mask.sum(1) == 2).all() and (mask == np.repeat(mask[::GROUP], GROUP, 0)).all()
        for i, drawn in enumerate(mask):
            expected = np.mean([win(TEXTS[i], RESPONSES[i], anchors[i][j]) for j in np.flatnonzero(drawn)])
            np.testing.assert_allclose(got.reward[i], expected, rtol=1e-5)
        met += mask[::GROUP]
    assert (met[0] > 2).all() and (met[1] == [20, 20, 0, 0, 0]).all()


def test_row_20_a_constant_preference_for_a_slot_moves_no_ranking():
    fair, biased = (ask(judge(bias), Group(), PROMPTS, RESPONSES).reward for bias in (0.0, 1.5))
    assert np.abs(fair - biased).max() > 0.01
    for group in (slice(0, 4), slice(4, 8)):
        np.testing.assert_array_equal(np.argsort(fair[group], kind="stable"), np.argsort(biased[group], kind="stable"))


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("id", lambda p: p),
        ("centred", lambda p: p - 0.5),
        ("logit", lambda p: np.log(p / (1 - p))),
        ("log", np.log),
        ("hard", lambda p: (np.sign(p - 0.5) + 1) / 2),
    ],
)
def test_maps_transform_the_win_probability(name, transform):
    got = ask(judge(), Peer(), PROMPTS, RESPONSES, size=2, reward=WinProbability(map=name))
    expected = [transform(win(t, r, RESPONSES[i ^ 1])) for i, (t, r) in enumerate(zip(TEXTS, RESPONSES, strict=True))]
    np.testing.assert_allclose(got.reward, expected, rtol=1e-4, atol=1e-6)


def test_a_bradley_terry_judge_with_one_anchor_is_par():
    """`sigmoid(r(y) - r(a))` (arXiv 2502.18770)."""
    got = ask(judge(0.0), Anchors(), PROMPTS, RESPONSES, anchors=[("cc",)] * 8)
    rewards = [utility(t, r) - utility(t, "cc") for t, r in zip(TEXTS, RESPONSES, strict=True)]
    np.testing.assert_allclose(got.reward, jax.nn.sigmoid(np.array(rewards, np.float32)), rtol=1e-5)


class ScoringUtilityJudge(UtilityJudge):
    """Says its utilities too, and counts the texts that it is asked about."""

    def scored(self, prompts, responses):
        texts = [prompt[-1].content for prompt in prompts]
        self.asked += list(zip(texts, responses, strict=True))
        scores = np.array([self.utility(*row) for row in zip(texts, responses, strict=True)], np.float32)
        return Scored(scores, np.zeros(len(scores), bool))


@pytest.mark.parametrize(
    ("method", "more", "rows"),
    [
        ("p3o", {}, 4),  # 2 pairs, both orders
        ("pref_grpo", {}, 24),  # 6 pairs a prompt, both orders
        ("pairwise_rl", dict(group_size=2), 16),  # 4 responses, 2 anchors, both orders
        ("pairwise_rl", dict(group_size=2, opponents=dict(kind="pool", draws=1)), 8),
        ("grpo", {}, 8),
        ("par", dict(group_size=4), 12),  # 8 responses, and 2 anchors of each prompt
        ("par", dict(group_size=4, opponents=dict(kind="group"), baseline=dict(sees_opponent=False)), 8),
    ],
)
def test_the_plan_counts_the_rows_that_a_judge_reads(method, more, rows):
    stages = dict(anchors=c.anchors(keep=2), policy=c.online(method, prompts_per_step=2, **more))
    config = c.build(stages)
    section, pieces = config.policy, method_in(config.policy)
    size = section.group_size
    texts, asked = [text for text in "pq" for _ in range(size)], ScoringUtilityJudge(utility)
    anchors = [(f"one {text}", f"another {text}") for text in texts]
    responses = ["x" * i for i in range(1, 2 * size + 1)]
    options = dict(size=size, anchors=anchors, reward=pieces.reward)
    ask(asked, pieces.opponents, [user(text) for text in texts], responses, **options)
    orders = 2 if pieces.reward.asks == "pairs" else 1
    assert judged_rows(config, section, pieces) == orders * len(asked.asked) == rows


def test_scores_are_those_of_the_judge_and_the_same_text_is_scored_once():
    asked = ScoringUtilityJudge(utility)
    got = ask(asked, NoOpponent(), PROMPTS, RESPONSES, reward=Score())
    expected = [utility(t, r) for t, r in zip(TEXTS, RESPONSES, strict=True)]
    np.testing.assert_allclose(got.reward, expected, rtol=1e-6)
    assert got.judged[0].mask.shape == (8, 0) and got.judged[0].z_ya is None and got.reward.dtype == np.float32
    assert len(asked.asked) == len(set(asked.asked)) == 7


def test_scores_against_anchors_equal_plain_python():
    """`mean_m sigmoid(k (r(y) - r(a_m)))` over anchors that are scored once a prompt."""
    anchors = [("cc", "d")] * 3 + [("cc",)] * 1 + [("e", "hhhh")] * 4
    asked = ScoringUtilityJudge(utility)
    got = ask(asked, Anchors(), PROMPTS, RESPONSES, anchors=anchors, reward=PAR(k=2.0))
    for i, (text, response) in enumerate(zip(TEXTS, RESPONSES, strict=True)):
        wins = [sigmoid(2.0 * (utility(text, response) - utility(text, anchor))) for anchor in anchors[i]]
        np.testing.assert_allclose(got.reward[i], np.mean(wins), rtol=1e-5)
    assert len(asked.asked) == len(set(asked.asked)) == 3 + 2 + 4 + 1  # an anchor is a response too


@pytest.mark.parametrize("opponents", [Anchors(), Pool()], ids=lambda piece: piece.kind)
def test_a_prompt_without_an_anchor_is_named(opponents):
    with pytest.raises(UserError, match="a prompt has no anchor; run an anchors stage"):
        ask(judge(), opponents, PROMPTS, RESPONSES, anchors=[("a",)] * 7 + [()])


def test_a_judge_without_scores_is_named():
    with pytest.raises(UserError, match="UtilityJudge compares pairs and has no scores; the reward needs a judge"):
        ask(judge(), NoOpponent(), PROMPTS, RESPONSES, reward=Score())


def asked_orders(asked, prompt: str) -> list[tuple[str, str]]:
    return [(one, other) for text, one, other in asked.asked if text == prompt]


class OneOrderUtilityJudge(UtilityJudge):
    """Can be asked in one order too; `asked` then holds that order alone."""

    def one_order(self, prompts, first, second):
        judged = self(prompts, first, second)
        return judged._replace(z_21=-judged.z_12)


def test_a_ring_puts_each_response_once_in_each_slot():
    texts = ["a", "bb", "ccc", "dddd"]
    asked = OneOrderUtilityJudge(utility, 0.6)
    got = ask(asked, opponents.Circular(), [user("p")] * 4, texts)
    ring = [("a", "bb"), ("bb", "ccc"), ("ccc", "dddd"), ("dddd", "a")]
    assert asked_orders(asked, "p") == ring
    for i, text in enumerate(texts):
        ahead, behind = texts[(i + 1) % 4], texts[i - 1]
        first = sigmoid(utility("p", text) - utility("p", ahead) + 0.6)
        second = 1 - sigmoid(utility("p", behind) - utility("p", text) + 0.6)
        np.testing.assert_allclose(got.reward[i], (first + second) / 2, rtol=1e-5)
    np.testing.assert_allclose(got.reward.sum(), 2.0, rtol=1e-5)


def test_a_ring_of_two_judges_the_pair_in_both_orders():
    texts, ring = ["a", "bb", "ccc", "a"], opponents.Circular()
    prompts = [user("p"), user("p"), user("q"), user("q")]
    both = ask(judge(), Peer(), prompts, texts, size=2)
    np.testing.assert_allclose(ask(judge(), ring, prompts, texts, size=2).reward, both.reward, rtol=1e-5)


@pytest.mark.parametrize("piece", [Group(orders="one"), Peer(orders="one"), Group(orders="random")], ids=str)
def test_one_order_costs_half_and_serves_both_members(piece):
    texts = ["a", "bb", "ccc", "dddd"]
    asked, both = OneOrderUtilityJudge(utility, 0.6), judge()
    got = ask(asked, piece, [user("p")] * 4, texts)
    ask(both, dataclasses.replace(piece, orders="both"), [user("p")] * 4, texts)
    orders = asked_orders(asked, "p")
    assert len(orders) == len(both.asked) == len({frozenset(pair) for pair in orders})
    wins = {pair: sigmoid(utility("p", pair[0]) - utility("p", pair[1]) + 0.6) for pair in orders}
    wins |= {(other, one): 1 - p for (one, other), p in wins.items()}
    for i, text in enumerate(texts):
        met = [texts[j] for j in np.flatnonzero(got.judged[0].mask[i])]
        np.testing.assert_allclose(got.reward[i], np.mean([wins[text, other] for other in met]), rtol=1e-5)
    if piece.orders == "one":
        assert all(texts.index(one) < texts.index(other) for one, other in orders)


def test_random_orders_are_fair_and_follow_the_key():
    piece, slots = Anchors(orders="random"), []
    for key in range(12):
        asked = OneOrderUtilityJudge(utility, 0.6)
        keys = jax.random.split(jax.random.key(key), 2)
        anchors = [("zz",)] * 8
        got = ask(asked, piece, PROMPTS, RESPONSES, anchors=anchors, keys=keys)
        again = ask(judge(), piece, PROMPTS, RESPONSES, anchors=anchors, keys=keys)
        np.testing.assert_array_equal(got.reward, again.reward)
        slots += [one != "zz" for _, one, _ in asked.asked]
        for i, (text, response) in enumerate(zip(TEXTS, RESPONSES, strict=True)):
            gap = utility(text, response) - utility(text, "zz")
            assert min(abs(got.reward[i] - sigmoid(gap + 0.6)), abs(got.reward[i] - sigmoid(gap - 0.6))) < 1e-5
    assert 0.3 < np.mean(slots) < 0.7


def test_a_drawn_member_is_met_by_all_others_and_meets_nobody():
    drawn = set()
    for key in range(10):
        keys = jax.random.split(jax.random.key(key), 2)
        asked = judge()
        got = ask(asked, opponents.RandomPeer(), PROMPTS, RESPONSES, keys=keys)
        mask = np.asarray(got.judged[0].mask)
        for start in (0, GROUP):
            (lot,) = {int(row.argmax()) for row in mask[start : start + GROUP] if row.any()}
            expected = [
                0.5 if j == lot else win(TEXTS[start], RESPONSES[start + j], RESPONSES[start + lot])
                for j in range(GROUP)
            ]
            np.testing.assert_allclose(got.reward[start : start + GROUP], expected, rtol=1e-5)
            drawn.add((start, lot))
    assert len(drawn) > 4


class ScoresByLength(UtilityJudge):
    def __init__(self, factor: float):
        super().__init__(utility)
        self.factor = factor

    def scored(self, prompts, responses):
        return Scored(
            np.array([self.factor * len(text) for text in responses], np.float32), np.zeros(len(prompts), bool)
        )


def test_several_judges_are_asked_each_for_itself():
    reward = scores.Several(judges=("one", "two"), weights=(1.0, 10.0))
    options = dict(group_size=GROUP, anchors=[()] * 8, keys=jax.random.split(jax.random.key(0), 2))
    judges = [ScoresByLength(1.0), ScoresByLength(-0.5)]
    got = rewards_of(judges, NoOpponent(), reward, PROMPTS, RESPONSES, **options)
    np.testing.assert_allclose(got.reward, [-4.0 * len(text) for text in RESPONSES], rtol=1e-6)
    assert [float(one.scores[1]) for one in got.judged] == [2.0, -1.0]
