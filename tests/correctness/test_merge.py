"""Row 34 of the correctness list: the two orders are merged in the space that the judge was trained in."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import LetterTokenizer, UtilityJudge, make_decoder, user
from ml_collections import ConfigDict

from prl_jax.artifacts.cards import read_card
from prl_jax.artifacts.models import load_judge
from prl_jax.commands.judge import judge_file
from prl_jax.commands.run import run_stages
from prl_jax.data.records import PreferenceRecord
from prl_jax.data.rows import encode_generative_pair, stack_rows
from prl_jax.errors import UserError
from prl_jax.judges import GenerativeJudge, judge_pairs
from prl_jax.judges.generative import trained_merge
from prl_jax.methods import Anchors, Peer, WinProbability
from prl_jax.runs import models as stage_models
from prl_jax.sharding import make_mesh
from prl_jax.stages import arms, evaluation, win_rate
from prl_jax.stages import config as c
from prl_jax.stages.anchors import Candidates, rank_scores
from prl_jax.stages.generative import planned_card
from prl_jax.stages.online_step import judge_metrics
from prl_jax.text.judging import JudgeTemplate, verdict_ids
from prl_jax.training.compare import rewards_of
from prl_jax.training.reward_model import generative_objective

TOKENIZER, TEMPLATE, LENGTH = LetterTokenizer(), JudgeTemplate(), 16
PROMPTS = [user(text) for text in ("ab", "c", "def", "ab")]
FIRST, SECOND = ["a", "bcde", "", "lmno"], ["qq", "b", "rrr", "m"]


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


# A response that is better by 0.5, and a slot that is worth 3: probabilities average to less than logits do.
GAP, BIAS = 0.5, 3.0
RIGHT = {
    "logit": sigmoid(GAP),
    "probability": (sigmoid(GAP + BIAS) + 1 - sigmoid(-GAP + BIAS)) / 2,
}
MERGES = sorted(RIGHT)
unchecked = pytest.mark.usefixtures("unchecked")  # stand-ins for a stage's surroundings


def biased(merge: str) -> UtilityJudge:
    return UtilityJudge(lambda prompt, response: GAP * len(response), BIAS, merge)


def piece() -> SimpleNamespace:
    """Pieces of a stage, none of which are kept."""
    return SimpleNamespace(each=lambda name, items, size, make: list(make(0, items)))


def test_row_34_the_two_spaces_differ_where_a_slot_is_favoured():
    assert RIGHT["logit"] - RIGHT["probability"] > 0.07


def test_row_34_what_antisymmetric_training_fits_is_what_the_judge_answers():
    """The loss of a pair is minus the logarithm of the probability that the judge then gives."""
    model = make_decoder(layers=1)
    records = [PreferenceRecord(str(i), *row) for i, row in enumerate(zip(PROMPTS, FIRST, SECOND, strict=True))]
    encode = functools.partial(encode_generative_pair, TOKENIZER, TEMPLATE, max_length=LENGTH)
    batch = jax.tree.map(jnp.asarray, stack_rows([encode(record)[0] for record in records]))
    form = c.generative()["form"]
    terms = generative_objective(verdict_ids(TOKENIZER, TEMPLATE), form=form, w_ce=0.0).terms
    loss = float(jax.jit(terms)(model, batch)["preference"].sum)
    judge = GenerativeJudge(model, TOKENIZER, TEMPLATE, max_length=LENGTH, merge=trained_merge(form))
    judged = judge(PROMPTS, FIRST, SECOND)
    np.testing.assert_allclose(-np.log(judged.p_first).sum(), loss, rtol=1e-4)
    other = GenerativeJudge(model, TOKENIZER, TEMPLATE, max_length=LENGTH, merge=trained_merge("both_orders"))
    plain = other(PROMPTS, FIRST, SECOND)
    np.testing.assert_allclose(plain.p_first, (plain.p_12 + 1 - plain.p_21) / 2, atol=1e-6)
    assert np.abs(plain.p_first - judged.p_first).max() > 0.01
    with pytest.raises(UserError, match="merge"):
        GenerativeJudge(model, TOKENIZER, TEMPLATE, max_length=LENGTH, merge="mean")


@pytest.mark.parametrize("merge", MERGES)
def test_row_34_rewards_and_their_metrics_take_the_judges_own_merge(merge):
    responses, anchors = ["a", "bb", "ccc", "dd"], [("aa",), ("b",), ("cc",), ("dd",)]
    right = RIGHT[merge]
    expected = [1 - right, right, right, 0.5], [1 - right, right, right, 1 - right]
    options = dict(group_size=2, anchors=anchors, keys=jax.random.split(jax.random.key(0), 2))
    for opponents, rewards in zip((Anchors(), Peer()), expected, strict=True):
        got = rewards_of([biased(merge)], opponents, WinProbability(), PROMPTS, responses, **options)
        np.testing.assert_allclose(got.reward, rewards, rtol=1e-5)
        logged = judge_metrics(opponents, WinProbability(), got.judged)[f"win_rate_{opponents.kind}"]
        np.testing.assert_allclose(logged, np.mean(rewards), rtol=1e-5)


@unchecked
@pytest.mark.parametrize("merge", MERGES)
def test_row_34_anchors_are_ranked_by_the_judges_own_merge(merge):
    candidates = Candidates([["a", "bb"], ["aa", "b"]], np.zeros((2, 2), bool))
    scores, _ = rank_scores(biased(merge), PROMPTS[:2], candidates, 2, piece())
    right = RIGHT[merge]
    np.testing.assert_allclose(scores, [[1 - right, right], [right, 1 - right]], rtol=1e-5)


@unchecked
@pytest.mark.parametrize("merge", MERGES)
def test_row_34_win_rates_are_those_of_the_judges_own_merge(merge, monkeypatch):
    """In the curves of a policy stage and in the final table."""
    judge, texts, others = biased(merge), ["aa", "bb", "cc", "dd"], ["a", "b", "c", "d"]
    orders = arms._judged(piece(), judge, PROMPTS, 4, "orders", [texts], [others])
    np.testing.assert_allclose(arms._wins(orders), np.full((4, 1), RIGHT[merge]), rtol=1e-5)

    monkeypatch.setattr(win_rate, "respond", lambda model, *_, **__: (model, None))
    section = SimpleNamespace(prompts=SimpleNamespace(skip=0), batch_size=4)
    records = [SimpleNamespace(prompt=prompt) for prompt in PROMPTS]
    context = SimpleNamespace(
        records=lambda *_: records, config=SimpleNamespace(seed=0), mesh=make_mesh(devices=jax.devices()[:1])
    )
    measure = win_rate.policy_win_rate(context, others, None, None, judge=judge, max_prompt=4, section=section)
    np.testing.assert_allclose(measure(texts)["win_rate"], RIGHT[merge], rtol=1e-5)


@unchecked
@pytest.mark.parametrize("merge", MERGES)
def test_row_34_a_judge_is_measured_by_its_own_merge(merge, monkeypatch):
    monkeypatch.setattr(stage_models, "named_judge", lambda *_, **__: biased(merge))
    context = SimpleNamespace(section=SimpleNamespace(batch_size=4, judges=("genrm",)))
    records = [PreferenceRecord("0", PROMPTS[0], "aa", "a"), PreferenceRecord("1", PROMPTS[1], "bb", "b")]
    metrics = evaluation.evaluate_judge(context, "genrm", records, piece())
    np.testing.assert_allclose(metrics["log_loss"], -np.log(RIGHT[merge]), rtol=1e-5)
    bins = [row["confidence"] for row in metrics["reliability"] if row["count"]]
    np.testing.assert_allclose(bins, [RIGHT[merge]], rtol=1e-5)


def test_row_34_identical_responses_are_even_in_either_space():
    for merge in MERGES:
        assert judge_pairs(biased(merge), PROMPTS, FIRST, FIRST).p_first.tolist() == [0.5] * 4


@pytest.mark.slow
def test_row_34_a_stage_writes_the_merge_of_its_form_and_whoever_loads_the_judge_takes_it(tmp_path):
    """A key overrules the form; a card that says nothing is of a time when all judges averaged probabilities."""
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "ab", "chosen": "a" * n, "rejected": "b"} for n in range(1, 5)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = c.source(kind="jsonl", path=str(data))
    values = dict(data=source, validation=source, duration="1 steps", batch_size=2, max_length=24)
    stages = {"genrm": c.generative(**values)}
    model = dict(width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp_width=8)
    run_stages(c.build(stages, model=model, logging=dict(progress=False)), tmp_path / "run")
    for section, merge in (
        (dict(merge="probability"), "probability"),
        (dict(form="both_orders"), "probability"),
        (dict(form="both_orders", merge="logit"), "logit"),
    ):
        assert planned_card(ConfigDict(c.generative(**section))).merge == merge
    directory = tmp_path / "run" / "genrm"
    assert read_card(directory).merge == "logit"
    assert load_judge(directory, make_mesh(devices=jax.devices()[:1])).merge == "logit"
    out = tmp_path / "judged.jsonl"
    judge_file(str(directory), data, out)
    judged = [json.loads(line) for line in out.read_text().splitlines()]
    logit = lambda p: np.log(p) - np.log1p(-p)  # noqa: E731
    for row in judged:
        expected = sigmoid((logit(row["p_12"]) - logit(row["p_21"])) / 2)
        np.testing.assert_allclose(row["p_chosen"], expected, atol=1e-6)
    old = json.loads((directory / "model.json").read_text())
    del old["merge"]
    (directory / "model.json").write_text(json.dumps(old))
    assert read_card(directory).merge == "probability"
