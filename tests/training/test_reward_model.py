"""Both kinds of reward models see both orders, follow the label, and can learn what they are shown."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import LetterTokenizer, copy, make_decoder, make_scalar_model, one_device, user

from prl_jax.data.records import PreferenceRecord
from prl_jax.data.rows import encode_generative_pair, encode_scalar_pair, stack_rows
from prl_jax.judges import GenerativeJudge, ScalarJudge
from prl_jax.models import LOGICAL_AXES, ScalarModel, last_index
from prl_jax.text.judging import JudgeTemplate, verdict_ids
from prl_jax.training.reward_model import bradley_terry_objective, generative_objective
from prl_jax.training.state import create_state
from prl_jax.training.step import make_train_step
from prl_jax.types import ComparedPairs, ScoredPairs

TOKENIZER, TEMPLATE = LetterTokenizer(), JudgeTemplate()
LENGTH = 18
# What is better differs from prompt to prompt, so that no response is good in itself.
TRIPLES = [
    ("a", "cd", "ef"),
    ("b", "ef", "cd"),
    ("a", "g", "hhh"),
    ("b", "hhh", "g"),
    ("c", "", "kk"),
    ("ab", "lm", "ml"),
]
RECORDS = [PreferenceRecord(str(i), user(prompt), good, bad) for i, (prompt, good, bad) in enumerate(TRIPLES)]
VERDICTS = verdict_ids(TOKENIZER, TEMPLATE)
SCALAR = functools.partial(encode_scalar_pair, TOKENIZER, max_prompt=8, max_response=10)
PAIR = functools.partial(encode_generative_pair, TOKENIZER, TEMPLATE, max_length=LENGTH)
KINDS = {
    "bradley_terry": (make_scalar_model, SCALAR, bradley_terry_objective()),
    "antisymmetric": (make_decoder, PAIR, generative_objective(VERDICTS)),
    "both_orders": (make_decoder, PAIR, generative_objective(VERDICTS, form="both_orders", w_cons=0.1)),
}


def batch_of(encode) -> ScoredPairs | ComparedPairs:
    """Odd rows have the better response in slot 2."""
    batch = jax.tree.map(jnp.asarray, stack_rows([encode(record)[0] for record in RECORDS]))
    flip = jnp.arange(len(RECORDS)) % 2 == 1
    rows, others, _, weight = batch
    rows, others = (
        jax.tree.map(lambda x, y: jnp.where(flip[:, None], x, y), *pair) for pair in ((others, rows), (rows, others))
    )
    return type(batch)(rows, others, jnp.where(flip, 0.0, 1.0), weight)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    make, encode, objective = KINDS[request.param]
    run = jax.jit(lambda model, batch: objective.terms(model, batch)["preference"])
    return make(layers=1), batch_of(encode), objective, run


def test_row_20_exchanging_the_slots_and_the_label_leaves_the_loss(kind):
    """Both sets of rows are read: the loss depends on each, and on no order between them."""
    model, batch, _, loss = kind
    soft = batch._replace(label=jnp.array([1.0, 0.0, 0.5, 0.3, 0.9, 0.0]))
    rows, others, label, weight = soft
    swapped = type(soft)(others, rows, 1.0 - label, weight)
    there, back = loss(model, soft), loss(model, swapped)
    np.testing.assert_allclose(there.value, back.value, rtol=1e-5)
    np.testing.assert_allclose(there.aux["accuracy"], back.aux["accuracy"], rtol=1e-5)
    flipped = loss(model, soft._replace(label=1.0 - soft.label))
    assert abs(float(flipped.value - there.value)) > 1e-3
    for changed in (type(soft)(others, others, label, weight), type(soft)(rows, rows, label, weight)):
        assert abs(float(loss(model, changed).value - there.value)) > 1e-3


def test_row_21_flipped_labels_flip_the_accuracy_and_ties_are_left_out(kind):
    model, batch, _, loss = kind
    right, count = loss(model, batch).aux["accuracy"]
    wrong, _ = loss(model, batch._replace(label=1.0 - batch.label)).aux["accuracy"]
    assert float(right + wrong) == float(count) == 6.0
    ties = loss(model, batch._replace(label=batch.label.at[:2].set(0.5)))
    assert float(ties.aux["accuracy"][1]) == 4.0 and float(ties.denominator) == 6.0


def test_row_13_rows_without_weight_do_not_count(kind):
    model, batch, objective, loss = kind
    weight = jnp.array([1.0, 1.0, 0.0, 2.0, 0.0, 1.0])
    weighted = batch._replace(weight=weight)
    term = loss(model, weighted)
    assert float(term.denominator) == float(objective.denominators(weighted)["preference"]) == 5.0
    other = jax.tree.map(lambda x: x.at[jnp.array([2, 4])].set(x[:2]), weighted)._replace(weight=weight)
    np.testing.assert_allclose(loss(model, other).sum, term.sum, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bradley_terry", "antisymmetric"], indirect=True)
def test_a_tiny_set_is_learnt(kind):
    """The trained judge then tells every pair apart, whichever response comes first."""
    model, batch, objective, _ = kind
    optimizer = optax.adam(0.01)
    state = create_state(copy(model), optimizer, one_device(), LOGICAL_AXES)
    step = make_train_step(objective, optimizer)
    for _ in range(40):
        state, metrics = step(state, batch)
    assert float(metrics["accuracy"]) == 1.0 and float(metrics["loss"]) < 0.3
    texts = [record.prompt for record in RECORDS], [r.chosen for r in RECORDS], [r.rejected for r in RECORDS]
    if isinstance(state.model, ScalarModel):
        judge = ScalarJudge(state.model, TOKENIZER, max_length=LENGTH, batch_size=12)
    else:
        judge = GenerativeJudge(state.model, TOKENIZER, TEMPLATE, max_length=LENGTH, batch_size=12)
    assert judge(*texts).p_first.min() > 0.5
    assert judge(texts[0], texts[2], texts[1]).p_first.max() < 0.5


def test_row_18_the_encoders_end_rows_where_the_score_is_read():
    batch = batch_of(SCALAR)
    for rows in (batch.response_1, batch.response_2):
        last = np.asarray(rows.tokens)[np.arange(len(RECORDS)), last_index(rows.segments)]
        assert (last == TOKENIZER.eos_id).all()


def test_centring_pins_the_level_of_the_scores():
    like, batch = make_scalar_model(layers=1), batch_of(SCALAR)
    objectives = [bradley_terry_objective(center=c) for c in (0.0, 0.01)]
    run = jax.jit(lambda model, batch: [objective.terms(model, batch)["preference"].value for objective in objectives])

    def at_level(bias: float) -> ScalarModel:
        model = ScalarModel(like.decoder, bias=bias)
        model.scalar.weight[...] = like.scalar.weight[...]
        return model

    low, high = run(at_level(10.0), batch)
    np.testing.assert_allclose(run(at_level(11.0), batch)[0], low, rtol=1e-4)
    assert float(run(at_level(11.0), batch)[1]) > float(high) > float(low)
