"""Rows 18, 19, 20 and 21 of the correctness list: reward models, trained and asked."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import LetterTokenizer, UtilityJudge, make_decoder, make_scalar_model, one_device, token_rows, user

from prl_jax.commands.run import run_stages
from prl_jax.data.parsers import parse_preference
from prl_jax.data.records import PreferenceRecord
from prl_jax.data.rows import encode_generative_pair, encode_scalar_pair, stack_rows
from prl_jax.errors import UserError
from prl_jax.inputs.checks_of_data import check_inputs
from prl_jax.inputs.measurements import Measurements
from prl_jax.judges import GenerativeJudge, ScalarJudge, judge_pairs
from prl_jax.methods import Anchors, Group, Peer, WinProbability
from prl_jax.runs.context import StageContext
from prl_jax.runs.workdir import Workdir
from prl_jax.stages import config as c
from prl_jax.text.chat import encode_prompt, encode_response
from prl_jax.text.judging import JudgeTemplate, encode_judge_row, verdict_ids
from prl_jax.text.tokenizer import BPETokenizer, ByteTokenizer
from prl_jax.training.compare import rewards_of
from prl_jax.training.reward_model import bradley_terry_objective, generative_objective

TOKENIZER, TEMPLATE = LetterTokenizer(pad_is_eos=True), JudgeTemplate()
PROMPTS = [user(text) for text in ("ab", "c", "def", "ab")]
FIRST, SECOND = ["a", "bcde", "", "lmno"], ["qq", "b", "rrr", "m"]
RECORDS = [PreferenceRecord(str(i), *row) for i, row in enumerate(zip(PROMPTS, FIRST, SECOND, strict=True))]
SCALAR_LENGTH, LENGTH = 12, 16
VERDICTS = verdict_ids(TOKENIZER, TEMPLATE)


def scalar_batch(records=RECORDS):
    encode = functools.partial(encode_scalar_pair, TOKENIZER, max_prompt=6, max_response=6)
    return jax.tree.map(jnp.asarray, stack_rows([encode(record)[0] for record in records]))


def generative_batch(records=RECORDS):
    encode = functools.partial(encode_generative_pair, TOKENIZER, TEMPLATE, max_length=LENGTH)
    return jax.tree.map(jnp.asarray, stack_rows([encode(record)[0] for record in records]))


@pytest.fixture(scope="module")
def scalar():
    return make_scalar_model(layers=1)


@pytest.fixture(scope="module")
def language():
    return make_decoder(layers=1)


@pytest.fixture(scope="module")
def scores(scalar):
    """`[2, 4]` scores of both responses: in left-padded rows the last valid token is simply the last column."""
    run = jax.jit(lambda model, rows: model.values(rows)[:, -1])
    texts = zip(PROMPTS * 2, FIRST + SECOND, strict=True)
    ids = [encode_prompt(TOKENIZER, prompt) + encode_response(TOKENIZER, response) for prompt, response in texts]
    assert max(map(len, ids)) < SCALAR_LENGTH
    return np.asarray(run(scalar, token_rows(ids, SCALAR_LENGTH, side="left", pad_id=3))).reshape(2, 4)


@pytest.fixture(scope="module")
def verdicts(language):
    """`[2, 4]` logits of "slot 1 wins" in both orders, computed in the same way."""
    run = jax.jit(lambda model, rows: model.logits(model.hidden(*rows)[:, -1]))
    texts = [*zip(PROMPTS, FIRST, SECOND, strict=True), *zip(PROMPTS, SECOND, FIRST, strict=True)]
    ids = [encode_judge_row(TOKENIZER, TEMPLATE, *row, max_length=LENGTH).ids for row in texts]
    assert max(map(len, ids)) < LENGTH
    logits = np.asarray(run(language, token_rows(ids, LENGTH, side="left", pad_id=3)))
    yes, no = TOKENIZER.encode("YN")
    return (logits[:, yes] - logits[:, no]).reshape(2, 4)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)


def test_row_18_a_score_is_read_at_the_last_valid_token(scalar, scores):
    """In training and by the judge, where padding looks like the end of a response."""
    loss = jax.jit(bradley_terry_objective().terms)(scalar, scalar_batch())["preference"]
    np.testing.assert_allclose(loss.sum, softplus(scores[1] - scores[0]).sum(), rtol=1e-4)
    judge = ScalarJudge(scalar, TOKENIZER, max_length=SCALAR_LENGTH, batch_size=4)
    np.testing.assert_allclose(judge.scores(PROMPTS, FIRST), scores[0], atol=5e-5)
    assert np.ptp(scores) > 0.5


def test_row_18_a_score_depends_on_neither_padding_nor_batch_mates(scalar, scores):
    for length, size in ((SCALAR_LENGTH, 2), (SCALAR_LENGTH + 5, 4)):
        judge = ScalarJudge(scalar, TOKENIZER, max_length=length, batch_size=size)
        np.testing.assert_allclose(judge.scores(PROMPTS, SECOND), scores[1], atol=5e-5)
    judge = ScalarJudge(scalar, TOKENIZER, max_length=SCALAR_LENGTH, batch_size=4)
    np.testing.assert_allclose(judge.scores(PROMPTS[3:], FIRST[3:]), scores[0, 3:], atol=5e-5)


def test_row_19_a_verdict_of_several_tokens_is_refused_when_the_run_starts(tmp_path):
    """Before the first stage, and by whoever would ask."""
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    source = c.source(kind="jsonl", path=str(data))
    for words, message in ((("Y", "N"), None), (("Y", "No"), '"No" is 2 tokens'), (("Y", "Y"), "the same token")):
        config = c.build({"genrm": c.generative(data=source, validation=source, verdicts=words, batch_size=1)})
        context = StageContext("genrm", config, Workdir(tmp_path / "run", config), one_device())
        if message is None:
            check_inputs([context], Measurements())
            continue
        with pytest.raises(UserError, match=message):
            check_inputs([context], Measurements())
        with pytest.raises(UserError, match=message):
            GenerativeJudge(make_decoder(layers=1), ByteTokenizer(), JudgeTemplate(verdicts=words), max_length=LENGTH)


def test_row_19_a_verdict_is_checked_where_it_will_stand():
    """ "Yes" alone is one token of this vocabulary; behind a space it is " Ye" and "s"."""
    bpe = BPETokenizer.train([" Ye"] * 20 + ["Yes"] * 5 + ["No"] * 5 + [" No"] * 20, 320)
    assert verdict_ids(bpe, JudgeTemplate("compact-v1", ("Yes", "No"))) == (bpe.encode("Yes")[0], bpe.encode("No")[0])
    with pytest.raises(UserError, match='"Yes" is 2 tokens'):
        verdict_ids(bpe, JudgeTemplate("question-v1", ("Yes", "No")))


def test_row_19_training_and_judge_read_the_verdict_tokens(language, verdicts):
    objective = generative_objective(VERDICTS, w_ce=0.0)
    loss = jax.jit(objective.terms)(language, generative_batch())["preference"]
    np.testing.assert_allclose(loss.sum, softplus((verdicts[1] - verdicts[0]) / 2).sum(), rtol=1e-4)
    judge = GenerativeJudge(language, TOKENIZER, TEMPLATE, max_length=LENGTH, batch_size=4)
    judged = judge(PROMPTS, FIRST, SECOND)
    np.testing.assert_allclose([judged.z_12, judged.z_21], verdicts, atol=1e-4)


def test_row_20_training_sees_both_orders_of_each_pair(language, verdicts):
    """The verdict on each order enters the loss by itself; how often they disagree is among the metrics."""
    objective = generative_objective(VERDICTS, form="both_orders")
    batch = generative_batch()
    orders = (batch.order_12, batch.order_21)
    order_12, order_21 = ([TOKENIZER.decode(np.asarray(row)) for row in rows.tokens] for rows in orders)
    for i, (prompt, a, b) in enumerate(zip(("ab", "c", "def", "ab"), FIRST, SECOND, strict=True)):
        assert (order_12[i], order_21[i]) == (prompt + a + b, prompt + b + a)
    loss = jax.jit(objective.terms)(language, batch)["preference"]
    consistent, count = loss.aux["order_consistency"]
    assert float(consistent) == (np.sign(verdicts[0]) == -np.sign(verdicts[1])).sum() and float(count) == 4
    bias = (1 / (1 + np.exp(-verdicts))).sum(0) - 1
    np.testing.assert_allclose(loss.aux["position_bias"][0], bias.sum(), atol=1e-4)
    restricted = 0.5 * (softplus(-verdicts[0]) + softplus(verdicts[1])).sum()
    mass, _ = loss.aux["verdict_mass"]
    assert float(mass) < 3.9 and float(loss.sum) > restricted  # over the whole vocabulary
    swapped = batch._replace(order_12=batch.order_21, order_21=batch.order_12, label=1.0 - batch.label)
    np.testing.assert_allclose(jax.jit(objective.terms)(language, swapped)["preference"].sum, loss.sum, rtol=1e-5)


def test_row_20_a_judge_answers_for_both_orders_and_averages_them(language, verdicts):
    judged = GenerativeJudge(language, TOKENIZER, TEMPLATE, max_length=LENGTH, batch_size=4)(PROMPTS, FIRST, SECOND)
    p = 1 / (1 + np.exp(-verdicts))
    np.testing.assert_allclose(judged.p_first, (p[0] + 1 - p[1]) / 2, atol=1e-4)
    assert np.abs(p.sum(0) - 1).max() > 0.05


@pytest.mark.parametrize("opponents", [Anchors(), Peer(), Group()], ids=lambda piece: piece.kind)
def test_row_20_a_reward_averages_both_orders(opponents):
    """The judge likes what is shown first; each response gets the mean of its wins in both slots."""
    utility = {"a": 0.3, "b": -0.2, "c": 1.0, "d": 0.1}
    judge = UtilityJudge(lambda prompt, response: utility[response], bias=0.9)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    win = lambda a, b: (sigmoid(utility[a] - utility[b] + 0.9) + 1 - sigmoid(utility[b] - utility[a] + 0.9)) / 2  # noqa: E731
    others = ["d"] * 4 if opponents.candidates == "anchors" else ["b", "a", "d", "c"]
    expected = [0.5 if a == b else win(a, b) for a, b in zip("abcd", others, strict=True)]
    options = dict(group_size=2, anchors=[("d",)] * 4, keys=jax.random.split(jax.random.key(0), 2))
    got = rewards_of([judge], opponents, WinProbability(), [user("p")] * 4, list("abcd"), **options)
    np.testing.assert_allclose(got.reward, expected, rtol=1e-5)


def test_row_21_a_tie_is_half_a_win_each(scalar, scores):
    row = {"prompt": "ab", "chosen": "a", "rejected": "qq"}
    tie, win = (parse_preference(row | extra, "row") for extra in ({"tie": True}, {}))
    loss = jax.jit(bradley_terry_objective().terms)(scalar, scalar_batch([tie, win]))["preference"]
    gap = scores[0, 0] - scores[1, 0]
    np.testing.assert_allclose(loss.sum, 0.5 * (softplus(gap) + softplus(-gap)) + softplus(-gap), rtol=1e-4)
    right, decided = loss.aux["accuracy"]
    assert (float(right), float(decided)) == (float(gap > 0), 1.0)  # a tie is neither right nor wrong


def test_row_21_identical_responses_are_even_without_asking():
    judge = UtilityJudge(lambda prompt, response: len(response), bias=0.4)
    judged = judge_pairs(judge, PROMPTS, FIRST, [FIRST[0], *SECOND[1:]])
    assert judged.p_first[0] == 0.5 and len(judge.asked) == 3
    options = dict(group_size=2, anchors=[()] * 4, keys=jax.random.split(jax.random.key(0), 2))
    reward = rewards_of([judge], Peer(), WinProbability(), PROMPTS, ["x", "x", "y", "zz"], **options).reward
    np.testing.assert_array_equal(reward[:2], 0.5)
    assert reward[2] < 0.5 < reward[3]


@pytest.mark.parametrize(
    "row", [{"tie": "perhaps"}, {"p_chosen": 1.5}, {"p_chosen": "A"}, {"slot": 3}, {"meta": {"votes": [1, 2]}}], ids=str
)
def test_row_21_an_invalid_verdict_is_refused(row):
    with pytest.raises(UserError, match=f'pairs:7: field ".*{next(iter(row))}'):
        parse_preference({"prompt": "ab", "chosen": "a", "rejected": "b"} | row, "pairs:7")


def test_row_21_ties_and_identical_pairs_are_counted(tmp_path):
    """In every line of a stage's metrics."""
    rows = [("a", "b", {}), ("b", "c", {"tie": True}), ("d", "d", {}), ("e", "f", {"tie": True})] * 2
    data = tmp_path / "pairs.jsonl"
    text = [json.dumps({"prompt": "p", "chosen": a, "rejected": b} | extra) + "\n" for a, b, extra in rows]
    data.write_text("".join(text))
    source = c.source(kind="jsonl", path=str(data))
    stage = c.bradley_terry(data=source, validation=source, duration="1 steps", batch_size=6, max_prompt=4)
    model = dict(width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp_width=8)
    run_stages(c.build({"bt": stage}, model=model, logging=dict(progress=False)), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "bt" / "metrics.jsonl").read_text().splitlines()]
    assert [(line.get("ties"), line.get("identical_pairs_skipped")) for line in lines] == [(4, 2)] * len(lines)
    assert lines
