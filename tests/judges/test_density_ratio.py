"""Two policies as a judge: identities of the score, DPO's implicit reward, rows as in SFT, criteria."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_families import FAMILIES, write_tokenizer
from fakes import LetterTokenizer, copy, make_decoder, user

from prl_jax.data.records import SFTRecord
from prl_jax.data.rows import encode_responses, encode_sft, stack_rows
from prl_jax.errors import UserError
from prl_jax.judges import DensityRatioJudge, PolicyReader, ScoringJudge, judge_pairs
from prl_jax.judges.likelihood import frozen_log_probs
from prl_jax.methods.direct import Sigmoid
from prl_jax.text.chat import Turn, encode_prompt, encode_response
from prl_jax.text.huggingface import HFTokenizer
from prl_jax.training.direct import direct_objective
from prl_jax.types import DirectPairs

TOKENIZER = LetterTokenizer()
ROOM = dict(max_prompt=6, max_response=5)
PROMPTS = [user(text) for text in ("ab", "c", "def", "hh", "ab")]
FIRST, SECOND = ["a", "bcd", "", "kk", "lmno"], ["qq", "b", "rrr", "kk", "m"]
PAIRS = list(zip(FIRST, SECOND, strict=True))
BETA = 0.3
LOG_PROBS = jax.jit(lambda model, ids: jax.nn.log_softmax(model(ids)))
TINY = dict(rtol=1e-5, atol=2e-5)


def reader(model, **options) -> PolicyReader:
    return PolicyReader(model, TOKENIZER, batch_size=4, **{**ROOM, **options})


def ratio(strong, weak, *, criteria="", **options) -> DensityRatioJudge:
    return DensityRatioJudge(reader(strong, criteria=criteria), reader(weak), **options)


@pytest.fixture(scope="module")
def weak():
    return make_decoder(0, layers=1)


@pytest.fixture(scope="module")
def strong():
    return make_decoder(1, layers=1)


def by_hand(model, prompt, response, tokenizer=TOKENIZER) -> np.ndarray:
    """The log-probability of each token of a response and of its end, by a plain forward pass over one row."""
    question, answer = encode_prompt(tokenizer, prompt), encode_response(tokenizer, response)
    ids = np.zeros((1, 24), np.int32)  # what stands behind a token has no part in it
    ids[0, : len(question) + len(answer)] = question + answer
    logp = np.asarray(LOG_PROBS(model, ids)[0], np.float64)
    return logp[np.arange(len(question) - 1, len(question) + len(answer) - 1), answer]


def test_the_score_is_the_difference_of_log_probabilities(strong, weak):
    expected = [[by_hand(m, x, y) for x, y in zip(PROMPTS, FIRST, strict=True)] for m in (strong, weak)]
    sums, means = (np.subtract(*[[reduce(row) for row in rows] for rows in expected]) for reduce in (np.sum, np.mean))
    judge = ratio(strong, weak, beta=2.0)
    assert isinstance(judge, ScoringJudge) and np.std(sums) > 0.5
    found = judge.scored(PROMPTS, FIRST)
    np.testing.assert_allclose(found.scores, 2 * sums, **TINY)
    assert found.scores.dtype == np.float32 and not found.cut.any()
    np.testing.assert_allclose(ratio(strong, weak, length="mean").scored(PROMPTS, FIRST).scores, means, **TINY)


def test_a_policy_over_itself_says_nothing(weak):
    for length in ("sum", "mean"):
        judge = ratio(weak, copy(weak), length=length)
        np.testing.assert_array_equal(judge.scored(PROMPTS, FIRST).scores, 0)
        np.testing.assert_array_equal(judge(PROMPTS, FIRST, SECOND).p_first, 0.5)


def test_both_exchanges_negate(strong, weak):
    """That of the responses, and that of the policies."""
    judge = ratio(strong, weak)
    one, other = judge(PROMPTS, FIRST, SECOND), judge(PROMPTS, SECOND, FIRST)
    np.testing.assert_array_equal(one.z_12, -one.z_21)
    np.testing.assert_allclose(other.z_12, -one.z_12, atol=1e-5)
    scores = judge.scored(PROMPTS, FIRST).scores
    gap = scores - judge.scored(PROMPTS, SECOND).scores
    np.testing.assert_allclose(one.p_first, 1 / (1 + np.exp(-gap.astype(np.float64))), rtol=1e-4)
    np.testing.assert_allclose(ratio(weak, strong).scored(PROMPTS, FIRST).scores, -scores, **TINY)
    assert judge_pairs(judge, PROMPTS, FIRST, FIRST).p_first.tolist() == [0.5] * 5


def test_dpo_over_its_reference_scores_its_implicit_reward(weak):
    """Of a policy that DPO has trained, whose loss is then what the judge's gaps say."""
    rows = [encode_responses(TOKENIZER, *pair, **ROOM)[0] for pair in zip(PROMPTS, PAIRS, strict=True)]
    first, second = (jax.tree.map(jnp.asarray, stack_rows([pair[i] for pair in rows])) for i in (0, 1))
    reference = jnp.stack([frozen_log_probs(weak, batch) for batch in (first, second)], axis=1)
    zeros, ones = jnp.zeros(5), jnp.ones(5)
    batch = DirectPairs(first, second, reference, ones, jnp.zeros((5, 2)), zeros, ones)
    objective = direct_objective(Sigmoid(beta=BETA))
    slope = jax.jit(jax.value_and_grad(lambda model: objective.terms(model, batch)["direct"].sum))
    model = weak
    for _ in range(4):
        model = jax.tree.map(lambda p, g: p - 0.02 * g, model, slope(model)[1])
    judge = ratio(model, weak, beta=BETA)
    rewards = []
    for texts in (FIRST, SECOND):
        pairs = zip(PROMPTS, texts, strict=True)
        rewards.append([BETA * (by_hand(model, *pair).sum() - by_hand(weak, *pair).sum()) for pair in pairs])
        np.testing.assert_allclose(judge.scored(PROMPTS, texts).scores, rewards[-1], **TINY)
    gap = np.subtract(*rewards)
    assert np.mean(gap > 0) > 0.5 and np.abs(gap).max() > 0.1  # it has learned something
    judged = judge(PROMPTS, FIRST, SECOND)
    np.testing.assert_allclose(judged.z_12, gap, **TINY)
    np.testing.assert_allclose(slope(model)[0], -np.log(judged.p_first).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "response"), [("abc", "de"), ("abcdefghij", "k"), ("a", "klmnopqr"), ("abcdef", "")]
)
def test_rows_are_those_of_sft(weak, prompt, response):
    policy = reader(weak)
    row = policy.row(user(prompt), response)
    expected, cut = encode_sft(TOKENIZER, SFTRecord("", user(prompt), response), **ROOM)
    found = policy._batch([row])
    assert row.cut == cut
    for mine, theirs in zip(jax.tree.leaves(found.rows), jax.tree.leaves(expected.rows), strict=True):
        np.testing.assert_array_equal(mine[0], theirs)
    np.testing.assert_array_equal(found.mask[0], expected.mask)
    np.testing.assert_array_equal(found.targets[0], expected.targets)


def test_what_is_cut_is_told(strong, weak):
    judge = ratio(strong, weak)
    judged = judge([user("ab"), user("abcdefgh"), user("ab")], ["a", "b", "qqqqqqq"], ["c", "d", "e"])
    assert judged.cut.tolist() == [False, True, True] and judged.cuts == 2
    assert judge.scored([user("a")], ["bcdefghi"]).cut.tolist() == [True]
    uneven = DensityRatioJudge(reader(strong), reader(weak, max_response=3))  # cut for one of the two
    assert uneven.scored(PROMPTS[:2], ["abcd", "a"]).cut.tolist() == [True, False]


def test_what_differs_behind_the_cut_is_even(strong, weak):
    judged = ratio(strong, weak)([user("ab"), user("ab")], ["abcdefgh", "abcdefgh"], ["abcdefij", "abcqefij"])
    assert judged.p_first[0] == 0.5 and judged.p_first[1] != 0.5
    longer = DensityRatioJudge(reader(strong, max_response=9), reader(weak))  # the strong one reads the difference
    assert longer([user("ab")], ["abcdefgh"], ["abcdefij"]).p_first[0] != 0.5


def test_criteria_stand_before_the_prompt_of_the_strong_policy_alone(strong, weak):
    judge = DensityRatioJudge(reader(strong, max_prompt=12, criteria="good"), reader(weak, max_prompt=12))
    system = (Turn("system", "good"), *user("ab"))
    pair = (user("ab"), "cd")
    expected = by_hand(strong, system, "cd").sum() - by_hand(weak, *pair).sum()
    np.testing.assert_allclose(judge.scored([pair[0]], [pair[1]]).scores, [expected], **TINY)
    assert judge.weak.row(*pair).ids == encode_prompt(TOKENIZER, user("ab")) + encode_response(TOKENIZER, "cd")


def test_criteria_are_never_cut(weak):
    """A long prompt loses its beginning, and they stay whole before it."""
    policy = reader(weak, max_prompt=12, criteria="good")
    row = policy.row(user("abcdefghij"), "k")
    system = (Turn("system", "good"), *user("hij"))
    assert row.cut and row.ids[: row.start] == encode_prompt(TOKENIZER, system)
    assert row.start == 12
    with pytest.raises(UserError, match="criteria: take 9 tokens .* max_prompt=9 of the strong model"):
        reader(weak, max_prompt=9, criteria="good")


def test_criteria_go_where_the_chat_template_has_a_place_for_them(tmp_path, weak):
    """A system turn; the beginning of the one that is there; or that of the user's first turn."""
    talk = (*user("hi"), Turn("assistant", "hello"), *user("bye"))
    own = (Turn("system", "ciao"), *user("hi"))
    for name in ("llama3", "qwen2.5", "gemma"):
        tokenizer = HFTokenizer(write_tokenizer(tmp_path / name, FAMILIES[name]))
        policy = PolicyReader(weak, tokenizer, max_prompt=200, max_response=20, criteria="brief")

        def asked(prompt, policy=policy):
            row = policy.row(prompt, "ciao")
            return row.ids[: row.start]

        if name == "gemma":
            assert asked(talk) == encode_prompt(tokenizer, (*user("brief\n\nhi"), *talk[1:]))
        else:
            assert asked(talk) == encode_prompt(tokenizer, (Turn("system", "brief"), *talk))
            assert asked(own) == encode_prompt(tokenizer, (Turn("system", "brief\n\nciao"), *user("hi")))


def test_policies_read_with_tokenizers_of_their_own(strong, weak):
    class Backwards(LetterTokenizer):
        letters = "NYrqponmlkjihgfedcba"

        def encode(self, text):
            return [Backwards.letters.index(letter) for letter in text]

    judge = DensityRatioJudge(reader(strong), PolicyReader(weak, Backwards(), **ROOM))
    expected = by_hand(strong, user("ab"), "cd").sum() - by_hand(weak, user("ab"), "cd", Backwards()).sum()
    np.testing.assert_allclose(judge.scored([user("ab")], ["cd"]).scores, [expected], **TINY)


def test_lengths_and_columns_that_cannot_be_are_refused(strong, weak):
    with pytest.raises(ValueError, match="length='median'"):
        ratio(strong, weak, length="median")
    with pytest.raises(ValueError, match=r"\[2, 1\]"):
        ratio(strong, weak).scored(PROMPTS[:2], ["a"])
